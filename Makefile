# The course lab. `make` lists what can be done; every target sets up what it needs.
# GNU make and a POSIX shell are all that must be there, with Python 3.11.4 or newer.

.DEFAULT_GOAL := help
SHELL := /bin/sh

# The chapters share the cores, and a second target would only wait: one at a time, also under -j.
.NOTPARALLEL:

# What a user may set, as in `make reproduce PROFILE=cpu CHAPTERS="02 03"`.
PROFILE ?= auto
CHAPTERS ?=
THREADS ?=
WORKERS ?=
FORCE ?=
STRICT ?=
DASK ?=
SECTIONS ?=
TORCH ?= auto
PYTHON ?= python3

# An active conda environment is used (but not conda's own base), else .venv beside this file.
ifneq ($(and $(CONDA_PREFIX),$(filter-out base,$(or $(CONDA_DEFAULT_ENV),unnamed))),)
ENVIRONMENT := $(CONDA_PREFIX)
else
ENVIRONMENT := .venv
endif
# Single quotes, so that make runs these commands without a shell between: a signal reaches them.
PY := '$(ENVIRONMENT)/bin/python'
LABKIT := $(PY) -m labkit

# Jupyter starts the kernel of this environment, never one of the same name in the user's home.
export JUPYTER_PREFER_ENV_PATH := 1

setup_options := --torch '$(or $(TORCH),auto)' \
  $(if $(filter file default,$(origin PYTHON)),,--python '$(PYTHON)')
run_options := --profile '$(PROFILE)' $(if $(THREADS),--threads '$(THREADS)') \
  $(if $(WORKERS),--workers '$(WORKERS)') $(if $(FORCE),--force) \
  $(if $(DASK),--dask '$(DASK)')
nbval_options := --nbval-lax --nbval-current-env --nbval-cell-timeout 120 \
  --nbval-sanitize-with tests/nbval_sanitize.cfg

# A slip of the finger is answered here, before anything is set up or written.
ifneq ($(filter reproduce run test,$(MAKECMDGOALS)),)
$(foreach name,THREADS WORKERS,$(if $(shell printf %s '$($(name))' | grep -Evx '[1-9][0-9]*'),\
  $(error $(name)=$($(name)) is not a whole number from 1 up)))
endif
ifneq ($(filter reproduce run notebooks,$(MAKECMDGOALS)),)
$(if $(filter quick cpu full auto,$(PROFILE)),,\
  $(error PROFILE=$(PROFILE) is not known; choose quick, cpu, full or auto))
$(foreach name,$(notdir $(CHAPTERS:.ipynb=)),$(if $(wildcard notebooks/$(name).ipynb \
  notebooks/$(name)_*.ipynb notebooks/0$(name)_*.ipynb),,\
  $(error CHAPTERS=$(name) is not known; there are $(basename $(notdir $(wildcard notebooks/*.ipynb))))))
endif

# What comes next, said by the target that was asked for and not by those within it.
ifdef QUIET
next = @:
else
next = @printf '\n%s\n'
endif

.PHONY: help setup lab reproduce run report verify data notebooks test bench lint clean

help:  ## List the targets and the settings
	@printf 'Usage: make TARGET [NAME=value ...]\n\nTargets\n'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' Makefile
	@printf '\nSettings\n'
	@printf '  %-11s %s\n' \
	  'PROFILE=' 'quick, cpu, full or auto: full where CUDA is there, else cpu [$(PROFILE)]' \
	  'CHAPTERS=' 'chapters by number or name, such as "02 03"; all without it' \
	  'THREADS=' 'threads that torch uses in each process' \
	  'WORKERS=' 'processes that train, or test, at once' \
	  'DASK=' 'the scheduler of a Dask cluster to train on, such as tcp://host:8786' \
	  'SECTIONS=' 'what bench measures, such as "ladder start"; all without it' \
	  'FORCE=1' 'run chapters that are up to date too' \
	  'STRICT=1' 'let verify fail on stale results, not only on tampered ones' \
	  'TORCH=' 'auto, cpu, cuda or keep: the torch that setup installs [$(TORCH)]' \
	  'PYTHON=' 'the Python that .venv is made with; 3.11 is tested'
	@printf '\nTo begin: make reproduce PROFILE=quick, then make lab\n'

.DEFAULT:
	@echo 'There is no target "$@"; make alone lists them'; exit 2

setup:  ## Install the lab into the active conda environment, else into .venv
	@$(PYTHON) labkit/lab/install.py $(setup_options)

lab: setup  ## Open the chapters in JupyterLab
	@$(LABKIT) lab

reproduce: setup  ## Run the chapters whose results are missing or stale, report, verify
	@$(MAKE) --no-print-directory --keep-going QUIET=1 run report verify
	$(next) '$(if $(filter quick,$(PROFILE)),This run is not in results/REPORT.md; that \
	tells of cpu and full. \
	Its notebooks with their outputs lie in results/.executed/quick. Open,Read results/REPORT.md; open) the chapters with: make lab'

run: setup  ## Run chapters only
	@$(LABKIT) run $(CHAPTERS) $(run_options)
	$(next) 'Next: make report, or make lab to open the chapters'

report: setup  ## Write results/REPORT.md from the records
	@$(LABKIT) report
	$(next) 'Next: read results/REPORT.md, and make verify'

verify: setup  ## Check that results are what was written, and name what is stale
	@$(LABKIT) verify $(if $(STRICT),--strict)
	$(next) 'What is stale, if anything above is, make reproduce brings up to date'

data: setup  ## Download the reviews (84 MB), word vectors (862 MB) and MiniLM (91 MB); verify them
	@$(LABKIT) data
	$(next) 'Next: make reproduce'

notebooks: setup  ## Run the quick chapters in place, so that their stored outputs are fresh
	@$(LABKIT) notebooks $(CHAPTERS)
	$(next) 'Next: make test'

test: setup lint  ## Check the code, run the tests and every chapter's quick profile
	@$(PY) -m pytest tests notebooks -n $(or $(WORKERS),2) --dist loadscope \
	  $(nbval_options) --cov=labkit
	$(next) 'All is well; run the chapters with: make reproduce'

bench: setup  ## Measure how fast the lab is: results/bench, on an idle machine, 20 minutes
	@$(LABKIT) bench $(SECTIONS)
	$(next) 'Read results/bench/README.md; record and figures lie beside it'

lint: setup  ## Check style and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean:  ## Remove quick results, leavings of runs, finished trainings and caches of tools
	@if [ -x $(PY) ] && [ -f "$(ENVIRONMENT)/.labkit/stamp.json" ]; then $(LABKIT) clean; fi
	@rm -rf .coverage .coverage.* .hypothesis .pytest_cache .ruff_cache build htmlcov
	@find labkit tests notebooks -name __pycache__ -prune -exec rm -rf {} + \
	  -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
	$(next) 'Kept: the environment, downloads and reported results; a .venv goes with: rm -rf .venv'

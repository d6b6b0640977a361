# The course lab. `make` lists what can be done; every target sets up what it needs.
# It needs GNU make 3.81, a POSIX shell, and Python 3.11.4 or newer with venv and pip.

.PHONY: help setup install lab reproduce run report verify data handout notebooks site translations test lint gpu-check lock clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Settings, as in `make reproduce PROFILE=cpu CHAPTERS="02 03"`. The command line checks them.
#   PROFILE=    quick, cpu, full or auto: full where CUDA is there, else cpu
#   CHAPTERS=   chapters by number or name, such as "02 03"; all without it
#   WORKERS=    processes that train, or test, at once
#   DASK=       the scheduler of a Dask cluster to train on, such as tcp://host:8786
#   FORCE=1     run chapters that are up to date too
#   STRICT=1    let verify fail on stale results, not only on tampered ones
#   EXTRAS=     more packages: triton (the GPU kernel, also tested without a GPU), teach (nbgrader),
#               site (what make site needs, and its tests)
#   TORCH=      auto, cpu, cu130 or another build of torch that uv knows
#   PYTHON=     the Python that .venv is made with, such as 3.12 or /path/to/python
on = $(filter-out 0 no off false,$($(1)))
run_options := $(if $(PROFILE),--profile '$(PROFILE)') \
  $(if $(WORKERS),--workers '$(WORKERS)') $(if $(DASK),--dask '$(DASK)') \
  $(if $(call on,FORCE),--force)

# An active conda environment is used (but not conda's base), else .venv beside this file.
ENVIRONMENT := $(or $(if $(filter base,$(CONDA_DEFAULT_ENV)),,$(CONDA_PREFIX)),.venv)
# In single quotes make starts it without a shell between: a signal to make reaches it.
PY := '$(ENVIRONMENT)/bin/python'
LABKIT := $(PY) -m labkit
next := 'Next: make reproduce PROFILE=quick, or make lab'

# The environment is the lab's own: no packages from elsewhere, none to elsewhere.
unexport PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT
export PYTHONNOUSERSITE := 1
export PIP_USER := 0

help:  ## List the targets and the settings
	@printf 'Usage: make TARGET [NAME=value ...]\n\nTargets\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile
	@printf '\nSettings\n'; sed -n 's/^#   \([A-Z]*=\)/  \1/p' Makefile
	@printf '\n%s\n' $(next)

# uv makes the environment. It does not read pip's settings. A folder of wheels, where one is named,
# also decides which torch comes. The stamp tells for which folder and from which files it was made.
comma := ,
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
export UV_FIND_LINKS ?= $(subst $() $(),$(comma),$(strip $(PIP_FIND_LINKS)))
TORCH ?= $(if $(UV_FIND_LINKS),,auto)
UV = $(or $(shell command -v uv 2>/dev/null),.cache/uv/bin/uv)
UV_INSTALL = $(UV) pip install --python $(PY) -c requirements.lock
STAMP := '$(ENVIRONMENT)/.labkit-setup'
state = { pwd; echo '$(TORCH) $(EXTRAS)'; cat pyproject.toml requirements.lock Makefile; } | cksum
logged = >>.cache/setup.log 2>&1 || { tail -n 15 .cache/setup.log; echo 'setup: this step failed, \
  .cache/setup.log has all of it. Once it is mended, make setup goes on from here.'; exit 1; } >&2

setup:  ## Install the lab into the active conda environment, else into .venv
	@[ -x $(PY) ] && $(state) | cmp -s - $(STAMP) || $(MAKE) --no-print-directory install
	$(if $(filter setup,$(MAKECMDGOALS)),@echo $(next))

install:
	@mkdir -p .cache && rm -f $(STAMP) && date +%s >.cache/started && : >.cache/setup.log
	@[ -x '$(UV)' ] || { echo 'setup: uv, which installs the rest'; { \
	  "$$(command -v '$(PYTHON)' || echo python3)" -m venv .cache/uv && \
	  .cache/uv/bin/python -m pip install 'uv>=0.8'; } $(logged); }
	@[ -x $(PY) ] || { echo 'setup: an environment in .venv'; $(UV) venv --clear --seed \
	  --python $(if $(PYTHON),'$(PYTHON)','>=3.11.4,<3.14') .venv $(logged); }
	@echo 'setup: torch'; $(UV_INSTALL) torch==2.13.0 $(if $(TORCH),--torch-backend '$(TORCH)') \
	  $(if $(filter-out auto,$(TORCH)),--reinstall-package torch) $(logged)
	@echo 'setup: labkit and all other packages'; $(UV_INSTALL) -e \
	  '.[dask,test$(addprefix $(comma),$(EXTRAS))]' $(logged)
	@echo 'setup: the kernel "LSTM course lab"'; $(PY) -c \
	  'from labkit.lab.notebooks import install_kernel; install_kernel()' $(logged)
	@$(PY) -c 'import labkit, torch; print("setup: torch", torch.__version__)'
	@$(state) >$(STAMP); echo "setup: done in $$(($$(date +%s) - $$(cat .cache/started))) s"

lab: setup  ## Open the chapters in JupyterLab
	@$(LABKIT) lab

reproduce: setup  ## Run the chapters whose results are missing or stale, report, verify
	@$(MAKE) --no-print-directory --keep-going run report verify

run: setup  ## Run chapters only
	@$(LABKIT) run $(CHAPTERS) $(run_options)

report: setup  ## Write results/REPORT.md from the records
	@$(LABKIT) report

verify: setup  ## Check that results are what was written, and name what is stale
	@$(LABKIT) verify $(if $(call on,STRICT),--strict)

data: setup  ## Download the reviews (84 MB), word vectors (862 MB) and MiniLM (91 MB); verify them
	@$(LABKIT) data

handout: setup  ## Make the students' notebooks and the teacher's course (nbgrader) in handout/
	@$(UV_INSTALL) -e '.[teach]' $(logged)
	@$(LABKIT) handout

notebooks: setup  ## Run the quick chapters in place, so that their stored outputs are fresh
	@$(LABKIT) notebooks $(CHAPTERS)

site: setup  ## Build the site from the stored outputs and records, in build/site/html
	@$(PY) -c 'import latex2mathml, myst_nb, sphinx_book_theme' 2>/dev/null || \
	  $(MAKE) --no-print-directory install EXTRAS='$(sort $(EXTRAS) site)'
	@$(PY) site/build.py && echo 'Open build/site/html/index.html'

translations: setup  ## Renew the Chinese catalogues in site/locale, and name what they lack
	@$(PY) -c 'import myst_nb' 2>/dev/null || \
	  $(MAKE) --no-print-directory install EXTRAS='$(sort $(EXTRAS) site)'
	@$(PY) site/build.py translations

test: setup lint  ## Check the code, run the tests and every chapter's quick profile
	@$(PY) -m pytest tests notebooks -n $(or $(WORKERS),2) --dist loadscope --cov=labkit --nbval-lax \
	  --nbval-current-env --nbval-cell-timeout 120 --nbval-sanitize-with tests/nbval_sanitize.cfg

lint: setup  ## Check style and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

gpu-check: setup  ## Check and time the roads of the lab on a GPU, in a few minutes
	@$(PY) benchmarks/gpu_check.py

lock: setup  ## Renew requirements.lock after a change of pyproject.toml
	@$(UV) pip compile -q --universal --python-version 3.11.4 --all-extras --generate-hashes \
	  --annotation-style line --custom-compile-command 'make lock' pyproject.toml -o requirements.lock

clean:  ## Remove quick results, finished trainings and what tools left; keeps the environment
	@rm -rf data/cache results/quick results/.[!.]* results/*/.[!.]* .coverage .coverage.* .hypothesis .pytest_cache .ruff_cache build htmlcov

"""The steps of `gpu_check`, each in a process of its own; in the rehearsal they are miniatures."""

from __future__ import annotations

import contextlib
import itertools
import json
import linecache
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from labkit.cells import graphs, layers
from labkit.lab import machine, store
from labkit.memory import data as digits
from labkit.memory.model import Ensemble, ModelSpec, SequenceClassifier
from labkit.memory.training import DigitSumTraining

SMALL = "--rehearse" in sys.argv
DEVICE = "cpu" if SMALL else "cuda"
MPS = "nvidia-cuda-mps-control"
CELLS, BATCH, ROWS = ("lstm", "srn"), 8, 20 if SMALL else 300  # of chapter 02
EPOCH = -(-ROWS // BATCH)  # steps; the last batch is smaller
noted: list[dict[str, Any]] = []


def note(
    what: str, value: Any, *, most: float = math.inf, least: float = -math.inf, must: bool = False
) -> None:
    """Note what was measured. Beyond its limit an aim is missed; what it `must` keep fails."""
    number = isinstance(value, float)
    limit = f"≤ {most:g}" if most < math.inf else f"≥ {least:g}" if least > -math.inf else ""
    aim = SMALL and not must  # which a miniature need not reach; what is not a number never is met
    met = not number or aim or least <= value <= most
    value = value if not number or math.isfinite(value) else str(value)
    noted.append({"what": what, "value": value, "limit": limit, "met": met, "must": must})


def pick(small: Any, full: Any) -> Any:
    """What the rehearsal takes, or the check."""
    return small if SMALL else full


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """The seconds of a block, the device's work included, as a list of one."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    seconds, began = [], time.perf_counter()
    yield seconds
    wait()
    seconds.append(time.perf_counter() - began)


def facts() -> None:
    """What everything was measured on."""
    found = machine.provenance()
    for name in ("device_name", "cuda", "cpu", "platform"):
        note(name, found[name] or "none")
    versions = found["versions"] | {
        name: __import__(name).__version__ for name in ("triton", "jax") if find_spec(name)
    }
    note("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))
    note("cores", joblib.cpu_count())
    note("bytes of the GPU, free and all", [] if SMALL else list(torch.cuda.mem_get_info()))


# chapters 02 and 03


def replicas(cell: str, T: int, R: int, device: str, trained: bool = True) -> tuple[Any, ...]:
    """An ensemble, its optimiser, the training data, and the rows of each step of an epoch."""
    ensemble = Ensemble(ModelSpec(cell=cell, train_embedding=trained), range(R), device=device)
    options = {"lr": 1e-3, "fused": True, "capturable": device == "cuda"}
    optimiser = torch.optim.Adam([ensemble.trainable], **options)
    rows = torch.full((1, EPOCH, BATCH), -1)  # -1 is no row
    rows.view(-1)[:ROWS] = torch.arange(ROWS)
    data = digits.Split(*(t[:ROWS].to(device) for t in digits.load_published(T)["train"]))
    return ensemble, optimiser, data, rows.to(device)


def trainer(way: str, parts: tuple[Any, ...], precision: str = "tf32x3") -> Callable[[int], None]:
    """A function that trains for some epochs, by the "kernel", by "graphs" or step by step."""
    ensemble, optimiser, (X, y), rows = parts

    def by_kernel(epochs: int) -> None:
        from labkit.memory import kernel

        for part in rows.repeat(1, epochs, 1).split(100, dim=1):  # steps of a launch
            kernel.train(ensemble, optimiser, X, y, part, precision)

    def step(X: Tensor, y: Tensor) -> tuple[Tensor]:
        losses = ensemble.loss_and_gradients(X, y)
        optimiser.step()
        return (losses,)

    call = graphs.captured(step, X.device) if way == "graphs" else step

    def by_steps(epochs: int) -> None:
        for _ in range(epochs):
            for batch in zip(X.split(BATCH), y.split(BATCH), strict=True):
                call(*batch)

    return by_kernel if way == "kernel" else by_steps


def parity(way: str, cell: str, precision: str = "tf32x3") -> None:
    """A way of training against the CPU's steps: every parameter after 228 of them."""
    T, R, epochs = pick((5, 2, 1), (20, 8, 6))
    for trained in (True, False):
        states = []
        for name, device in (("steps", "cpu"), (way, DEVICE)):
            parts = replicas(cell, T, R, device, trained)
            trainer(name, parts, precision)(epochs)
            states.append({n: value.cpu() for n, value in parts[0].state_dict().items()})
        gaps = {n: float((states[1][n] - value).abs().max()) for n, value in states[0].items()}
        worst = max(gaps, key=gaps.get)
        place = f"in {worst} {tuple(states[0][worst].shape)}"
        what = f"{cell}, embedding {'trained' if trained else 'frozen'}, {EPOCH * epochs} steps"
        note(f"{what}: largest difference, {place}", gaps[worst], most=1e-5, must=True)


def training(protocol: str, cell: str, T: int, **fields: Any) -> DigitSumTraining:
    """A training of chapter 02; `fields` may hold a start and an embedding, "zero/frozen"."""
    init, embedding = fields.pop("setting", "xavier/trained").split("/")
    spec = ModelSpec(cell=cell, init=init, train_embedding=embedding == "trained")
    looks = {"evaluate_every": 500 if protocol == "sound" else 100}
    fields = {"seeds": [0, 3], "steps": pick(4, 19_000), "device": DEVICE, **looks} | fields
    return DigitSumTraining(protocol=protocol, model=spec, length=T, **fields)


def protocols() -> None:
    """Chapter 02's trainings, as its notebook asks for them, against the CPU's: their losses."""
    for protocol, cell in itertools.product(("published", "shuffled", "sound"), CELLS):
        task = training(protocol, cell, 10, steps=pick(4, 200))
        a, b = task.train(), replace(task, device="cpu").train()
        for name in ("first_loss", "train_loss", "dev_loss"):
            gap = float(np.abs(a[name] - b[name]).max())
            what = f"{protocol}, {cell}: largest difference of {name} {b[name].shape}"
            note(what, gap, most=1e-4, must=True)


def accuracies() -> None:
    """Test accuracies of 40 seeds after whole trainings, on the GPU and on the CPU."""
    from scipy import stats

    seeds, cores = list(range(pick(4, 40))), joblib.cpu_count()
    for cell, T, setting in (("lstm", 25, "zero/trained"), ("srn", 20, "xavier/trained")):
        task, what = training("published", cell, T, setting=setting, seeds=seeds), f"{cell}, T={T}"
        with timed() as seconds:
            on_gpu = task.train()["test_accuracy"]
        note(f"{what}, {len(seeds)} seeds: s on the GPU", *seconds)
        groups = [seeds[k::cores] for k in range(min(cores, len(seeds)))]
        parts = [replace(task, seeds=group, device="cpu") for group in groups]
        with timed() as seconds:
            on_cpu = store.train(parts, name=what, workers=cores)
        note(f"{what}, {len(seeds)} seeds: s on the CPU's {cores} cores", *seconds)
        on_cpu = np.concatenate([arrays["test_accuracy"] for arrays in on_cpu])
        for place, values in (("GPU", on_gpu), ("CPU", on_cpu)):
            numbers = f"{values.mean():.3f}, sd {values.std(ddof=1):.3f}"
            note(f"{what}: mean test accuracy, {place}", numbers)
        for test in (stats.ks_2samp, stats.mannwhitneyu):
            p = float(test(on_gpu, on_cpu).pvalue)
            note(f"{what}: p of {test.__name__}", p, least=0.01, must=not SMALL)


def milliseconds(way: str, cell: str, T: int, R: int) -> float:
    """Of a step of R replicas; what is compiled or captured was so before."""
    run, epochs = trainer(way, replicas(cell, T, R, DEVICE)), pick(1, 3 if way == "graphs" else 12)
    run(pick(1, 2))
    with timed() as seconds:
        run(epochs)
    return 1e3 * seconds[0] / epochs / EPOCH


def speeds() -> None:
    """A step of the digit-sum model: by the kernel, by captured graphs, and with nn.LSTM."""
    limits = {("lstm", 35, 132): 5.0, ("lstm", 35, 1_200): 22.0}  # seconds of a whole training
    sizes = [(35, R) for R in (132, 264, 528, 1_200)] + [(20, 1_200), (10, 132), (10, 1_200)]
    for cell, (T, R) in itertools.product(CELLS, pick([(5, 2)], sizes)):
        ms, most = milliseconds("kernel", cell, T, R), limits.get((cell, T, R), math.inf)
        note(f"kernel, {cell}, T={T}, {R} replicas: ms a step", ms)
        note(f"kernel, {cell}, T={T}, {R} replicas: s for 19,000 steps", 19 * ms, most=most)
    for cell, (T, R) in itertools.product(CELLS, pick([(5, 2)], [(10, 40), (35, 40), (35, 264)])):
        note(f"graphs, {cell}, T={T}, {R} replicas: ms a step", milliseconds("graphs", cell, T, R))

    model = SequenceClassifier(ModelSpec(cell="lstm"))
    model.recurrent = layers.to_torch(model.recurrent)
    model.to(DEVICE)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    X, y = (t[:BATCH].to(DEVICE) for t in digits.load_published(35)["train"])
    for count in pick((1, 1), (20, 200)):  # the second is noted
        with timed() as seconds:
            for _ in range(count):
                loss = nn.functional.cross_entropy(model(X), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    note("nn.LSTM, T=35, one model: ms a step", 1e3 * seconds[0] / count)


def peer() -> None:
    """The same training in JAX, jit(vmap(scan)) over the replicas, beside the kernel."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    jax.config.update("jax_default_matmul_precision", "float32")
    T, counts, tree = pick(5, 35), pick((2,), (40, 264, 1_200)), jax.tree_util.tree_map

    def loss_of(p: dict, X: Any, y: Any) -> Any:
        Z = (p["embedding"] @ p["W"] + p["b"])[X]  # (B, T, 4H)

        def read(state: tuple, z: Any) -> tuple:
            h, c = state
            o, i, f, g = jnp.split(z + h @ p["U"], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zero = jnp.zeros((len(X), len(p["U"])))
        (h, _), _ = lax.scan(read, (zero, zero), Z.transpose(1, 0, 2))
        log_p = jax.nn.log_softmax(h @ p["head_weight"] + p["head_bias"])
        return -jnp.take_along_axis(log_p, y[:, None], 1).mean()

    def step(state: tuple, batch: tuple) -> tuple:
        p, m, v, n = state
        loss, d_p = jax.value_and_grad(loss_of)(p, *batch)
        n, m = n + 1, tree(lambda a, b: 0.9 * a + 0.1 * b, m, d_p)
        v = tree(lambda a, b: 0.999 * a + 0.001 * b * b, v, d_p)
        root, size = jnp.sqrt(1 - 0.999**n), 1e-3 / (1 - 0.9**n)
        p = tree(lambda a, b, c: a - size * b / (jnp.sqrt(c) / root + 1e-8), p, m, v)
        return (p, m, v, n), loss

    train = jax.jit(jax.vmap(lambda state, X, y: lax.scan(step, state, (X, y)), (0, None, None)))
    for R in counts:
        ensemble, _, data, rows = replicas("lstm", T, R, "cpu")
        X, y = (t.numpy()[rows[0, :-1].numpy()] for t in data)  # (37 steps, B, ...)
        p = {name: jnp.asarray(v.numpy()) for name, v in ensemble.parameters.items()}
        work = ((p, tree(jnp.zeros_like, p), tree(jnp.zeros_like, p), jnp.zeros(R)), X, y)
        first = float(jax.block_until_ready(train(*work))[1][0, 0])
        ours = float(ensemble.loss_and_gradients(data.X[:BATCH], data.y[:BATCH])[0])
        gap = abs(first - ours)
        note(f"JAX, {R} replicas: difference of the first loss", gap, most=1e-5, must=True)
        began = time.perf_counter()
        jax.block_until_ready([train(*work) for _ in range(pick(1, 3))])
        ms = 1e3 * (time.perf_counter() - began) / len(X) / pick(1, 3)
        note(f"JAX, lstm, T={T}, {R} replicas: ms a step", ms)
        ratio, least = ms / milliseconds("kernel", "lstm", T, R), 3.0 if R > 200 else -math.inf
        note(f"JAX / kernel, lstm, T={T}, {R} replicas", ratio, least=least)


def study() -> None:
    """All trainings of chapter 02 in the profile full, compiling included."""
    lengths, settings = pick([5], range(35, 5, -5)), ["zero/trained", "zero/frozen"]
    cases = [*itertools.product(("published",), lengths, settings)]
    for protocol in ("published", "shuffled", "sound"):
        cases += [(protocol, T, "xavier/trained") for T in lengths]
    seeds, road = list(range(pick(2, 40))), machine.find_road("replicas", DEVICE)
    share = 1 if road.name == "kernel" else 10  # of the steps, for the time that there is
    tasks = [
        training(protocol, cell, T, setting=setting, seeds=seeds, steps=pick(40, 19_000) // share)
        for (protocol, T, setting), cell in itertools.product(cases, CELLS)
    ]
    note("road", str(road))
    with timed() as seconds:
        store.train(tasks, name="chapter 02")
    what = f"{len(tasks)} stacks of {len(seeds)} replicas, {tasks[0].steps:,} steps, times {share}"
    note(f"{what}: s", share * seconds[0], most=60.0)


# the other chapters


def sine() -> None:
    """Chapter 06's training by captured graphs: against the CPU's, and its speed."""
    from labkit.sine.study import FORECASTERS, SineTraining

    def train(**fields: Any) -> dict[str, Any]:
        return SineTraining(**fields).train(lambda done, total: None)

    for name, way in {"nine": {}, "every/mixed": FORECASTERS["every/mixed"]}.items():
        few = {**way, "seeds": [0, 3], "batches": pick(4, 60), "batch_size": 20}
        a, b = (train(**few, device=device) for device in (DEVICE, "cpu"))
        gap = max(float(np.abs(a[key] - b[key]).max()) for key in b)
        what = f"{name}, {few['batches']} batches: largest difference"
        note(what, gap, most=1e-4, must=True)
        many = {**way, "seeds": list(range(pick(2, 40))), "batches": pick(4, 200)}
        with timed() as seconds:
            train(**many, device=DEVICE)
        note(f"{name}: ms a batch, capturing included", 1e3 * seconds[0] / many["batches"])


@contextlib.contextmanager
def processes(mps: bool) -> Iterator[str]:
    """How processes share the GPU: with NVIDIA's MPS they compute at once, else in turns."""
    if mps:
        folder = tempfile.mkdtemp()
        os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        subprocess.run([MPS, "-d"], check=True, timeout=20)
    try:
        yield "with MPS" if mps else "in turns"
    finally:
        if mps:
            subprocess.run([MPS], input="quit\n", text=True, timeout=20)


def rates(what: str, task: Any, reviews: int, counts: Sequence[int], way: str) -> None:
    """Reviews a second of several trainings at once, after a short round that starts processes."""
    epochs, short = task.training.epochs, replace(task.training, epochs=1)
    for k in counts:
        for first, training in ((9_000, short), (100 * k, task.training)):
            tasks = [replace(task, training=training, seed=first + n) for n in range(k)]
            results = store.train(tasks, name=what, workers=k)
        slowest = max(float(arrays["seconds"].sum()) for arrays in results)
        note(f"{what}, {k} at once, {way}: reviews/s", k * reviews * epochs / slowest)


def reviews(mps: bool = False) -> None:
    """Chapter 04: a layer by itself and two directions beside words, several trainings at once."""
    from labkit.film import studies
    from labkit.film.training import FilmTraining, TrainSpec

    name, corpus = corpus_here()
    count = {"imdb": 4_000}.get(name, pick(128, 1_600))
    base = FilmTraining(
        corpus=name, digest=corpus.digest, vocab_size=len(corpus.words), seed=0,
        training=TrainSpec(epochs=pick(1, 8)), num_train=count, device=DEVICE,
    )  # fmt: skip
    with processes(mps) as way:
        for case in ("handwritten/mean", "bilstm_beside_words"):
            setting = (studies.CORE | studies.BEST)[case]
            (tasks,) = studies.study("04", {case: setting}, base, [0]).values()
            rates(f"04, {case}", tasks[0], count, pick((1, 2), (8,) if mps else (1, 8)), way)


def corpus_here() -> tuple[str, Any]:
    """The real reviews where the mirror has them, else generated ones."""
    from labkit.film import corpus

    real = Path(os.environ.get("LABKIT_MIRROR", ""), "aclImdb_v1.tar.gz").exists()
    name = "imdb" if real and not SMALL else "generated"
    note("corpus", name)
    return name, corpus.load(name, pick(300, 20_001))


def encoder(mps: bool = False) -> None:
    """Chapter 05: BERT-base by its size, with random weights, several trainings at once."""
    from labkit.bert import model as bert
    from labkit.bert.training import FineTuning, PiecesTraining, Reading, in_pieces

    size = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    size = dict(zip(size, pick((16, 32, 1, 2), (768, 3_072, 12, 12)), strict=True))
    folder, (name, _) = bert.untaught(**size, vocab_size=30_522), corpus_here()
    digest = in_pieces(name, bert.find(str(folder))).digest
    products = {"precision": pick("float32", "bfloat16")}
    numbers = {"num_train": pick(40, 400), "num_dev": pick(20, 200), "max_len": pick(32, 257)}
    task = PiecesTraining(
        reading=Reading(corpus=name, model=str(folder), digest=digest, **numbers),
        model=bert.ClassifierSpec(pooling="mean"),
        training=FineTuning(epochs=pick(1, 4), lr=2e-5, head_lr=1e-4, batch_size=16, **products),
        seed=0,
        device=DEVICE,
    )
    with processes(mps) as way:
        rates("05", task, numbers["num_train"], pick((1, 2), (4,) if mps else (1, 4)), way)


MINIATURES = {  # of the chapters, for the rehearsal
    "01": ["parity_shapes=2", "gradient_seeds=2"],
    "02": ["num_seeds=2", "steps=200", "explosion_seeds=2", "explosion_epochs=4"],
    "03": ["steps=200"],
    "04": ["epochs=1", "small_epochs=1", "sgd_epochs=1", "speed_rounds=1"],
    "05": ["source_epochs=[1, 1]", "tuned_epochs=[1, 1]", "recurrent_epochs=[1, 1]"],
    "06": ["batches=100", "scan_batches=10", "num_seeds=2"],
}


def chapter(number: str) -> None:
    """A chapter's notebook, cell by cell, on its road, with the settings of the profile quick."""
    for name in ("IPython", "IPython.display", "ipywidgets", "nbformat"):  # that only show things
        if not find_spec(name.partition(".")[0]):
            sys.modules[name] = MagicMock()
    from labkit.lab.settings import resolve

    (path,) = machine.NOTEBOOKS.glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    given = ["device_name=auto", *pick(MINIATURES[number], ())]
    values, space = resolve(path.stem, cells, "quick", given), {"__name__": "__main__"}
    for index, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            source, place = "".join(cell["source"]), f"{path.name}, cell {index}"
            linecache.cache[place] = (len(source), None, source.splitlines(True), place)
            exec(compile(source, place, "exec"), space)
            if "parameters" in cell["metadata"].get("tags", []):
                space |= values
    note("road", str(machine.provenance()["road"]))


def run(name: str, out: str) -> None:
    """Carry out a step; what it noted goes into a file, whatever becomes of it."""
    machine.prepare(device=DEVICE)
    torch.use_deterministic_algorithms(False)  # as the store does where graphs are captured
    name, *arguments = name.split("-")
    try:
        globals()[name](*arguments)
        if broken := [row for row in noted if row["must"] and not row["met"]]:
            raise AssertionError(
                "; ".join("{what}: {value}, not {limit}".format(**r) for r in broken)
            )
    finally:
        Path(out).write_text(json.dumps(noted))


if __name__ == "__main__":
    run(*sys.argv[1:3])

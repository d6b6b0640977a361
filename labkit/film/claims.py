"""The claims that the sources make in words, each with the paired test over seeds that decides it.

`data/film_studies.toml` lists them: the measure, the settings whose difference is taken, and what
would change the verdict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from labkit.cells import fast
from labkit.film import corpus as reviews
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewSpec
from labkit.film.studies import TABLES, Runs, measures_of
from labkit.film.training import FilmTraining
from labkit.lab.store import Arrays
from labkit.measure.claims import Claim, Condition, judge
from labkit.measure.statistics import Measure, holm, paired_difference, summarise

CLAIMS: dict[str, dict[str, Any]] = {claim["id"]: claim for claim in TABLES["claims"]}


def _rise(loss: np.ndarray) -> np.ndarray:
    """How far each seed's loss (S, K) ends above that of its best epoch, (S,).

    Which epoch is best the other seeds say: the lowest of a seed's own values lies below its last
    one by luck alone.
    """
    others = (loss.sum(0) - loss) / max(1, len(loss) - 1)
    return loss[:, -1] - loss[np.arange(len(loss)), others.argmin(1)]


MEASURES = {  # of arrays (S, K), S seeds and K epochs, one value a seed
    "train_accuracy": lambda a: a["train_accuracy"][:, -1],
    "dev_accuracy": lambda a: a["dev_accuracy"][:, -1],
    "first_dev_accuracy": lambda a: a["dev_accuracy"][:, 0],
    "mean_dev_accuracy": lambda a: a["dev_accuracy"].mean(1),
    "gap": lambda a: a["train_accuracy"][:, -1] - a["dev_accuracy"][:, -1],
    "rise": lambda a: _rise(a["dev_loss"]),
    "fall": lambda a: (np.maximum.accumulate(a["train_accuracy"], 1) - a["train_accuracy"]).max(1),
    "log_seconds": lambda a: np.log(a["seconds"].sum(1)),
}


def evidence(runs: Runs, corpus: Corpus) -> dict[str, Measure]:
    """The measures "claim/<id>/<label>" of every claim whose settings are all among the runs.

    A pair of settings is compared seed by seed, over as many epochs as both have; several
    comparisons for one claim are read together (Holm).
    """
    measures: dict[str, Measure] = {}
    for name, claim in CLAIMS.items():
        pairs, found = claim.get("pairs", {}), {}
        if not {setting for pair in pairs.values() for setting in pair} <= {*runs}:
            continue
        for label, pair in pairs.items():
            seeds = [*runs[pair[0]]]
            epochs = min(len(runs[s][seeds[0]]["dev_loss"]) for s in pair)
            one, *other = (_values(claim["measure"], runs[s], corpus, epochs) for s in pair)
            if other:
                found[label] = paired_difference(one, other[0], seeds, student=True)
            else:
                found[label] = summarise(one, seeds=seeds, student=True)
        if len(found) > 1 and len(seeds) > 1:
            found = holm(found, claim.get("limit", 0.0))
        measures |= {f"claim/{name}/{label}": measure for label, measure in found.items()}
    return measures


def _values(
    measure: str, runs: Mapping[int, Arrays], corpus: Corpus, epochs: int
) -> Sequence[float]:
    """A measure of a setting's trainings, one value a seed, of their first `epochs`."""
    if measure in MEASURES:
        curves = ("train_accuracy", "dev_accuracy", "dev_loss", "seconds")
        stacked = {c: np.stack([a[c][:epochs] for a in runs.values()]) for c in curves}
        return MEASURES[measure]({c: v.astype(float) for c, v in stacked.items()})
    tested = measures_of({"of": runs}, corpus, curves=())
    return tested[f"of/{measure}"]["raw"]


def speed(rounds: int) -> dict[str, Measure]:
    """How many times as long chapter 01's LSTM takes as one with its gates in one product, and as
    torch's, for a training step of 64 sequences of 200 steps, 64 inputs and 64 units."""
    seconds = fast.time_layers((64, 200, 64, 64), rounds=rounds, warmup=1)
    return {
        f"speed/eight_products_over_{name}": summarise(
            np.divide(seconds["naive"], seconds[rung]).tolist(), timing=True, student=True
        )
        for name, rung in (("one", "fused"), ("torch", "torch"))
    }


def reach(corpus: Corpus, base: FilmTraining, seeds: Sequence[int]) -> dict[str, Measure]:
    """How the loss depends on the first ten words of a review, against the last ten, untrained.

    "a/gradient/last" and "a/gradient/mean" hold the logarithm to base 10 of the ratio of its
    gradients by the words' vectors, for either vector of the handwritten LSTM, at half of the dev
    reviews' length; "a/gradient/mean_minus_last" the difference.
    """
    dev = corpus.split()["dev"]
    words = int(corpus.length[dev].median())
    index = dev[corpus.length[dev] >= words][:64]
    X, length = reviews.pad(corpus, index, words)
    ratios = defaultdict(list)
    for pooling, seed in product(("last", "mean"), seeds):
        spec = ReviewSpec(cell="handwritten", pooling=pooling, head_size=64)
        model = replace(base, model=spec, seed=seed).make_model(corpus).double()
        vectors = model.embedding(X).detach().requires_grad_()  # (B, T, E)
        model.embedding = torch.nn.Identity()
        F.cross_entropy(model(vectors, length), corpus.label[index]).backward()
        norm = vectors.grad.norm(dim=2).mean(0)  # (T,)
        ratios[pooling].append(float((norm[:10].mean() / norm[-10:].mean()).log10()))
    names = {f"a/gradient/{p}": summarise(v, seeds=seeds, student=True) for p, v in ratios.items()}
    gain = paired_difference(ratios["mean"], ratios["last"], seeds, student=True)
    return names | {"a/gradient/mean_minus_last": gain}


def judged(measures: Mapping[str, Measure], published: Mapping[str, Any]) -> list[Claim]:
    """The verdict on every claim whose evidence is among the measures."""
    verdicts = []
    for name, claim in CLAIMS.items():
        names = claim.get("names") or {label: f"claim/{name}/{label}" for label in claim["pairs"]}
        if {*names.values()} <= {*measures}:
            side, limit = claim.get("side", "above"), claim.get("limit", 0.0)
            text = claim.get("text") or published[claim["of"]]["claims"][name.split("/")[0]]
            conditions = [
                Condition(label, n, measures[n], side, limit) for label, n in names.items()
            ]
            verdict = judge(name, text, claim["needs"], conditions)
            reason = f"{verdict.reason}. What would change it: {claim['change']}"
            verdicts.append(replace(verdict, reason=reason))
    return verdicts

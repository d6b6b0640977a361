"""The two studies of film reviews: their settings, what is measured, the published figures beside.

`data/film_studies.toml` holds their settings, and what was inferred where the sources are silent.
"""

from __future__ import annotations

import itertools
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from labkit.film import evidence
from labkit.film.corpus import KINDS, Corpus, numericalize, tokenize
from labkit.film.evidence import EvidenceTraining
from labkit.film.model import ReviewClassifier, ReviewSpec
from labkit.film.training import FilmTraining, accuracy, held_out, positive
from labkit.lab import machine, store
from labkit.lab.store import Arrays
from labkit.measure.audit import correct
from labkit.measure.claims import MISSING, Row, number_row
from labkit.measure.statistics import Measure, number, sign_test, summarise

Setting = dict[str, Any]  # what changes of `ReviewSpec` and `TrainSpec`
Study = dict[str, list[FilmTraining]]  # by the name "<study>/<setting>", one for each seed
Runs = dict[str, dict[int, Arrays]]  # by the same name, then by seed

TABLES = tomllib.loads((machine.DATA / "film_studies.toml").read_text("utf-8"))


def _settings(table: str) -> dict[str, Setting]:
    """The settings of a table of the file by name, each with all that it changes."""
    settings = dict(TABLES[table])
    common = settings.pop("common", {})
    if like := settings.pop("like", None):
        common = _settings(like[0])[like[1]] | common
    return {name: common | changes for name, changes in settings.items()}


CORE, VARIATIONS, BEST = _settings("core"), _settings("variations"), _settings("best")
MISTAKES, SOUND_B, STACK = _settings("mistakes"), _settings("sound"), _settings("stack")
SOURCE_B, SOURCE_SGD = _settings("source"), _settings("source_sgd")
STUDY_B = {"mistake": MISTAKES, "source": SOURCE_B | SOURCE_SGD, "sound": SOUND_B, "stack": STACK}
NO_LAYER = "best/no_layer", "best/no_layer_with_vectors"
AVERAGED, RATING, BESIDE_WORDS = _settings("others").values()
STUDY_A = CORE | VARIATIONS
PUBLISHED_A: dict[str, str] = TABLES["published"]  # the table of data/published.toml by setting


def chosen(settings: Mapping[str, Setting], everything: bool) -> dict[str, Setting]:
    """All settings of a table, or a few of them."""
    return {name: s for name, s in settings.items() if everything or name in TABLES["few"]}


# trainings


def study(
    prefix: str,
    settings: Mapping[str, Setting],
    base: FilmTraining,
    seeds: Iterable[int],
    keep: Iterable[str] = (),
) -> Study:
    """A training for each setting and seed, by the name "<prefix>/<setting>".

    `base` holds unless a setting says otherwise; `keep` names the settings whose parameters are
    kept.
    """
    trainings, of_model = {}, {field.name for field in fields(ReviewSpec)}
    for name, changes in settings.items():
        model = {k: v for k, v in changes.items() if k in of_model}
        training = {k: v for k, v in changes.items() if k not in of_model}
        if "epochs" in training:  # of a report; a run may have fewer
            training["epochs"] = min(training["epochs"], base.training.epochs)
        of_setting = replace(base, model=replace(base.model, **model), keep=name in keep)
        of_setting = replace(of_setting, training=replace(base.training, **training))
        trainings[f"{prefix}/{name}"] = [replace(of_setting, seed=seed) for seed in seeds]
    return trainings


def train(trainings: Study, name: str) -> Runs:
    """Carry out the trainings that are not kept; the results by setting and seed."""
    # the longest first, so that no process is left with one of them at the end
    queue = sorted(itertools.chain(*trainings.values()), key=lambda t: t.cost, reverse=True)
    results = dict(zip(queue, store.train(queue, name=name), strict=True))
    return {name: {t.seed: results[t] for t in group} for name, group in trainings.items()}


# measures

CURVES = ("train_loss", "train_accuracy", "dev_loss", "dev_accuracy", "gradient_norm", "moved")


def held_out_probability(arrays: Arrays, corpus: Corpus) -> Tensor:
    """P(positive) of the held-out reviews, from a training that answered these or all."""
    test, p = corpus.split()["test"], torch.from_numpy(arrays["test_probability"])
    return p[torch.isin(test, held_out(corpus))] if len(p) == len(test) else p


def measures_of(
    runs: Runs, corpus: Corpus, epochs: Sequence[int] | None = None, curves: Sequence[str] = CURVES
) -> dict[str, Measure]:
    """A summary over the seeds of everything that a setting's trainings returned.

    "<setting>/held_out_accuracy", "test_accuracy" where all reviews were answered, "dev_accuracy"
    and "best_epoch" are of the checkpoint that dev chose; "seconds" is a training's; and for every
    epoch k, or those in `epochs`, "<setting>/train_loss/k" and the other `curves` recorded. Where
    ratings were answered, "exact" is the share of the right ones, "mean_distance" that of the
    expected rating from the true one.
    """
    measures: dict[str, Measure] = {}
    test, in_slice = corpus.split()["test"], held_out(corpus)
    y, rating = corpus.label[test], corpus.rating[test].numpy()
    for name, by_seed in runs.items():
        values = defaultdict(list)
        for arrays in by_seed.values():
            p = torch.from_numpy(arrays["test_probability"])
            if len(p) == len(y):
                values["test_accuracy"].append(accuracy(p, y))
            p = held_out_probability(arrays, corpus)
            values["held_out_accuracy"].append(accuracy(p, corpus.label[in_slice]))
            values["dev_accuracy"].append(arrays["dev_accuracy"].max())
            values["best_epoch"].append(arrays["best_epoch"])
            values["seconds"].append(arrays["seconds"].sum())
            if (classes := arrays.get("test_classes")) is not None:
                values["exact"].append((classes.argmax(1) + 1 == rating).mean())
                expected = classes @ np.arange(1, 11)
                values["mean_distance"].append(np.abs(expected - rating).mean())
            for curve in curves:
                for k, value in enumerate(arrays.get(curve, ()), start=1):
                    if epochs is None or k in epochs:
                        values[f"{curve}/{k}"].append(value)
        for quantity, raw in values.items():
            timing = {"unit": "s", "timing": True} if quantity == "seconds" else {}
            if len(raw) == len(by_seed):
                measures[f"{name}/{quantity}"] = summarise(
                    list(map(float, raw)), seeds=list(by_seed), student=True, **timing
                )
    return measures


def by_length(
    runs: Mapping[int, Arrays], corpus: Corpus, edges: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy on test reviews of `edges[k]` to `edges[k + 1]` - 1 words, for each seed, (S, K).

    Also the median length in each of these ranges, (K,); ranges without a review are left out.
    """
    test = corpus.split()["test"]
    length, y = corpus.length[test], corpus.label[test]
    ranges = [(length >= a) & (length < b) for a, b in itertools.pairwise(edges)]
    ranges = [inside for inside in ranges if inside.any()]
    p = [torch.from_numpy(arrays["test_probability"]) for arrays in runs.values()]
    shares = [[accuracy(q[inside], y[inside]) for inside in ranges] for q in p]
    return np.array([float(length[r].double().median()) for r in ranges]), np.array(shares)


# linear models, and what a trained network reads

_WORDS = {"tokenizer": list, "token_pattern": None, "lowercase": False, "dtype": np.float32}
VECTORIZERS = {  # of lists of words; a word or pair counts that stands in two training reviews
    "binary": CountVectorizer(binary=True, min_df=2, **_WORDS),
    "tfidf_pairs": TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, **_WORDS),
}
STRENGTHS = (0.03, 0.3, 3.0, 30.0)  # C, the inverse of the L2 penalty's weight


def logistic_regression(
    corpus: Corpus, kind: str, *, max_len: int, strengths: Sequence[float] = STRENGTHS,
    **parts: Tensor,
) -> dict[str, Any]:  # fmt: skip
    """Fit the reviews `train` for every strength, choose by `dev` accuracy, score `test` once.

    `parts` are the indices of these three; the first `max_len` words of a review are read. Returns
    "C", "dev_accuracy", "test_accuracy", "num_features", and "test_probability" (n,) of "positive".
    """
    words = {n: [corpus.review(i)[:max_len] for i in part.tolist()] for n, part in parts.items()}
    y = {name: corpus.label[part].numpy() for name, part in parts.items()}
    vectorizer = clone(VECTORIZERS[kind])
    X = {"train": vectorizer.fit_transform(words["train"])}
    X |= {name: vectorizer.transform(words[name]) for name in ("dev", "test")}
    models = {C: LogisticRegression(C=C, solver="liblinear", random_state=0) for C in strengths}
    scores = {C: m.fit(X["train"], y["train"]).score(X["dev"], y["dev"]) for C, m in models.items()}
    best = max(scores, key=scores.get)
    p = torch.from_numpy(models[best].predict_proba(X["test"])[:, 1])
    return {
        "C": float(best),
        "dev_accuracy": float(scores[best]),
        "test_accuracy": accuracy(p, corpus.label[parts["test"]]),
        "num_features": X["train"].shape[1],
        "test_probability": p,
    }


def best_network(
    corpus: Corpus, base: EvidenceTraining, settings: Mapping[str, Setting], seeds: Sequence[int],
    others: Mapping[str, Tensor],
) -> dict[str, Any]:  # fmt: skip
    """Train all settings, and choose a recurrent one by its mean dev accuracy.

    `others` are the P(positive) of the test reviews of linear models by name. Returns
    "best/chosen"; "best/<setting>/<quantity>" as in `measures_of`, and "best/model/<quantity>" of
    the chosen one; and, with the first seed, "best/only_ours/<name>", "best/only_theirs/<name>" and
    "best/sign_test_p/<name>" for each other and for the settings without a recurrent layer.
    """
    evidence.kept(corpus)  # before the processes need it
    runs = train(study("best", settings, base, seeds), "best network")
    measures = measures_of(runs, corpus, epochs=[])
    dev = {name: measures[f"{name}/dev_accuracy"]["mean"] for name in runs.keys() - {*NO_LAYER}}
    chosen = max(dev, key=dev.get)
    measures |= measures_of({"best/model": runs[chosen]}, corpus, epochs=[])
    measures["best/chosen"] = chosen.split("/")[1]
    y = corpus.label[corpus.split()["test"]].bool()
    compared = [chosen, *(name for name in NO_LAYER if name in runs)]
    p = {n: torch.from_numpy(runs[n][seeds[0]]["test_probability"]) for n in compared}
    right = {n: (q >= 0.5) == y for n, q in (others | p).items()}
    ours = right.pop(chosen)
    for name, theirs in right.items():
        counts = [int((one & ~other).sum()) for one, other in ((ours, theirs), (theirs, ours))]
        name = name.removeprefix("best/")
        measures[f"best/only_ours/{name}"], measures[f"best/only_theirs/{name}"] = counts
        measures[f"best/sign_test_p/{name}"] = sign_test(*counts)
    return measures


# why dev is easier than test: reviews of one film stand side by side, at most 30 of them

DISTANCES = (1, 3, 10, 20, 29, 40, 100, 1_000)  # of two reviews' numbers
FOLDS = 5


def neighbours(corpus: Corpus, rarest: int = 30) -> dict[str, float]:
    """How many rare words two reviews share, by folder and by the distance of their numbers.

    A word is rare that at most `rarest` reviews of the corpus hold: names, mostly. The measures
    "neighbours/<part>/<label>/<distance>" are means over all such pairs of a folder.
    """
    review = np.repeat(np.arange(len(corpus.label)), corpus.length.numpy())
    shape, ones = (len(corpus.label), len(corpus.words)), np.ones(len(review), np.float32)
    holds = sparse.csr_array((ones, (review, corpus.tokens.numpy())), shape) > 0
    rare = holds[:, np.flatnonzero(holds.sum(0) <= rarest)].astype(np.float32)
    measures = {}
    for is_test, label in itertools.product((False, True), (0, 1)):
        index = ((corpus.is_test == is_test) & (corpus.label == label)).nonzero().flatten()
        folder = rare[index[corpus.number[index].argsort()].numpy()]
        for distance in filter(lambda d: d < len(index), DISTANCES):
            shared = folder[:-distance].multiply(folder[distance:]).sum(1).mean()
            name = f"{'test' if is_test else 'train'}/{KINDS[label]}"
            measures[f"neighbours/{name}/{distance}"] = float(shared)
    return measures


def dev_by_split(corpus: Corpus, strength: float, max_len: int) -> dict[str, Measure]:
    """The dev accuracy of the linear model of words and pairs, over five ways to split off a fifth.

    "split/random": drawn; "split/blocks": a fifth of either label's numbers in a row, so that few
    films stand on both sides. That is pessimistic: the blocks of the two labels hold different
    films, so the name of one may stand in the training reviews with the other label.
    """
    index = (~corpus.is_test).nonzero().flatten()
    index = index[(corpus.label[index] * 10**6 + corpus.number[index]).argsort()]
    vectorizer, y = clone(VECTORIZERS["tfidf_pairs"]), corpus.label[index].numpy()
    X = vectorizer.fit_transform([corpus.review(i)[:max_len] for i in index.tolist()])
    place = np.concatenate([np.linspace(0, 1, n, endpoint=False) for n in np.bincount(y)])
    folds = {"blocks": (FOLDS * place).astype(int)}
    folds["random"] = np.random.default_rng(0).permutation(len(y)) % FOLDS
    model, measures = LogisticRegression(C=strength, solver="liblinear", random_state=0), {}
    for name, fold in folds.items():
        scores = []
        for k in range(FOLDS):
            model.fit(X[fold != k], y[fold != k])
            scores.append(model.score(X[fold == k], y[fold == k]))
        measures[f"split/{name}"] = summarise(scores, student=True)
    return measures


@torch.no_grad()
def predict(model: ReviewClassifier, corpus: Corpus, text: str) -> tuple[list[str], Tensor]:
    """The words of a typed text as the model sees them, and P(positive) after each, (T,).

    After each word the model is asked as if the text ended there.
    """
    words = tokenize(text)
    if not words:
        raise ValueError(f"there is no word in {text!r}; type a sentence")
    ids = numericalize(words, {word: number for number, word in enumerate(corpus.words)})
    X = torch.tensor(ids).expand(len(ids), -1)  # (T, T); what stands behind a length is not read
    p = positive(model(X, torch.arange(1, len(ids) + 1)).softmax(1))
    return [corpus.words[i] for i in ids], p


# published figures

PRINTED = (  # a published curve, our measure of it, and whether more of it is better
    ("test_accuracy", "dev_accuracy", True),  # its test reviews were split off the training files
    ("train_accuracy", "train_accuracy", None),
    ("test_loss", "dev_loss", False),
    ("train_loss", "train_loss", None),
)
LEARNED = 0.6  # training accuracy; one half is chance
LEFT_OUT = "this profile leaves it out; `make reproduce CHAPTERS=04 PROFILE=full` trains it"


def about(published: Mapping[str, Any]) -> str:
    """What the published figures were measured on, and what ours beside them are."""
    return " ".join(TABLES["about"].split()).format(**published, LEARNED=LEARNED)


def printed(homework: Mapping[str, Any], table: str, curve: str) -> list[tuple[str, float]]:
    """A published curve of study A, epoch by epoch: as printed, and what it says.

    Accuracies are corrected: the program divided by `n_counted` reviews, and there were `n_true`.
    """
    values = homework[table].get(curve, ())
    counted = homework[table].get("counted", homework["counted"]).get(curve)
    if not counted:
        return [(str(value), value) for value in values]
    of = counted["n_counted"], counted["n_true"]
    texts = [f"{value:.{counted['digits']}f}" for value in values]
    return [(text, correct(text, *of)) for text in texts]


def rows(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """Heading -> rows: the published figures of the studies and the peers, ours beside them.

    A setting has one row. Of a published curve it judges the last epoch, or the last that ours
    reaches, and tells where the two curves lie furthest apart; figures show the rest.

    What a run with these settings does not train has the verdict "no result yet"; KeyError for any
    other measure that is missing.
    """
    a, peers, assumed = published["imdb"], published["peers"], TABLES["assumed"]
    tables: dict[str, list[Row]] = defaultdict(list)

    def add(heading: str, *figure: Any) -> None:
        tables[heading].append(_row(measures, settings, *figure))

    for name, table in PUBLISHED_A.items():
        note = f" ({assumed[name]})" if name in assumed else ""
        curves = {ours: printed(a, table, theirs) for theirs, ours, _ in PRINTED}
        theirs, ours, better = next(names for names in PRINTED if curves[names[1]])
        (text, value), last = curves[ours][-1], len(curves[ours])
        what = f"`{name}`{note}: {theirs.replace('_', ' ')}, epoch {last}"
        shown = text if value == float(text) else f"{text}, corrected {value:.4f}"
        points = {o: {k: v for k, (_, v) in enumerate(c, start=1)} for o, c in curves.items()}
        add("Study A", what, value, f"a/{name}/{ours}", last, better, shown, points)
    heading, seconds = "Study A, seconds for five epochs", a["handwritten_lstm_batch128"]
    for size, name in (("64", "mean"), ("128", "batch128")):
        value, ours = seconds["seconds_for_5_epochs"][f"batch{size}"], f"a/handwritten/{name}"
        add(heading, f"batches of {size}", value, f"{ours}/seconds", 0, False)
    for name, beside in TABLES["peers"].items():
        for peer in beside:
            what, value = peer.replace("_", " "), peers[f"{peer}_test_accuracy"]
            add("Peers: public material on the same data", what, value, f"{name}/test_accuracy")
    ours = "{small_hidden} units, {small_words} words, {small_epochs} epochs, {sgd_epochs} of SGD, "
    ours += "GloVe for {glove_words:,} words" if settings["glove_words"] else "the lab's vectors"
    ours = ours.format(**settings)
    for heading, *figure in _study_b(published["imdb_glove"], settings):
        add(f"Study B, {heading} (ours: {ours})", *figure)
    return dict(tables)


def _study_b(b: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[tuple]:
    """What `add` takes for study B; words are the outcome of a training by gradient descent."""
    heading, tested = "bidirectional LSTM", "held_out_accuracy"
    adam, dropout, l2 = (b[f"bilstm_adam{end}"] for end in ("", "_dropout", "_l2"))
    k = max(k for k in (5, *adam["epochs"]) if k <= max(5, settings["small_epochs"]))
    percents = dict(zip(adam["epochs"], adam["test_accuracy_percent"], strict=True))
    points = {"dev_accuracy": {k: value / 100 for k, value in percents.items()}}
    points["train_accuracy"] = {31: adam["train_accuracy_epoch_31"]}
    what, name = f"Adam, test accuracy at epoch {k}, ours on dev", "b/mistake/all/dev_accuracy"
    yield heading, what, percents[k] / 100, name, k, True, "", points
    low, high = (value / 100 for value in dropout["test_accuracy_percent_range"])
    what, shown = "dropout 0.5, test accuracy, the highest", f"{low} to {high}"
    yield heading, what, high, f"b/source/dropout/{tested}", 0, True, shown
    for weight, percent in zip(l2["lambda"], l2["test_accuracy_percent"], strict=True):
        what, name = f"L2 penalty λ = {weight:g}, test accuracy", f"b/source/l2/{weight:g}"
        yield heading, what, percent / 100, f"{name}/{tested}"
    for how, name in (("with them likewise", "all"), ("without them", "none")):
        what = f"held-out slice, published with its three mistakes, ours {how}"
        yield heading, what, b["held_out"]["bilstm_accuracy"], f"b/mistake/{name}/{tested}"

    heading, sgd, both = "gradient descent", b["lstm_sgd"], b["bilstm_sgd"]
    for k, last, outcome in zip(sgd["halve_every"], sgd["epochs"], sgd["outcome"], strict=True):
        what = f"LSTM, rate 0.1 halved every {k} epochs, {last} epochs"
        yield heading, what, outcome, f"b/source/lstm_sgd/{k}", last
    what = "bidirectional, rate 0.03 halved every 20 epochs, 100 epochs"
    outcome = f"{both['test_accuracy_percent']} %, training {both['train_accuracy']}"
    yield heading, what, outcome, "b/source/bilstm_sgd", 100
    stack = b["handwritten_two_layer_sgd"]
    outcome = f"{stack['test_accuracy_percent']} %, {stack['outcome']}"
    for lr in ("0.1", "0.001", "1e-06"):
        what = f"handwritten two-layer stack, plain SGD, rate {lr}"
        yield heading, what, outcome, f"b/stack/sgd/{lr}"


def _row(
    measures: Mapping[str, Any],
    settings: Mapping[str, Any],
    what: str,
    value: float | str,
    name: str,
    epoch: int = 0,
    better: bool | None = True,
    shown: str = "",
    curves: Mapping[str, Mapping[int, float]] | None = None,
) -> Row:
    """The row of a number, of the epoch that dev chose or of `epoch`; or of an outcome in words.

    `curves` are published ones by the name of ours, their values by epoch.
    """
    last = settings["epochs" if name.startswith("a/") else "small_epochs"]
    if in_words := isinstance(value, str):
        _, table, setting = name.split("/", 2)
        last = settings["sgd_epochs"] if setting in SOURCE_SGD else last
        last = min(last, STUDY_B[table][setting]["epochs"])
    ours = f"{name}/held_out_accuracy" if in_words else f"{name}/{epoch}" if epoch else name
    if ours not in measures and (not settings["everything"] or (epoch > last and not in_words)):
        return Row(what, shown or str(value), "–", MISSING, LEFT_OUT)
    measure = measures[ours]
    if in_words:
        mean = measures[f"{name}/train_accuracy/{last}"]["mean"]
        verdict = "learned" if mean >= LEARNED else "did not learn"
        reason = f"training accuracy {number(mean)} after our {last} epochs"
        if last < epoch:
            reason += f", too few to test what is published after {epoch}"
        return Row(what, value, f"{number(measure)}, n = {measure['n']}", verdict, reason)
    if not isinstance(measure, dict):  # of a linear model
        verdict = "ours better" if measure > value else "ours worse"
        reason = f"{measure - value:+.3f}; `{name.split('/')[1]}`, which has no seeds"
        return Row(what, str(value), number(measure), verdict, reason)
    unit = "s" if measure["timing"] else ""
    facts = {"higher_is_better": better, "unit": unit, "shown": shown}
    row, setting = number_row(what, value, measures, ours, **facts), name.rpartition("/")[0]
    reasons = [row.reason]
    for curve, points in (curves or {}).items():
        here = {k: measures.get(f"{setting}/{curve}/{k}") for k in points}
        gaps = {k: measure["mean"] - points[k] for k, measure in here.items() if measure}
        if gaps:
            k = max(gaps, key=lambda k: abs(gaps[k]))
            reasons.append(f"{curve.replace('_', ' ')} differs most at epoch {k}: {gaps[k]:+.3f}")
    return replace(row, reason="; ".join(reasons))

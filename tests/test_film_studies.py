"""The studies: the sources' settings, what is measured, linear models, published figures."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from labkit.film import claims, studies
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewClassifier, ReviewSpec
from labkit.film.training import FilmTraining, TrainSpec
from labkit.lab import machine, record
from labkit.lab.notebooks import read_notebook
from labkit.lab.settings import resolve
from labkit.measure.audit import audit, fitting
from labkit.measure.statistics import summarise

PUBLISHED = record.published()
GROUPS = {
    "a": studies.STUDY_A,
    "best": studies.BEST,
    "mistake": studies.MISTAKES,
    "source": studies.STUDY_B["source"],
    "sound": studies.SOUND_B,
    "stack": studies.STACK,
}
BASE = FilmTraining(
    corpus="generated", digest="d", vocab_size=9, seed=0, training=TrainSpec(lr=0.5, epochs=2)
)


def corpus_of(reviews: list[tuple[str, int, bool]]) -> Corpus:
    """A corpus of (text, label, whether it is of the test part)."""
    words = ("<unk>", "<pad>", *sorted({w for text, _, _ in reviews for w in text.split()}))
    rows = [[words.index(w) for w in text.split()] for text, _, _ in reviews]
    label = torch.tensor([label for _, label, _ in reviews])
    return Corpus(
        tokens=torch.tensor([i for row in rows for i in row], dtype=torch.int32),
        offsets=torch.tensor([0, *itertools.accumulate(map(len, rows))]),
        label=label,
        rating=label * 8 + 1,
        number=torch.arange(len(label)),
        is_test=torch.tensor([test for _, _, test in reviews]),
        words=words,
        digest="d",
    )


# settings


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_is_one_that_can_be_trained_and_no_two_are_the_same(group):
    base = replace(BASE, training=replace(BASE.training, epochs=100))
    trainings = studies.study(group, GROUPS[group], base, [3, 4], keep=["lstm/mean"])
    assert list(trainings) == [f"{group}/{name}" for name in GROUPS[group]]
    for name, of_setting in trainings.items():
        assert [t.seed for t in of_setting] == [3, 4]
        assert of_setting[0].keep == (name == "a/lstm/mean")
    distinct = set(itertools.chain(*trainings.values()))
    assert len(distinct) == 2 * len(trainings)


def test_a_setting_is_trained_as_far_as_the_report_printed_it_or_less_far():
    glove = PUBLISHED["imdb_glove"]
    for most in (2, 25, 100):
        base = replace(BASE, training=replace(BASE.training, epochs=most))
        plan = studies.study("b", studies.STUDY_B["source"] | studies.MISTAKES, base, [0])
        epochs = {name: training.training.epochs for name, (training,) in plan.items()}
        for k, last in zip(
            glove["lstm_sgd"]["halve_every"], glove["lstm_sgd"]["epochs"], strict=True
        ):
            assert epochs[f"b/lstm_sgd/{k}"] == min(last, most)
        assert epochs["b/bilstm_sgd"] == most
        assert epochs["b/all"] == min(31, most)  # where its training accuracy was printed


def test_settings_are_those_of_the_sources():
    a, glove = PUBLISHED["imdb"], PUBLISHED["imdb_glove"]
    plain = vars(ReviewSpec()) | vars(TrainSpec())
    assert plain["embedding_size"] == a["embedding_dim"]
    for name in ("hidden_size", "epochs", "batch_size"):
        assert plain[name] == a[name]
        assert name not in studies.CORE["lstm/mean"]
    assert studies.MISTAKES["all"]["embedding_size"] == glove["embedding_dim"]
    for weight in glove["bilstm_adam_l2"]["lambda"]:
        assert studies.SOURCE_B[f"l2/{weight:g}"]["weight_decay"] == weight
    for k in glove["lstm_sgd"]["halve_every"]:
        assert studies.SOURCE_SGD[f"lstm_sgd/{k}"]["halve_every"] == k
    tables = {name for name in a if isinstance(a[name], dict)} - {"claims", "counted"}
    assert set(studies.PUBLISHED_A) <= set(studies.STUDY_A)
    assert set(studies.PUBLISHED_A.values()) == tables


def test_each_mistake_is_one_change_and_all_are_the_three():
    none = studies.MISTAKES["none"]
    changes = {
        name: {k: v for k, v in setting.items() if none.get(k) != v}
        for name, setting in studies.MISTAKES.items()
    }
    softmax, carry, last_step = (changes[name] for name in ("softmax", "carry", "last_step"))
    assert softmax == {"loss": "ce_on_softmax"}
    assert carry == {"carry": True}
    assert last_step == {"pooling": "last_step"}
    assert changes["all"] == softmax | carry | last_step


# measures


def test_measures_have_their_names_values_and_seeds():
    """25 test reviews of either label, of which the two seeds get the first 20 and 10 right."""
    corpus = corpus_of([("film", k % 2, k < 50) for k in range(100)])
    y, right = corpus.label[:50], corpus.number[:50] // 2
    arrays = {
        seed: {
            "test_probability": torch.where((right < hits) == y.bool(), 0.9, 0.1).numpy(),
            "dev_accuracy": np.array([0.5, 0.8, 0.7]) + seed / 1000,
            "best_epoch": np.array(2),
            "seconds": np.array([1.0, 2.0, 3.0]),
            "train_loss": np.array([0.6, 0.4, 0.2]),
            "test_classes": np.eye(10)[[8] * 30 + [0] * 20],  # ratings are 9 and 1, in turn
        }
        for seed, hits in ((7, 20), (8, 10))
    }
    measures = studies.measures_of({"a/lstm": arrays}, corpus, epochs=[2, 99])
    # of 25 negative ones the slice holds those from 10 to 11, of the positive ones from 5 to 6
    expected = {
        "test_accuracy": [0.8, 0.4],
        "held_out_accuracy": [1.0, 0.5],
        "dev_accuracy": [0.807, 0.808],
        "best_epoch": [2, 2],
        "seconds": [6, 6],
        "exact": [0.5, 0.5],
        "mean_distance": [4, 4],
        "train_loss/2": [0.4, 0.4],
        "dev_accuracy/2": [0.807, 0.808],
    }
    assert measures.keys() == {f"a/lstm/{name}" for name in expected}
    for name, raw in expected.items():
        assert measures[f"a/lstm/{name}"]["raw"] == pytest.approx(raw), name
        assert measures[f"a/lstm/{name}"]["seeds"] == [7, 8]
    assert [name for name, m in measures.items() if m["timing"]] == ["a/lstm/seconds"]
    part = {s: a | {"test_probability": a["test_probability"][:4]} for s, a in arrays.items()}
    assert "x/test_accuracy" not in studies.measures_of({"x": part}, corpus)


def test_accuracy_over_the_length_by_hand():
    label, length = [1, 1, 0, 0, 1, 1], [1, 2, 3, 9, 10, 40]
    corpus = corpus_of([("w " * n, y, True) for n, y in zip(length, label, strict=True)])
    answers = {0: [0.9, 0.1, 0.2, 0.8, 0.9, 0.5], 1: [0.9, 0.9, 0.2, 0.8, 0.1, 0.5]}
    runs = {seed: {"test_probability": np.array(p)} for seed, p in answers.items()}
    lengths, shares = studies.by_length(runs, corpus, [1, 4, 10, 30, 35, 50])
    assert lengths.tolist() == [2, 9, 10, 40]  # no review has 30 to 34 words
    np.testing.assert_allclose(shares, [[2 / 3, 0, 1, 1], [1, 0, 0, 1]])


# linear models


def parts_of(corpus: Corpus) -> dict[str, torch.Tensor]:
    return dict(zip(("train", "dev", "test"), corpus.number.chunk(3), strict=True))


def linear(corpus: Corpus, kind: str, **options) -> dict:
    return studies.logistic_regression(corpus, kind, **parts_of(corpus), max_len=9, **options)


def test_only_pairs_see_not_good():
    """The same words in two orders: "not good, bad" against "not bad, good"."""
    fillers = ("the film", "an actor", "the story", "an ending", "the music")
    texts = [
        (f"{a} {words} {b} {part}", y, False)
        for part in ("one", "two", "three")
        for a, b in itertools.product(fillers, fillers)
        for y, words in enumerate(("not good bad", "not bad good"))
    ]
    fits = {kind: linear(corpus_of(texts), kind) for kind in studies.VECTORIZERS}
    assert fits["binary"]["test_accuracy"] == pytest.approx(0.5)
    assert fits["binary"]["num_features"] == 11  # and not "two" or "three", of dev and test
    assert fits["tfidf_pairs"]["test_accuracy"] == fits["tfidf_pairs"]["dev_accuracy"] == 1.0


def test_dev_chooses_the_strength_and_test_does_not():
    """Labels that many weak words tell together, so that the penalty matters."""
    rng = np.random.default_rng(0)
    texts = []
    for y in (0, 1) * 90:
        lean = rng.random(12) < (0.62 if y else 0.38)
        texts.append((" ".join(f"{'pn'[int(up)]}{rng.integers(30)}" for up in lean), y, False))
    corpus, strengths = corpus_of(texts), (1e-4, 0.03, 1.0, 100.0)
    alone = {C: linear(corpus, "binary", strengths=[C]) for C in strengths}
    dev, test = ([fit[f"{part}_accuracy"] for fit in alone.values()] for part in ("dev", "test"))
    fit = linear(corpus, "binary", strengths=strengths)
    assert fit["C"] == strengths[int(np.argmax(dev))]  # the first of the best
    assert np.argmax(test) != np.argmax(dev)
    turned = corpus.label.clone()
    turned[120:] = 1 - turned[120:]
    other = linear(Corpus(**vars(corpus) | {"label": turned}), "binary", strengths=strengths)
    assert other["C"] == fit["C"]
    assert other["test_accuracy"] == pytest.approx(1 - fit["test_accuracy"])


def test_neighbours_share_their_films_and_a_random_split_knows_them():
    """Five reviews in a row are of one film, whose name tells their label, and no word else."""
    texts = [(f"the film{y}{k // 5}", y, False) for y in (0, 1) for k in range(100)]
    corpus = corpus_of([("the end", 0, True), *texts])
    shared = studies.neighbours(corpus, rarest=5)
    expected = {1: 80 / 99, 3: 40 / 97, 10: 0, 20: 0, 29: 0, 40: 0}
    assert shared == pytest.approx(
        {
            f"neighbours/train/{label}/{d}": v
            for label in ("neg", "pos")
            for d, v in expected.items()
        }
    )
    split = studies.dev_by_split(corpus, 3.0, 9)
    assert split["split/random"]["min"] > 0.95
    assert split["split/blocks"]["raw"] == [0.5] * 5  # films that nobody has seen


# what a network reads


@pytest.mark.parametrize("pooling", ["last", "mean_max", "last_step"])
def test_reading_word_by_word_equals_every_beginning_alone(pooling):
    torch.manual_seed(0)
    corpus = corpus_of([("film good is it n't not", 1, True)])
    spec = ReviewSpec(embedding_size=5, hidden_size=4, bidirectional=True, pooling=pooling)
    model = ReviewClassifier(spec, len(corpus.words)).eval()
    words, p = studies.predict(model, corpus, "The film ISN'T good!<br />")
    assert words == ["<unk>", "film", "is", "n't", "good"]
    ids = torch.tensor([[corpus.words.index(word) for word in words]])
    expected = [model(ids[:, :n], torch.tensor([n])).softmax(1)[0, 1].item() for n in range(1, 6)]
    assert p.tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r"there is no word in '\?!'; type a sentence"):
        studies.predict(model, corpus, "?!")


# published figures

FULL = {
    "everything": True, "epochs": 5, "small_epochs": 100, "sgd_epochs": 100,
    "small_hidden": 128, "small_words": 592, "glove_words": 400_000,
}  # fmt: skip


class Everything(dict):
    """Whatever is asked for is there, and noted."""

    def __missing__(self, name: str) -> object:
        linear = name.startswith("baseline/") and "averaged" not in name
        value = 0.87 if linear else summarise([0.4, 0.5, 0.6], seeds=[0, 1, 2], student=True)
        return self.setdefault(name, value)


def rows_of(measures: dict, **settings) -> dict:
    return studies.rows(measures, FULL | settings, PUBLISHED)


def left_out(tables: dict) -> int:
    return sum(row.verdict == "no result yet" for rows in tables.values() for row in rows)


def test_every_published_figure_has_its_row_and_a_curve_its_last_one():
    a, glove = PUBLISHED["imdb"], PUBLISHED["imdb_glove"]
    curves = itertools.product(studies.PUBLISHED_A, (ours for _, ours, _ in studies.PRINTED))
    here = {f"a/{name}/{curve}/1": summarise([0.5]) for name, curve in curves}
    tables = rows_of(measures := Everything(here))
    assert left_out(tables) == 0
    sizes = {heading: len(rows) for heading, rows in tables.items()}
    for name, row in zip(studies.PUBLISHED_A, tables["Study A"], strict=True):
        table = a[studies.PUBLISHED_A[name]]
        assert row.what.startswith(f"`{name}`")
        assert float(row.published.split(",")[0]) in table.get(
            "test_accuracy", table["train_accuracy"]
        )
        assert row.reason.count("differs most") == sum(isinstance(v, list) for v in table.values())
    small = {"bidirectional": 1 + 1 + len(glove["bilstm_adam_l2"]["lambda"]) + 2, "gradient": 7}
    for kind, count in small.items():
        (heading,) = (h for h in sizes if f"Study B, {kind}" in h)
        assert "128 units, 592 words, 100 epochs, 100 of SGD, GloVe for 400,000 words" in heading
        assert sizes[heading] == count
    assert sizes["Peers: public material on the same data"] == 5
    for gone in ("a/gru/last/dev_accuracy/5", "b/stack/sgd/0.1/held_out_accuracy", "best/model/"
                 "test_accuracy", "b/mistake/all/dev_accuracy/30"):  # fmt: skip
        with pytest.raises(KeyError, match=gone):
            rows_of({name: m for name, m in measures.items() if name != gone})


def printed_in_homework(curve: str) -> dict[str, list[tuple[str, float]]]:
    """The accuracies of every table of the homework: as printed, and corrected."""
    tables = dict.fromkeys(studies.PUBLISHED_A.values())
    return {table: studies.printed(PUBLISHED["imdb"], table, curve) for table in tables}


def test_the_homework_divided_by_batches_times_batch_size():
    of_128 = "handwritten_lstm_batch128"
    for curve, count, (true, by_64, by_128), fits, of_series in (
        ("test_accuracy", 45, (5000, 79 * 64, 40 * 128), 44, 25),
        ("train_accuracy", 50, (20_000, 313 * 64, 157 * 128), 45, 6),
    ):
        series = {table: [t for t, _ in of] for table, of in printed_in_homework(curve).items()}
        found = audit([*itertools.chain(*series.values())], range(true - 100, true + 200))
        assert len(found.printed) == count
        assert (found.fits[by_64], found.fits[by_128], found.fit_all) == (fits, of_series, [])
        assert max(found.fits, key=found.fits.get) == by_64
        assert found.fits[true] < 0.5 * fits
        assert by_128 in audit(series[of_128], [true, by_64, by_128]).fit_all
    assert fitting("0.8543", [5000, 5056, 5120]) == {5120: 4374}  # the last of batch 128


def test_corrected_accuracies_are_counted_over_the_reviews_that_there_were():
    last = {table: of[-1] for table, of in printed_in_homework("test_accuracy").items() if of}
    assert (last["rnn"], last["gru"]) == (("0.8532", 0.8628), ("0.8606", 0.8702))
    assert max(last, key=lambda table: last[table][0]) == "gru"
    assert max(last, key=lambda table: last[table][1]) == "handwritten_lstm_batch128"
    (chance, *_) = printed_in_homework("test_accuracy")["handwritten_lstm_bce_one_hot"]
    assert chance == ("0.4939", pytest.approx(0.4994))


def test_a_published_accuracy_is_judged_as_corrected_and_beside_dev():
    """4374 hits, printed as a share of 5,120 reviews where there were 5,000."""
    name = "a/handwritten/batch128/dev_accuracy/5"
    ours = summarise([0.8745, 0.8750, 0.8748, 0.8749, 0.8747])
    first = name.replace("/5", "/1")  # published: 0.7273, corrected 0.7447
    rows = rows_of(Everything({name: ours, first: summarise([0.5, 0.6])}))
    (row,) = (row for row in rows["Study A"] if "batch128" in row.what)
    assert "dev accuracy differs most at epoch 1: -0.195" in row.reason
    assert row.published == "0.8543, corrected 0.8748"
    assert row.verdict == "as one more seed"  # 0.8543 would not be


def test_what_the_settings_leave_out_is_said_to_be_left_out():
    measures = Everything()
    rows_of(measures, small_epochs=15)
    assert "b/mistake/all/dev_accuracy/15" in measures  # of 30 that were printed
    assert left_out(rows_of(dict(measures), small_epochs=15)) == 0
    few = {name: m for name, m in measures.items() if "adamax" not in name and "l2/" not in name}
    assert left_out(rows_of(few, small_epochs=15, everything=False)) == 1 + 4


@pytest.mark.parametrize("accuracy, verdict", [(0.59, "did not learn"), (0.6, "learned")])
def test_an_outcome_is_told_by_the_training_accuracy(accuracy, verdict):
    measures = Everything({"b/source/lstm_sgd/20/train_accuracy/15": summarise([accuracy])})
    (row,) = (
        row
        for rows in rows_of(measures, sgd_epochs=15).values()
        for row in rows
        if "halved every 20 epochs, 20" in row.what
    )
    assert row.verdict == verdict
    assert row.reason.endswith("after our 15 epochs, too few to test what is published after 20")
    rows_of(whole := Everything())  # its last epoch is the report's own
    assert "b/source/lstm_sgd/20/train_accuracy/20" in whole
    assert "b/source/lstm_sgd/20/train_accuracy/100" not in whole


# claims


def test_every_claim_has_its_words_and_compares_settings_that_there_are():
    tables = {f"b/{name}/": table for name, table in studies.STUDY_B.items()}
    names = {p + s for p, table in ({"a/": studies.STUDY_A} | tables).items() for s in table}
    words = PUBLISHED["imdb"]["claims"] | PUBLISHED["imdb_glove"]["claims"]
    for name, claim in claims.CLAIMS.items():
        assert {*itertools.chain(*claim.get("pairs", {}).values())} <= names
        assert "text" in claim or words.pop(name.split("/")[0], "gated")
    assert not words


@pytest.mark.parametrize(
    "name, curves, verdict",
    [
        ("hidden128", [[0.5, 0.9], [0.9, 0.8]], "holds"),  # the last epoch counts
        ("hidden128", [[0.5, 0.8], [0.5, 0.9]], "fails"),
        ("hidden128", [[0.5, 0.8], [0.5, 0.8]], "not shown"),
        ("bce", [[0.7], [0.8], [0.8]],
         "shown for BCE minus cross-entropy; not shown for BCE on a sigmoid minus cross-entropy"),
        ("two_cells_no_gain", [[0.805], [0.8]], "holds"),  # less than a point
        ("sgd_collapses", [[0.5, 0.9, 0.6, 0.8]], "holds"),
        ("sgd_collapses", [[0.5, 0.6, 0.9, 0.8]], "fails"),
        ("dropout", [[0.6, 0.4, 0.42], [0.6, 0.4, 0.6]], "holds"),
        ("stack_of_places", [[0.5, 0.8, 0.4], [0.5, 0.5]], "holds"),  # after two epochs
    ],
)  # fmt: skip
def test_a_claim_is_decided_by_its_measure_over_the_seeds(name, curves, verdict):
    """Each setting has one curve for everything, and five seeds that lie a little apart."""
    settings = dict.fromkeys(s for pair in claims.CLAIMS[name]["pairs"].values() for s in pair)
    names = ("train_accuracy", "dev_accuracy", "dev_loss", "seconds")
    runs = {}
    for place, (setting, curve) in enumerate(zip(settings, curves, strict=True)):
        shifts = [0.001 * ((seed + 2 * place) % 5 - 2) for seed in range(5)]
        runs[setting] = {k: dict.fromkeys(names, np.add(curve, s)) for k, s in enumerate(shifts)}
    verdicts = claims.judged(claims.evidence(runs, None), PUBLISHED)
    (claim,) = (claim for claim in verdicts if claim.id == name)
    assert claim.verdict == verdict
    assert claims.CLAIMS[name]["change"] in claim.reason


def test_the_best_epoch_is_what_the_other_seeds_say():
    """By its own lowest value each seed would have risen."""
    loss = np.array([[0.5, 0.45, 0.3], [0.5, 0.2, 0.3], [0.5, 0.45, 0.3]])
    assert claims._rise(loss).tolist() == [0, 0, 0]


def test_the_full_profile_has_five_seeds_and_the_sources_lengths_and_epochs():
    cells = read_notebook(machine.NOTEBOOKS / "04_imdb_recurrent.ipynb").cells
    full = resolve("04_imdb_recurrent", cells, "full")
    assert full["num_seeds"] == 5
    assert (full["small_hidden"], full["small_words"], full["glove_words"]) == (128, 592, 400_000)
    assert full["epochs"] == PUBLISHED["imdb"]["epochs"]
    assert full["small_epochs"] == max(s["epochs"] for s in studies.SOURCE_SGD.values())


def test_dev_chooses_the_best_network_and_the_same_reviews_compare_it(monkeypatch):
    corpus = corpus_of([("good", n % 2, True) for n in range(20)])
    right = corpus.label.double().numpy()
    dev = {"mean": 0.7, "max": 0.8, "mean_max": 0.9}
    asked = []

    def train(trainings, name):
        def arrays(task):
            pooling, plain = task.model.pooling, task.model.cell == "none"
            asked.append((name, pooling, task.seed))
            p = 1 - right if plain else right
            fields = {"dev_accuracy": np.array([0.5, dev[pooling]]), "best_epoch": np.array(2)}
            return fields | {"seconds": np.ones(2), "test_probability": p}

        return {name: {t.seed: arrays(t) for t in group} for name, group in trainings.items()}

    monkeypatch.setattr(studies, "train", train)
    monkeypatch.setattr(studies.evidence, "kept", lambda corpus: None)
    settings = {"one": {"pooling": "mean"}, "two": {"pooling": "max"}}
    settings["no_layer"] = {"cell": "none", "pooling": "mean_max"}  # the best of dev, no candidate
    first_wrong = torch.from_numpy(right).clone()
    first_wrong[:7] = 1 - first_wrong[:7]
    measures = studies.best_network(corpus, BASE, settings, [3, 4], {"linear": first_wrong})
    assert sorted(asked) == [("best network", p, seed) for p in sorted(dev) for seed in (3, 4)]
    assert measures["best/chosen"] == "two"
    assert measures["best/model/dev_accuracy"]["raw"] == [0.8, 0.8]
    assert measures["best/one/dev_accuracy"]["raw"] == [0.7, 0.7]
    assert measures["best/model/test_accuracy"]["raw"] == [1.0, 1.0]
    assert measures["best/no_layer/test_accuracy"]["raw"] == [0.0, 0.0]
    assert (measures["best/only_ours/linear"], measures["best/only_theirs/linear"]) == (7, 0)
    assert measures["best/sign_test_p/linear"] == pytest.approx(2 * 0.5**7)
    assert measures["best/only_ours/no_layer"] == 20

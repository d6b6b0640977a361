"""Chapter 05's settings, the reviews that each rival gets, what is measured, and looks inside."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
import torch

from labkit.bert.model import POOLINGS, BertClassifier, BertSpec
from labkit.bert import study as bert
from labkit.bert import tasks as bert_tasks
from labkit.bert.training import BertTrainSpec
from labkit.film import baselines
from labkit.film import studies as imdb
from labkit.film import tasks as review_tasks
from labkit.film.corpus import Corpus
from labkit.lab import environment, sweep

PUBLISHED = tomllib.loads((environment.DATA / "published.toml").read_text("utf-8"))["bert"]


@pytest.fixture
def corpus() -> Corpus:
    """100 training and 100 test reviews of two words, half of either label."""
    n = 200
    label = torch.tensor([0, 1, 0, 1]).repeat_interleave(50)
    return Corpus(
        tokens=torch.full((2 * n,), 2, dtype=torch.int32),
        offsets=torch.arange(0, 2 * n + 1, 2),
        label=label,
        rating=torch.where(label.bool(), 9, 2),
        number=torch.arange(n) % 50,
        is_test=torch.arange(n) < 100,
        words=("<unk>", "<pad>", "film"),
        digest="0" * 64,
    )


@pytest.fixture
def described(monkeypatch) -> list[dict]:
    """What `bert_tasks.training_task` is asked for, in the place of tasks."""
    asked = []

    def training_task(name, **options):
        asked.append({"label": f"{name} seed {options['seed']}", **options})
        return asked[-1]

    monkeypatch.setattr(bert_tasks, "training_task", training_task)
    return asked


# settings


def test_every_setting_is_one_that_can_be_trained():
    for model, training in [*bert.SOUND.values(), *bert.SOURCE.values()]:
        BertSpec(**model)
        BertTrainSpec(**training)
    assert set(bert.SOUND) == set(POOLINGS)
    assert all(model["pooling"] == pooling for pooling, (model, _) in bert.SOUND.items())


def test_the_sources_settings_are_the_published_ones():
    text = {str(run["id"]): run["setting"] for run in PUBLISHED["runs"]}
    assert {name[0] for name in bert.SOURCE} == set(text)
    assert set(bert.SOURCE_TRAIN) == set(bert.SOURCE)
    for name, (model, training) in bert.SOURCE.items():
        spec, schedule = BertSpec(**model), BertTrainSpec(**training)
        assert spec.pooling == "last_position"
        assert len(spec.head_sizes) == 1  # linear, ReLU, linear
        assert schedule.fixed
        assert schedule.lr == schedule.head_lr
        assert (schedule.warmup, schedule.weight_decay, schedule.clip) == (0, 0, 0)
        assert (schedule.schedule == "halve") == (name == "5")
    facts = {n: (BertSpec(**m).dropout, BertTrainSpec(**t).lr) for n, (m, t) in bert.SOURCE.items()}
    assert facts == {
        "1/1e-05": (0, 1e-5), "1/0.001": (0, 1e-3), "1/5e-05": (0, 5e-5),
        "2": (0, 1e-6), "3": (0.3, 1e-6), "4": (0.3, 1e-6), "5": (0.5, 1e-6),
    }  # fmt: skip
    assert "halved every 5 epochs" in text["5"]
    assert BertTrainSpec(**bert.SOURCE["5"][1]).halve_every == 5
    for name, reviews in bert.SOURCE_TRAIN.items():
        expected = "200 reviews" if name[0] in "123" else "2000 reviews"
        assert reviews == int(expected.split()[0])
        assert name == "3" or expected in text[name[0]]


def test_sound_trainings_warm_up_and_fall_to_zero():
    for _, training in bert.SOUND.values():
        schedule = BertTrainSpec(**training)
        assert (schedule.schedule, schedule.warmup, schedule.clip) == ("linear", 0.1, 1.0)


# tasks


def test_a_settings_own_choice_wins_over_what_holds_for_all(described):
    setting = ({"dropout": 0.2}, {"lr": 0.5})
    tasks = bert.tuned_tasks(
        "x", setting, seeds=iter([3, 4]), training={"lr": 0.1, "epochs": 2}, num_train=10
    )
    assert tasks == described
    assert [task["seed"] for task in tasks] == [3, 4]
    for task in tasks:
        assert task["training"] == {"lr": 0.5, "epochs": 2}
        assert task["model"] == {"dropout": 0.2}
        assert task["num_train"] == 10
    assert setting == ({"dropout": 0.2}, {"lr": 0.5})


def test_a_random_start_differs_in_its_weights_and_its_rate_alone(described):
    rates = {"lr": 1e-5, "head_lr": 1e-3, "epochs": 2}
    sound = bert.SOUND["mean"]
    (pretrained_one,) = bert.tuned_tasks("a", sound, seeds=[0], training=rates)
    (random_one,) = bert.tuned_tasks("b", bert.random_start(sound), seeds=[0], training=rates)
    assert random_one["model"] == {**pretrained_one["model"], "pretrained": False}
    assert random_one["training"] == {**pretrained_one["training"], "lr": 1e-3}
    assert "pretrained" not in sound[0]


def test_with_all_reviews_the_recurrent_task_is_chapter_04s_own(corpus):
    common = {"corpus_name": "imdb", "device": "cpu"}
    model, training = imdb.BEST["bilstm_beside_words"]
    (own,) = bert.recurrent_tasks(
        "x", (model, training), corpus, seeds=[0], epochs=4, num_train=0, num_dev=10, **common
    )
    (chapters,) = imdb.study_tasks(
        "best", {"bilstm_beside_words": (model, training)}, corpus, seeds=[0],
        training={"epochs": 4, "max_len": 500}, keep=imdb.BEST, **common,
    )  # fmt: skip
    assert {k: v for k, v in own.items() if k != "label"} == {
        k: v for k, v in chapters.items() if k != "label"
    }
    (fewer,) = bert.recurrent_tasks(
        "x", (model, training), corpus, seeds=[0], epochs=4, num_train=20, num_dev=10, **common
    )
    assert (fewer["num_train"], fewer["num_dev"], fewer["keep"]) == (20, 10, False)


@pytest.mark.parametrize("rooms", [bert_tasks, review_tasks])
def test_the_dearest_training_comes_first_and_results_in_the_tasks_order(rooms, monkeypatch):
    own = {"pretrained": "tiny"} if rooms is bert_tasks else {"vocab_size": 9}
    costs = {"small": (1, 64, 100), "all": (2, 64, 0), "long": (2, 128, 400)}
    tasks = [
        {"label": f"x/{name} seed {seed}", "seed": seed, "training.epochs": epochs,
         "training.max_len": length, "num_train": n, **own}
        for name, (epochs, length, n) in costs.items() for seed in (5, 2)
    ]  # fmt: skip
    queue = []

    def run_tasks(tasks, worker, *, name, modules):
        assert (worker, name, modules) == (rooms.train_task, "n", rooms.MODULES)
        queue.extend(task["label"].split()[0] for task in tasks)
        return [{"of": task["label"]} for task in tasks]

    monkeypatch.setattr(sweep, "run_tasks", run_tasks)
    runs = bert.train(tasks, "n")
    assert queue == ["x/all", "x/all", "x/long", "x/long", "x/small", "x/small"]
    assert list(runs) == ["x/small", "x/all", "x/long"]
    for name, by_seed in runs.items():
        assert {seed: arrays["of"] for seed, arrays in by_seed.items()} == {
            seed: f"{name} seed {seed}" for seed in (5, 2)
        }


def test_answering_all_test_reviews_counts_as_work(monkeypatch):
    queue = []
    monkeypatch.setattr(
        sweep, "run_tasks", lambda tasks, *_, **__: queue.extend(tasks) or [{}] * len(tasks)
    )
    shared = {"seed": 0, "training.epochs": 1, "training.max_len": 64, "pretrained": "tiny"}
    tested = {"short": ("all", 2_000), "long": ("held_out", 10_000), "longest": ("none", 20_000)}
    tasks = [
        {"label": f"{name} seed 0", "test": test, "num_train": n, **shared}
        for name, (test, n) in tested.items()
    ]
    bert.train(tasks, "n")
    assert [task["label"].split()[0] for task in queue] == ["longest", "short", "long"]


# rivals


def test_linear_rivals_get_the_reviews_that_the_networks_get(corpus, monkeypatch):
    asked = []

    def logistic_regression(given, kind, *, train, dev, test, max_len):
        assert (given, kind, max_len) == (corpus, "tfidf_pairs", 500)
        asked.append((train.tolist(), dev.tolist(), test.tolist()))
        return {"test_accuracy": 0.5, "dev_accuracy": 0.6}

    monkeypatch.setattr(baselines, "logistic_regression", logistic_regression)
    split = corpus.split()
    found = bert.linear_runs(corpus, sizes=[10, 80], seeds=[7, 8], num_dev=6)
    assert {size: list(by_seed) for size, by_seed in found.items()} == {10: [7, 8], 80: [7]}
    draws = [review_tasks.draw(corpus, split["train"], 10, seed).tolist() for seed in (7, 8)]
    assert [train for train, _, _ in asked] == [*draws, split["train"].tolist()]
    dev = review_tasks.draw(corpus, split["dev"], 6, 0).tolist()
    assert all(row[1:] == (dev, review_tasks.held_out(corpus).tolist()) for row in asked)
    assert all(fitted["seconds"] >= 0 for by_seed in found.values() for fitted in by_seed.values())

    bert.linear_runs(corpus, sizes=[10], seeds=[7], num_dev=6, test=split["test"])
    assert asked[-1] == (draws[0], dev, split["test"].tolist())


def vectors_of(corpus: Corpus, tasks: list) -> list[dict]:
    """Vectors in which the mean tells the label, and nothing else does."""
    rng = np.random.default_rng(0)
    found = []
    for task in tasks:
        index = np.arange(len(corpus))[task["share"] :: task["shares"]]
        noise = {pooling: rng.normal(size=(len(index), 3)) for pooling in POOLINGS}
        noise["mean"][:, 0] = 4 * corpus.label.numpy()[index] - 2 + 0.1 * noise["mean"][:, 0]
        found.append({"index": index, **noise, "seconds": np.array([5.0])})
    return found


@pytest.fixture
def frozen(corpus, monkeypatch):
    """`frozen_runs` on made-up vectors, and the tasks that it asks for."""
    asked = []
    monkeypatch.setattr(bert_tasks, "features_task", lambda **options: options)

    def run_tasks(tasks, worker, *, name, modules):
        assert (worker, modules) == (bert_tasks.feature_task, bert_tasks.MODULES)
        asked.extend(tasks)
        return vectors_of(corpus, tasks)

    monkeypatch.setattr(sweep, "run_tasks", run_tasks)

    def run(**options):
        common = {"corpus_name": "imdb", "seeds": [0, 1], "num_dev": 10, "part": "tail"}
        return bert.frozen_runs(corpus, **common | options), asked

    return run


def test_a_linear_head_on_frozen_vectors_is_fitted_for_every_pooling_size_and_draw(frozen):
    (found, seconds), asked = frozen(sizes=[20, 80])
    assert list(found) == list(POOLINGS)
    for by_size in found.values():
        assert {size: list(by_seed) for size, by_seed in by_size.items()} == {20: [0, 1], 80: [0]}
    assert found["mean"][20][0]["test_accuracy"] == 1.0
    assert found["cls"][20][0]["test_accuracy"] < 0.95
    assert seconds == pytest.approx(10 / 200)  # of both processes, for a review
    assert [(task["share"], task["shares"]) for task in asked] == [(0, 2), (1, 2)]
    assert {task["num_train"] for task in asked} == {0}  # all, and with them every draw


def test_smaller_draws_need_the_vectors_of_the_largest_alone(frozen):
    (found, _), asked = frozen(sizes=[10, 20], test="none")
    assert {task["num_train"] for task in asked} == {20}
    assert {task["test"] for task in asked} == {"none"}
    probe = found["mean"][10][1]
    assert probe["test_accuracy"] == probe["dev_accuracy"]  # nothing else was read


# measures


def runs_of(corpus: Corpus) -> dict:
    """Two seeds that get the first reviews of either label right: one tested on all reviews, one
    on the held-out ones alone."""
    split, held_out = corpus.split(), review_tasks.held_out(corpus)
    by_seed = {}
    for seed, right, index in ((7, 22, split["test"]), (8, 12, held_out)):
        hit = corpus.number[index] < right
        p = torch.where(hit == corpus.label[index].bool(), 0.9, 0.1)
        by_seed[seed] = {
            "test_probability": p.numpy(),
            "dev_accuracy": np.array([0.5, 0.8, 0.7]) + seed / 1000,
            "best_epoch": np.array([2]),
            "seconds": np.array([1.0, 2.0, 3.0]),
            "curve_accuracy": np.array([0.6, 0.7, 0.5]),
        }
    return by_seed


def test_held_out_reviews_are_found_among_all(corpus):
    held_out = review_tasks.held_out(corpus)
    assert corpus.number[held_out].tolist() == [20, 21, 22, 23, 10, 11, 12, 13]
    for arrays, expected in zip(
        runs_of(corpus).values(), ([0.1] * 2 + [0.9] * 6, [0.9] * 6 + [0.1] * 2), strict=True
    ):
        p = bert.held_out_probability(arrays, corpus)
        assert p.tolist() == pytest.approx(expected)


def test_measures_have_their_names_values_and_seeds(corpus):
    by_seed = runs_of(corpus)
    found = bert.measures_of({"tuned/9": by_seed}, corpus, epochs=[2, 5])
    assert found["tuned/9/held_out_accuracy"]["raw"] == [0.75, 0.25]
    assert found["tuned/9/held_out_accuracy"]["seeds"] == [7, 8]
    assert found["tuned/9/dev_accuracy"]["raw"] == pytest.approx([0.807, 0.808])
    assert found["tuned/9/best_epoch"]["raw"] == [2, 2]
    assert found["tuned/9/seconds"]["raw"] == [6, 6]
    assert [name for name, m in found.items() if m["timing"]] == ["tuned/9/seconds"]
    assert found["tuned/9/curve_accuracy/2"]["raw"] == [0.7, 0.7]
    assert "tuned/9/curve_accuracy/5" not in found
    assert found["tuned/9/dev_accuracy"]["interval"] == "95 % Student t of the mean"


def test_all_test_reviews_have_a_measure_where_they_were_read(corpus):
    all_read, held_out_read = runs_of(corpus).values()
    found = bert.measures_of({"a": {0: all_read}, "b": {0: held_out_read}}, corpus)
    assert found["a/test_accuracy"]["raw"] == [0.44]
    assert "b/test_accuracy" not in found


def test_probes_are_summed_up_over_their_draws():
    by_size = {10: {3: {"test_accuracy": 0.6, "dev_accuracy": 0.9},
                    4: {"test_accuracy": 0.8, "dev_accuracy": 0.7}}}  # fmt: skip
    found = bert.probe_measures("frozen/mean", by_size)
    assert set(found) == {f"frozen/mean/10/{w}_accuracy" for w in ("held_out", "dev")}
    assert found["frozen/mean/10/held_out_accuracy"]["raw"] == [0.6, 0.8]
    assert found["frozen/mean/10/dev_accuracy"]["raw"] == [0.9, 0.7]
    assert found["frozen/mean/10/dev_accuracy"]["seeds"] == [3, 4]


def test_differences_are_within_the_seed():
    a = {"seeds": [0, 1, 2], "raw": [0.9, 0.8, 0.7]}
    b = {"seeds": [2, 0], "raw": [0.5, 0.6]}
    found = bert.paired_difference(a, b)
    assert found["seeds"] == [0, 2]
    assert found["raw"] == pytest.approx([0.3, 0.2])
    with pytest.raises(ValueError, match=r"no seed in common: \[0, 1, 2\] and \[9\]"):
        bert.paired_difference(a, {"seeds": [9], "raw": [0.5]})


# looking into a model


@pytest.fixture
def encoder():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


def test_masking_a_piece_changes_that_piece_alone(encoder):
    torch.manual_seed(1)
    model = BertClassifier(encoder, BertSpec("cls", dropout=0.5)).eval()
    torch.nn.init.normal_(model.head[0].weight)
    ids = torch.tensor([2, 7, 8, 9, 3])
    p, effects = bert.mask_effects(model, ids, 4)
    assert ids.tolist() == [2, 7, 8, 9, 3]
    with torch.no_grad():
        ones = torch.ones(1, 5)
        assert p == pytest.approx(model(ids.unsqueeze(0), ones).softmax(1)[0, 1].item())
        for place in (1, 2, 3):
            masked = ids.clone()
            masked[place] = 4
            without = model(masked.unsqueeze(0), ones).softmax(1)[0, 1].item()
            assert effects[place].item() == pytest.approx(p - without, abs=1e-6)
            assert abs(effects[place]) > 1e-6
    assert effects[[0, 4]].tolist() == [0, 0]

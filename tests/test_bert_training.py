"""Fine-tuning of BERT: decay groups, schedules, the best checkpoint, and resuming bit for bit."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import BertConfig, BertModel, get_linear_schedule_with_warmup

from labkit.bert.encoding import Encoded, pad
from labkit.bert.model import BertClassifier, BertSpec
from labkit.bert import training as bert_training
from labkit.bert.training import BertTrainSpec, Keeper, Run, Trainer, make_optimiser, rate

CPU = torch.device("cpu")
GOOD, BAD, V = 5, 6, 24
TRAIN, DEV, CURVE = torch.arange(0, 40), torch.arange(40, 60), torch.arange(60, 80)
NOT_TIMES = ("train_loss", "train_accuracy", "dev_loss", "dev_accuracy", "best_epoch")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy(count: int = 80) -> Encoded:
    """Reviews of 4 to 11 pieces; one of them, good or bad, decides."""
    generator = torch.Generator().manual_seed(0)
    label, rows = torch.arange(count) % 2, []
    for y in label.tolist():
        n = int(torch.randint(2, 10, (), generator=generator))
        row = torch.randint(7, V, (n,), generator=generator)
        row[int(torch.randint(0, len(row), (), generator=generator))] = GOOD if y else BAD
        rows.append(torch.cat([torch.tensor([2]), row, torch.tensor([3])]))
    length = torch.tensor([len(row) for row in rows])
    return Encoded(
        ids=torch.cat(rows).int(), offset=length.cumsum(0) - length, length=length, uncut=length,
        label=label, rating=torch.where(label.bool(), 9, 2), is_test=torch.zeros(count).bool(),
        pad_id=0, digest="toy", pieces_digest="toy",
    )  # fmt: skip


ENCODED = toy()


def encoder(dropout: float = 0.1) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, initializer_range=0.2,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def trainer(model: dict | None = None, dropout: float = 0.1, **training) -> Trainer:
    classifier = BertClassifier(encoder(dropout), BertSpec(**(model or {})))
    spec = BertTrainSpec(**({"epochs": 3, "lr": 2e-3, "batch_size": 16, "max_len": 12} | training))
    return Trainer(classifier, ENCODED, spec, CPU)


def weights(given: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in given.model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# the optimiser and its rates


def test_only_matrices_decay_and_the_head_has_a_rate_of_its_own():
    model = trainer({"head_sizes": (4,)}).model
    spec = BertTrainSpec(lr=1e-3, head_lr=1e-2, weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = {}
    for group in make_optimiser(model, spec).param_groups:
        for p in group["params"]:
            seen[names[id(p)]] = (group["initial_lr"], group["weight_decay"])
    assert seen.keys() == set(names.values())
    for name, (lr, decay) in seen.items():
        assert lr == (1e-2 if name.startswith("head") else 1e-3)
        assert decay == (0 if name.endswith("bias") or "LayerNorm" in name else 0.1)
    same_rate = make_optimiser(model, BertTrainSpec(lr=1e-3)).param_groups
    assert {group["initial_lr"] for group in same_rate} == {1e-3}


def test_the_linear_schedule_is_transformers_own():
    spec = BertTrainSpec(epochs=3, warmup=0.2)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    expected = get_linear_schedule_with_warmup(optimiser, 6, 30)
    for step in range(30):
        assert rate(spec, step, 10) == pytest.approx(expected.get_last_lr()[0])
        optimiser.step()
        expected.step()
    assert [rate(spec, step, 10) for step in (0, 3, 6, 18)] == [0, 0.5, 1, 0.5]


def test_a_rate_stays_or_is_halved():
    constant = BertTrainSpec(epochs=12, schedule="constant", warmup=0.0)
    assert {rate(constant, step, 10) for step in range(120)} == {1.0}
    halved = BertTrainSpec(epochs=12, schedule="halve", warmup=0.0, halve_every=5)
    steps = (0, 49, 50, 99, 100, 119)
    assert [rate(halved, step, 10) for step in steps] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    warm = BertTrainSpec(epochs=12, schedule="constant", warmup=0.1)
    assert [rate(warm, step, 10) for step in (0, 6, 12, 119)] == [0, 0.5, 1, 1]


def test_every_step_takes_the_rate_of_its_number():
    given, found, step = trainer(lr=0.002, head_lr=0.004, warmup=0.0), [], None
    step = given._step

    def recording(index):
        found.append([group["lr"] for group in given.optimiser.param_groups])
        return step(index)

    given._step = recording
    given.fit(TRAIN, DEV, 0)
    shares = [1 - k / 9 for k in range(9)]  # 3 epochs of 3 batches
    assert found == [pytest.approx([0.002 * s] * 2 + [0.004 * s] * 2) for s in shares]


def test_clipping_bounds_the_norm_of_all_gradients_together():
    norms = {}
    for clip in (0.0, 0.01):
        given = trainer(clip=clip)
        given._step(TRAIN)
        grads = [p.grad for p in given.model.parameters()]
        norms[clip] = float(torch.nn.utils.get_total_norm(grads))
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
    assert norms[0.0] > 0.05


def test_a_step_is_that_of_plain_torch():
    given, plain = trainer(dropout=0, model={"dropout": 0.0}), trainer(dropout=0)
    sums = given._step(TRAIN[:16])
    X, mask = pad(ENCODED, TRAIN[:16])
    logits, y = plain.model.eval()(X, mask), ENCODED.label[:16]
    loss = F.cross_entropy(logits, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
    assert sums.tolist() == pytest.approx([16 * loss.item(), (logits.argmax(1) == y).sum().item()])
    for one, other in zip(given.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_processes_share_a_batch_and_together_take_its_mean():
    """Two stand-ins for processes: their gradients' mean is that of one; 17 = 9 + 8 reviews."""
    for size in (17, 1):  # with one review the second process has none
        whole = trainer(dropout=0, model={"dropout": 0.0}, clip=0.0)
        total, parts, grads = whole._step(TRAIN[:size]), [], []
        for rank in (0, 1):
            given = trainer(dropout=0, model={"dropout": 0.0}, clip=0.0)
            given.rank, given.processes = rank, 2
            parts.append(given._step(TRAIN[:size]))
            grads.append([p.grad for p in given.model.parameters()])
        assert sum(parts).tolist() == pytest.approx(total.tolist())
        for expected, *both in zip(whole.model.parameters(), *grads, strict=True):
            torch.testing.assert_close(sum(both) / 2, expected.grad, rtol=1e-4, atol=1e-7)


# evaluation and padding


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_position"])
def test_padding_to_a_fixed_length_changes_nothing(pooling, monkeypatch):
    """The last position is that of the fixed length, however the reviews are batched."""
    found = []
    for size, fixed in ((64, False), (64, True), (3, False)):
        monkeypatch.setattr(bert_training, "EVALUATION_BATCH", size)
        found.append(trainer({"pooling": pooling}, fixed=fixed).probabilities(CURVE))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-6)


def test_scores_are_those_of_the_plain_model():
    given = trainer()
    found = given.probabilities(CURVE)
    X, mask = pad(ENCODED, CURVE)
    p = given.model.eval()(X, mask).softmax(1)[:, 1].detach()
    torch.testing.assert_close(found, p, rtol=0, atol=1e-6)
    y = ENCODED.label[CURVE]
    loss, share = given.score(CURVE)
    assert loss == pytest.approx(F.binary_cross_entropy(p, y.float()).item(), rel=1e-4)
    assert share == pytest.approx(((p >= 0.5) == y.bool()).double().mean().item())


def test_reviews_longer_than_the_training_reads_are_refused():
    with pytest.raises(ValueError, match="a review has 11 pieces, the training reads 8: encode"):
        trainer(max_len=8)


# fitting


def test_a_word_that_decides_is_learned_and_the_best_epoch_is_kept():
    given, states = trainer(epochs=10, lr=0.02, schedule="constant"), []
    train_epoch = given.train_epoch

    def recording(*arguments):
        row = train_epoch(*arguments)
        states.append(weights(given))
        return row

    given.train_epoch = recording
    done = []
    history = given.fit(TRAIN, DEV, 1, curve=CURVE, progress=lambda *a: done.append(a))
    best = int(history["best_epoch"])
    assert history["dev_accuracy"].max() > 0.9
    assert best == int(history["dev_accuracy"].argmax()) + 1 < 10
    assert same(weights(given), states[best - 1])
    assert not same(weights(given), states[-1])
    assert given.score(DEV)[1] == pytest.approx(float(history["dev_accuracy"][best - 1]))
    assert done == [(step, 30) for step in range(0, 30, 5)]
    names = {"train_loss", "train_accuracy", "seconds", "dev_loss", "dev_accuracy",
             "curve_loss", "curve_accuracy"}  # fmt: skip
    assert history.keys() == names | {"best_epoch"}
    assert all(history[name].shape == (10,) for name in names)


def test_rounded_products_learn_the_same():
    """Training and scores in bfloat16 differ a little from those in float32, and learn as well."""
    exact, rounded = (
        trainer(dropout=0.0, precision=precision, epochs=12)
        for precision in ("float32", "bfloat16")
    )
    histories = [given.fit(TRAIN, DEV, 0) for given in (exact, rounded)]
    losses = [history["train_loss"] for history in histories]
    assert not torch.equal(*losses)
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=0.03)
    assert losses[1][-1] < losses[1][0] - 0.1
    assert all(p.dtype == torch.float32 for p in rounded.model.parameters())
    states = rounded.optimiser.state_dict()["state"].values()
    assert all(value.dtype == torch.float32 for state in states for value in state.values())
    p = rounded.probabilities(DEV)
    with torch.no_grad():
        rounded.spec = BertTrainSpec(max_len=12)
        assert 0 < (rounded.probabilities(DEV) - p).abs().max() < 0.05


def test_a_frozen_encoder_does_not_move():
    given = trainer({"frozen": True}, epochs=1)
    before = weights(given)
    given.fit(TRAIN, DEV, 0)
    moved = {name for name, value in weights(given).items() if not torch.equal(value, before[name])}
    assert moved == {"head.0.weight", "head.0.bias"}


def test_the_seed_decides_order_and_dropout():
    histories = []
    for seed in (3, 3, 4):
        given = trainer(epochs=1)
        torch.rand(len(histories) + 1)  # whatever was drawn before
        histories.append(given.fit(TRAIN, DEV, seed)["train_loss"])
    assert torch.equal(histories[0], histories[1])
    assert not torch.equal(histories[0], histories[2])


def test_every_step_of_every_process_drops_anew():
    seeds = []
    for rank in (0, 1):
        given = trainer(epochs=2)
        given.rank, given.processes = rank, 2
        plain = given._step
        given._step = lambda index, plain=plain: seeds.append(torch.initial_seed()) or plain(index)
        given.fit(TRAIN, DEV, 3)
    assert len(set(seeds)) == len(seeds) == 12


def test_a_loss_that_is_no_number_stops_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(bert_training, "KEEP_SECONDS", 0.0)
    for keep in (None, tmp_path):
        with pytest.raises(ValueError, match=r"the loss is (nan|inf): take a smaller lr, or clip"):
            trainer(lr=1e38, clip=0.0, warmup=0.0).fit(TRAIN, DEV, 0, keep=keep)


# resuming


class Killed(Exception):
    pass


def killed_at(step: int, keep, monkeypatch, **training) -> None:
    """A run that ends just before its step of this number, from 0."""
    given, count, plain = trainer(**training), 0, None
    plain = given._step

    def dying(index):
        nonlocal count
        count += 1
        if count > step:
            raise Killed
        return plain(index)

    given._step = dying
    with pytest.raises(Killed):
        given.fit(TRAIN, DEV, 1, keep=keep)


@pytest.mark.parametrize("step", [3, 4, 8])  # 3 batches an epoch: at a boundary, within, at last
@pytest.mark.parametrize("seconds", [0.0, 600.0])  # kept after every step, or every epoch only
def test_a_run_that_was_killed_ends_as_one_that_was_not(step, seconds, tmp_path, monkeypatch):
    monkeypatch.setattr(bert_training, "KEEP_SECONDS", seconds)
    whole = trainer(lr=5e-3)
    expected = whole.fit(TRAIN, DEV, 1)
    killed_at(step, tmp_path, monkeypatch, lr=5e-3)

    resumed, steps = trainer(lr=5e-3), []
    plain = resumed._step
    resumed._step = lambda index: steps.append(index) or plain(index)
    torch.rand(7)  # whatever was drawn before
    found = resumed.fit(TRAIN, DEV, 1, keep=tmp_path)
    assert len(steps) == 9 - (step if seconds == 0 else step // 3 * 3)
    for name in NOT_TIMES:
        assert torch.equal(found[name], expected[name]), name
    assert same(weights(resumed), weights(whole))
    state = resumed.optimiser.state_dict()["state"]
    for number, values in whole.optimiser.state_dict()["state"].items():
        assert same(values, state[number])


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = trainer()
    expected = first.fit(TRAIN, DEV, 1, keep=tmp_path)
    again = trainer()
    again._step = lambda index: pytest.fail("trained again")
    found = again.fit(TRAIN, DEV, 1, keep=tmp_path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert same(weights(again), weights(first))
    assert same(load_file(tmp_path / "best.safetensors"), weights(first))


def test_what_is_kept_is_safetensors_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *a, **k: pytest.fail("pickled"))
    trainer(epochs=1).fit(TRAIN, DEV, 1, keep=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"state.safetensors", "best.safetensors"}
    state = load_file(tmp_path / "state.safetensors")
    assert {name.split(".")[0] for name in state} == {"model", "optimiser"}


def test_the_folder_of_another_training_is_refused(tmp_path):
    trainer(epochs=1).fit(TRAIN, DEV, 1, keep=tmp_path)
    for other, seed, train, message in (
        (trainer(epochs=2), 1, TRAIN, "another training:"),
        (trainer(epochs=1), 2, TRAIN, "another seed:"),
        (trainer(epochs=1), 1, TRAIN[1:], "another start and reviews:"),
        (trainer({"dropout": 0.3}, epochs=1), 1, TRAIN, "another model:"),
    ):
        with pytest.raises(ValueError, match=f"holds another training, with {message} name"):
            other.fit(train, DEV, seed, keep=tmp_path)


@pytest.mark.parametrize("name", ["state", "best"])
def test_a_damaged_file_means_a_start_from_the_beginning(name, tmp_path):
    expected = trainer(epochs=1).fit(TRAIN, DEV, 1, keep=tmp_path)
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    found = trainer(epochs=1).fit(TRAIN, DEV, 1, keep=tmp_path)
    assert torch.equal(found["train_loss"], expected["train_loss"])
    load_file(path)


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(bert_training, "KEEP_SECONDS", 0.0)
    keeper, given = Keeper(tmp_path, {}, write=False), trainer()
    keeper.store(given.model, given.optimiser, Run())
    keeper.store_best(given.model)
    assert not keeper.is_due()
    assert not list(tmp_path.iterdir())
    assert same(keeper.best, weights(given))


def test_a_state_is_kept_when_the_time_has_come(monkeypatch, tmp_path):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(bert_training.time, "monotonic", lambda: clock.now)
    keeper = Keeper(tmp_path, {})
    assert not keeper.is_due()
    clock.now = 600.0
    assert keeper.is_due()
    assert not Keeper(None, {}).is_due()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"schedule": "cosine"}, r"BertTrainSpec\.schedule must be one of .*got 'cosine'"),
        ({"precision": "half"}, r"BertTrainSpec\.precision must be one of .*got 'half'"),
        ({"epochs": 0}, r"BertTrainSpec\.epochs must be at least 1"),
        ({"lr": -1.0}, r"BertTrainSpec\.lr must not be negative"),
        ({"warmup": 1.0}, r"BertTrainSpec\.warmup must be at least 0 and below 1, got 1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BertTrainSpec(**options)


def test_ten_classes_are_ratings():
    given = trainer({"num_classes": 10}, epochs=2, lr=1e-2)
    _, _, y = given._batch(TRAIN)
    assert torch.equal(y + 1, ENCODED.rating[TRAIN])
    p = given.probabilities(CURVE)
    X, mask = pad(ENCODED, CURVE)
    expected = given.model.eval()(X, mask).softmax(1)[:, 5:].sum(1).detach()
    torch.testing.assert_close(p, expected, rtol=0, atol=1e-6)
    assert math.isfinite(float(given.fit(TRAIN, DEV, 0)["train_loss"][-1]))

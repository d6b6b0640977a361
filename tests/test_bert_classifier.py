"""The BERT classifier: what each pooling sees, the head, the frozen encoder."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from labkit.bert.model import (
    POOLINGS,
    BertClassifier,
    BertSpec,
    fastest_precision,
    mixed,
    parameter_counts,
    pool,
)

H, V = 16, 30


def encoder(seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=V, hidden_size=H, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def classifier(**spec) -> BertClassifier:
    return BertClassifier(encoder(), BertSpec(**spec))


def batch(T: int, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Reviews of 7, 3 and 5 pieces in T positions."""
    length = torch.tensor([7, 3, 5]).unsqueeze(1)
    X = torch.randint(1, V, (3, 7), generator=torch.Generator().manual_seed(0))
    X = torch.nn.functional.pad(X, (0, T - 7), value=padding)
    mask = torch.arange(T) < length
    return X.where(mask, torch.tensor(padding)), mask


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_reaches_the_last_position_only(pooling):
    """Other padding and more of it changes nothing, but for the mistake that is there to show."""
    model = classifier(pooling=pooling).eval()
    with torch.no_grad():
        plain, other, longer = (model(*batch(*args)) for args in ((8, 0), (8, 9), (12, 0)))
    same = pooling != "last_position"
    for changed in (other, longer):
        assert torch.allclose(changed, plain, rtol=0, atol=1e-5) == same
        assert same or ((changed - plain).abs().max(1).values > 1e-3).all()


def test_a_review_does_not_depend_on_its_neighbours():
    model = classifier().eval()
    X, mask = batch(7)
    with torch.no_grad():
        together, alone = model(X, mask)[1:2], model(X[1:2, :3], mask[1:2, :3])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_pooling_by_hand():
    hidden = torch.arange(12.0).view(2, 3, 2)
    hidden[1, 2] = torch.nan  # whatever stands behind a review
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    for given in (mask, mask.bool()):
        assert pool(hidden, given, "cls").tolist() == [[0, 1], [6, 7]]
        assert pool(hidden, given, "mean").tolist() == [[2, 3], [7, 8]]
        assert pool(hidden[:1], given[:1], "last_position").tolist() == [[4, 5]]


@pytest.mark.parametrize("sizes, widths", [((), [2]), ((5,), [5, 2]), ([6, 5, 4], [6, 5, 4, 2])])
def test_the_head_has_a_relu_behind_each_hidden_layer(sizes, widths):
    head = classifier(head_sizes=sizes).head
    linear = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linear] == widths
    assert linear[0].in_features == H
    assert [type(layer).__name__ for layer in head[1::2]] == ["ReLU"] * (len(widths) - 1)


def test_dropout_acts_while_training_only():
    model = classifier(dropout=0.5, frozen=True).train()
    X, mask = batch(7)
    assert not torch.equal(model(X, mask), model(X, mask))
    model.eval()
    assert torch.equal(model(X, mask), model(X, mask))


def test_a_frozen_encoder_drops_nothing_and_gets_no_gradient():
    model = classifier(frozen=True, dropout=0.0).train()
    assert model.training
    assert not any(module.training for module in model.encoder.modules())
    X, mask = batch(7)
    first = model(X, mask)
    assert torch.equal(first, model(X, mask))
    first.sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
    total, trained = parameter_counts(model)
    assert trained == 2 * H + 2 < total
    assert parameter_counts(classifier()) == (total, total)
    assert classifier().train().encoder.training


def test_a_random_start_keeps_the_architecture():
    pretrained = encoder()
    torch.manual_seed(5)
    model = BertClassifier(pretrained, BertSpec(pretrained=False))
    ours, theirs = model.encoder.state_dict(), pretrained.state_dict()
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in theirs.items()}
    matrices = [name for name, value in ours.items() if value.ndim > 1]
    assert not any(torch.equal(ours[name], theirs[name]) for name in matrices)
    assert BertClassifier(pretrained, BertSpec()).encoder is pretrained


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pooling": "max"}, r"BertSpec\.pooling must be one of cls, mean, last_position; .*'max'"),
        ({"dropout": 1.0}, r"BertSpec\.dropout must be at least 0 and below 1, got 1"),
        ({"head_sizes": (4, 0)}, r"BertSpec\.head_sizes must be at least 1"),
        ({"num_classes": 3}, r"BertSpec\.num_classes must be 2 or 10, got 3"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BertSpec(**options)


def test_settings_from_a_file_are_those_of_the_code():
    assert BertSpec(head_sizes=[4, 3]) == BertSpec(head_sizes=(4, 3))
    assert hash(BertSpec(head_sizes=[4])) == hash(BertSpec(head_sizes=(4,)))


@pytest.mark.parametrize(
    "units, expected",
    [
        ({}, "float32"),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
    ],
)
def test_a_processor_takes_the_precision_that_it_has_units_for(units, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert fastest_precision(torch.device("cpu")) == expected


@pytest.mark.parametrize("able, expected", [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_that_only_imitates_bfloat16_takes_float32(able, expected, monkeypatch):
    asked = []

    def is_supported(**given):
        asked.append(given)
        return able

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert fastest_precision(torch.device("cuda")) == expected
    assert asked == [{"including_emulation": False}]


def test_products_are_rounded_and_what_is_added_up_is_not():
    """In bfloat16 the linear layers answer in 16 bits; LayerNorm and pooling stay with 32."""
    model = classifier().eval()
    kinds = {}
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.LayerNorm):
            keep = kinds.setdefault(type(layer).__name__, set())
            layer.register_forward_hook(lambda _, __, out, keep=keep: keep.add(out.dtype))
    with torch.no_grad():
        exact = model(*batch(8))
        assert kinds == {"Linear": {torch.float32}, "LayerNorm": {torch.float32}}
        with mixed(torch.device("cpu"), "bfloat16"):
            rounded = model(*batch(8))
    assert kinds == {"Linear": {torch.float32, torch.bfloat16}, "LayerNorm": {torch.float32}}
    assert 0 < (rounded.float() - exact).abs().max() < 0.02
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16; got 'int8'"):
        mixed(torch.device("cpu"), "int8")

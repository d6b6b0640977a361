"""The BERT classifier: what each pooling sees, the head, its precision; the tiny model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import BertConfig, BertModel

from labkit.bert import model as bert
from labkit.bert.model import POOLINGS, BertClassifier, ClassifierSpec, fastest_precision, mixed
from labkit.film import corpus as reviews

H, V = 16, 30


def encoder(**options) -> BertModel:
    """A small BERT, always the same."""
    sizes = {
        "vocab_size": V, "hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40,
    }  # fmt: skip
    torch.manual_seed(0)
    return BertModel(BertConfig(**sizes | options), add_pooling_layer=False)


def classifier(pooling: str = "mean", **spec) -> BertClassifier:
    return BertClassifier(encoder(), ClassifierSpec(pooling=pooling, **spec))


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
    model = classifier(pooling).eval()
    with torch.no_grad():
        plain, other, longer = (model(*batch(*args)) for args in ((8, 0), (8, 9), (12, 0)))
    same = pooling != "last_position"
    for changed in (other, longer):
        assert torch.allclose(changed, plain, rtol=0, atol=1e-5) == same
        assert same or ((changed - plain).abs().max(1).values > 1e-3).all()


def test_pooling_by_hand():
    hidden = torch.arange(12.0).view(2, 3, 2)
    hidden[1, 2] = torch.nan  # whatever stands behind a review
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    for given in (mask, mask.bool()):
        assert bert.pool(hidden, given, "cls").tolist() == [[0, 1], [6, 7]]
        assert bert.pool(hidden, given, "mean").tolist() == [[2, 3], [7, 8]]
        assert bert.pool(hidden[:1], given[:1], "last_position").tolist() == [[4, 5]]


def test_the_head_is_linear_or_has_one_hidden_layer_behind_a_dropout():
    assert [type(layer).__name__ for layer in classifier().head] == ["Linear"]
    model = classifier(head_size=5, dropout=0.5).train()
    assert [type(layer).__name__ for layer in model.head] == ["Linear", "ReLU", "Linear"]
    model.encoder.eval()
    assert not torch.equal(model(*batch(7)), model(*batch(7)))
    model.eval()
    assert torch.equal(model(*batch(7)), model(*batch(7)))


def test_a_random_start_keeps_the_architecture_and_no_weight():
    pretrained = encoder()
    torch.manual_seed(5)
    random = BertClassifier(pretrained, ClassifierSpec(pooling="cls", pretrained=False))
    ours, theirs = random.encoder.state_dict(), pretrained.state_dict()
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in theirs.items()}
    matrices = [name for name, value in ours.items() if value.ndim > 1]
    assert not any(torch.equal(ours[name], theirs[name]) for name in matrices)
    assert BertClassifier(pretrained, ClassifierSpec(pooling="cls")).encoder is pretrained


@pytest.mark.parametrize("able, expected", [(True, "bfloat16"), (False, "float32")])
def test_a_device_that_only_imitates_bfloat16_takes_float32(able, expected, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: able or including_emulation
    )
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": able})
    assert fastest_precision(torch.device("cuda")) == expected
    assert fastest_precision(torch.device("cpu")) == expected


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
        with mixed("cpu", "bfloat16"):
            rounded = model(*batch(8))
    assert kinds == {"Linear": {torch.float32, torch.bfloat16}, "LayerNorm": {torch.float32}}
    assert 0 < (rounded.float() - exact).abs().max() < 0.02
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_the_tiny_model_is_the_same_in_another_process_and_repairs_itself():
    """Its folder is named by its content, so equal paths are equal models."""
    state = torch.get_rng_state()
    bert.tiny.cache_clear()
    path = bert.tiny() / "model.safetensors"
    assert torch.equal(torch.get_rng_state(), state)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    code = "from labkit.bert.model import tiny; print(tiny())"
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240
    )
    assert there.stdout.strip() == str(path.parent)
    assert path.read_bytes() == content


def test_the_tiny_models_words_are_learned_from_the_training_reviews_alone(monkeypatch):
    learned = []
    monkeypatch.setattr(
        bert.BertWordPieceTokenizer,
        "train_from_iterator",
        lambda self, texts, *_, **__: learned.extend(texts),
    )
    monkeypatch.setattr(bert, "words_of", lambda learner: list(bert.SPECIAL))
    bert.tiny.__wrapped__()
    monkeypatch.undo()
    texts = [review.text.replace("<br />", " ") for review in reviews.read("generated")]
    split = reviews.load("generated", 2_001).split()
    assert learned == [texts[n] for n in split["train"].tolist()]
    tokenizer = bert.load_tokenizer(bert.find("tiny"))
    ids = tokenizer([text.upper() for text in learned[:300]])["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert tokenizer.convert_tokens_to_ids(list(bert.SPECIAL)) == [0, 1, 2, 3, 4]

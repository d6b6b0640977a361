"""The review classifier: embedding, recurrent layers, one vector for the review, head.

Shapes: B reviews, T words, E embedding, H hidden units, D directions (1 or 2), C classes. What
stands behind a review's length never reaches a result: a backward direction starts at the review's
own last word, and pooling looks at its words only.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from labkit.cells import layers
from labkit.film.corpus import PAD_ID
from labkit.lab.store import specification

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
TORCH_LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
Share = Annotated[float, Field(ge=0, lt=1)]
States = list[Tensor | tuple[Tensor, Tensor]] | None  # one for each layer and direction


@specification
class ReviewSpec:
    """What a review model is, apart from its seed.

    `cell`: torch's RNN, LSTM or GRU; "handwritten", the LSTM of chapter 01 with its Xavier start,
    computed by `nn.LSTM` from the same weights; "none" pools the embeddings, a bag of words.
    `pooling`: what stands for a review. "last": the state of each direction after its last word;
    "mean", "max": over the review's words; "mean_max": both, side by side; "last_step": the outputs
    at the last word, where a backward direction has read one word only.
    `vectors`: "learned", from a random start; "pretrained", and fixed; "tuned", pretrained, then
    trained; "random", fixed random vectors for the words that have a pretrained one.
    `places`: in the handwritten cell's stead so many LSTMs, one for each place in a batch; see
    `LSTMOfPlaces`.
    """

    cell: Literal["rnn", "lstm", "gru", "handwritten", "none"] = "lstm"
    embedding_size: PositiveInt = 64
    hidden_size: PositiveInt = 64
    num_layers: PositiveInt = 1
    bidirectional: bool = False
    pooling: Literal["last", "mean", "max", "mean_max", "last_step"] = "last"
    skip: bool = False  # each word's embedding is pooled beside the recurrent output
    head_size: NonNegativeInt = 0  # units of the head's hidden layer; 0: none
    activation: Literal["relu", "tanh"] = "relu"
    dropout: Share = 0.0
    embedding_dropout: Share = 0.0
    embedding_scale: NonNegativeFloat = 1.0  # standard deviation of learned vectors at their start
    vectors: Literal["learned", "pretrained", "tuned", "random"] = "learned"
    places: NonNegativeInt = 0  # 0: one LSTM for all
    num_classes: Annotated[int, Field(ge=2)] = 2  # 10 for the ratings 1 to 10

    @model_validator(mode="after")
    def _fits_together(self) -> ReviewSpec:
        if self.skip and self.pooling in ("last", "last_step"):
            raise ValueError(f"skip needs a pooling over time, not {self.pooling!r}")
        if self.places and self.cell != "handwritten":
            raise ValueError(f"places need the handwritten cell, not {self.cell!r}")
        return self


class ReviewClassifier(nn.Module):
    """Numbered words X (B, T) and lengths (B,) in, logits (B, C) out."""

    def __init__(self, spec: ReviewSpec, vocab_size: int, table: Tensor | None = None) -> None:
        """`table` (V, E) holds pretrained vectors, zero for words without one."""
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(vocab_size, spec.embedding_size, padding_idx=PAD_ID)
        self._start_embedding(table)

        D = 2 if spec.bidirectional else 1
        sizes = [spec.embedding_size] + [D * spec.hidden_size] * spec.num_layers
        if spec.cell == "none":
            sizes = sizes[:1]
        self.layers = nn.ModuleList(
            nn.ModuleList(_layer(spec, size) for _ in range(D)) for size in sizes[:-1]
        )

        width = sizes[-1] + (spec.embedding_size if spec.skip else 0)
        pooled = width * (2 if spec.pooling == "mean_max" else 1)
        self.embedding_dropout = nn.Dropout(spec.embedding_dropout)
        self.dropout = nn.Dropout(spec.dropout)
        self.head = nn.Linear(pooled, spec.num_classes)
        if spec.head_size:
            self.head = nn.Sequential(
                nn.Linear(pooled, spec.head_size),
                ACTIVATIONS[spec.activation](),
                nn.Linear(spec.head_size, spec.num_classes),
            )

    def forward(self, X: Tensor, length: Tensor, states: States = None) -> Tensor:
        """Logits (B, C); `states` are taken up and replaced by the final ones, where given."""
        output = self.run(X, length, states)  # (B, T, D*H)
        return self.head(self.dropout(pool(output, length, self.spec)))

    def run(self, X: Tensor, length: Tensor, states: States = None) -> Tensor:
        """The top layer's outputs (B, T, D*H), forward direction first; with `skip` E more."""
        words = Z = self.embedding_dropout(self.embedding(X))  # (B, T, E)
        back = backward_order(X.shape[1], length)  # (B, T)
        given, ends = list(states or []), []
        for layer in self.layers:
            outputs = []
            for direction, module in enumerate(layer):
                start = given.pop(0) if given else None
                output, end = module(_take(Z, back) if direction else Z, start)
                outputs.append(_take(output, back) if direction else output)
                ends.append(end)
            Z = torch.cat(outputs, dim=-1)  # (B, T, D*H)
        if states is not None:
            states[:] = ends
        return torch.cat([Z, words], dim=-1) if self.spec.skip else Z

    @torch.no_grad()
    def _start_embedding(self, table: Tensor | None) -> None:
        kind, weight = self.spec.vectors, self.embedding.weight
        if kind == "learned":
            weight.mul_(self.spec.embedding_scale)
            return
        if table is None:
            raise ValueError(f"vectors {kind!r} need a table {tuple(weight.shape)}")
        if kind == "random":  # as long as the pretrained ones
            known = table.abs().sum(1, keepdim=True) > 0  # (V, 1)
            weight.mul_(table[known.squeeze(1)].std()).mul_(known)
        else:
            weight.copy_(table)
        weight.requires_grad_(kind == "tuned")


def _layer(spec: ReviewSpec, input_size: int) -> nn.Module:
    """One layer in one direction, (B, T, I) in, (B, T, H) out."""
    if spec.places:
        return LSTMOfPlaces(input_size, spec.hidden_size, spec.places)
    if spec.cell != "handwritten":
        return TORCH_LAYERS[spec.cell](input_size, spec.hidden_size, batch_first=True)
    written = layers.LSTM(input_size, spec.hidden_size)
    with torch.random.fork_rng(devices=[]):  # nn.LSTM draws a start that is overwritten
        layer = layers.to_torch(written)
    layer.bias_hh_l0.requires_grad_(False)  # it is zero; trained, it would double the first's steps
    return layer


class LSTMOfPlaces(nn.Module):
    """P LSTMs that share no weight: the review at place p of a batch is read by the p-th.

    `torch.bmm(weight, x)` does that where each place has a weight of its own, (P, 4H, I), and not
    one of (4H, I) expanded. Each LSTM then sees one review of every batch.
    """

    def __init__(self, input_size: int, hidden_size: int, places: int) -> None:
        super().__init__()
        each = [layers.to_torch(layers.LSTM(input_size, hidden_size)) for _ in range(places)]
        self.W = nn.Parameter(torch.stack([e.weight_ih_l0.detach() for e in each]))  # (P, 4H, I)
        self.U = nn.Parameter(torch.stack([e.weight_hh_l0.detach() for e in each]))  # (P, 4H, H)
        self.b = nn.Parameter(torch.stack([e.bias_ih_l0.detach() for e in each]))  # (P, 4H)

    def forward(self, X: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple:
        """Outputs (B, T, H) for X (B, T, I), B at most P, and the last h and c, (B, H, 1) each."""
        B, H = len(X), self.U.shape[2]
        h, c = state or (X.new_zeros(B, H, 1),) * 2
        inputs = torch.baddbmm(self.b[:B].unsqueeze(1), X, self.W[:B].mT)  # (B, T, 4H)
        U, outputs = self.U[:B], []
        for z in inputs.unsqueeze(-1).unbind(1):
            i, f, g, o = (z + torch.bmm(U, h)).chunk(4, dim=1)  # (B, H, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.cat(outputs, dim=2).mT, (h, c)


def backward_order(T: int, length: Tensor) -> Tensor:
    """For each step (B, T) the one that a backward direction reads: words reversed, padding not."""
    step = torch.arange(T, device=length.device).expand(len(length), T)
    reverse = length.unsqueeze(1) - 1 - step
    return torch.where(reverse >= 0, reverse, step)


def _take(Z: Tensor, step: Tensor) -> Tensor:
    """Z (B, T, F) with its steps in another order, (B, T) of them."""
    # not by gather: to repeat its gradient, a GPU would sort B*T*F places and not B*T
    return Z[torch.arange(len(Z), device=Z.device).unsqueeze(1), step]


def pool(output: Tensor, length: Tensor, spec: ReviewSpec) -> Tensor:
    """One vector for each review from the outputs (B, T, D*H) of all its steps."""
    if spec.pooling in ("last", "last_step"):
        at_end = output[torch.arange(len(output), device=output.device), length - 1]  # (B, D*H)
        if spec.pooling == "last_step" or not spec.bidirectional:
            return at_end
        H = spec.hidden_size  # the backward direction ends at the first step
        return torch.cat([at_end[:, :H], output[:, 0, H:]], dim=1)

    step = torch.arange(output.shape[1], device=output.device)
    is_word = (step < length.unsqueeze(1)).unsqueeze(-1)  # (B, T, 1)
    parts = []
    if spec.pooling != "max":
        parts.append(output.mul(is_word).sum(1) / length.unsqueeze(1))
    if spec.pooling != "mean":
        parts.append(output.masked_fill(~is_word, -torch.inf).amax(1))
    return torch.cat(parts, dim=1)

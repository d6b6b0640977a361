"""Answers to the exercises of chapter 06."""

import math

import torch

from answers import Answers, each
from labkit.lab.exercises import load

exercises = load("06_sine_forecast")

NAMES = {"math": math, "torch": torch}

WINDOW_LOSS = Answers(
    exercises.window_loss,
    names=NAMES,
    right=each("""
def answer(outputs, y, every):
    error = outputs - y
    if not every:
        error = error[..., -1:]
    return (error**2 / 2).mean(dim=(1, 2))

def answer(outputs, y, every):
    halves = (outputs - y).square() / 2
    return halves.mean(-1).mean(-1) if every else halves[:, :, -1].mean(-1)

def answer(outputs, y, every):
    R, B, T = outputs.shape
    first = 0 if every else T - 1
    total = [((outputs[r, :, first:] - y[:, first:]) ** 2).sum() for r in range(R)]
    return torch.stack(total) / (2 * B * (T - first))

def answer(outputs, y, every):
    weights = torch.ones(y.shape[-1]) if every else torch.eye(y.shape[-1])[-1]
    square = (outputs - y).square() * weights / weights.sum()
    return 0.5 * square.sum(-1).mean(1)
"""),
    wrong={
        "no half": ("**2 / 2", "**2"),
        "turned round": ("if not every", "if every"),
        "every step in both cases": ("if not every", "if False"),
        "the last step in both cases": ("if not every", "if True"),
        "the first step": ("-1:", ":1"),
        "steps added up": (".mean(dim=(1, 2))", ".sum(2).mean(1)"),
        "the size": ("error**2", "error.abs()"),
        "averaged before squared": ("(error**2 / 2).mean(dim=(1, 2))", "error.mean((1, 2))**2 / 2"),
        "one number": (".mean(dim=(1, 2))", ".mean()"),
        "windows left": (".mean(dim=(1, 2))", ".mean(dim=2)"),
        "the last window": ("error[..., -1:]", "error[:, -1:]"),
        "the root": (".mean(dim=(1, 2))", ".mean(dim=(1, 2)).sqrt()"),
    },
)

READ_SCAN = Answers(
    exercises.read_scan,
    names=NAMES,
    right=each("""
def answer(rates, dev):
    mean = dev.nan_to_num(nan=math.inf).mean(1)
    best = int(mean.argmin())
    return rates[best], best in (0, len(rates) - 1)

def answer(rates, dev):
    best = None
    for rate, losses in zip(rates, dev.tolist()):
        if any(math.isnan(loss) for loss in losses):
            continue
        if best is None or sum(losses) < best[0]:
            best = sum(losses), rate
    return best[1], best[1] == min(rates) or best[1] == max(rates)

def answer(rates, dev):
    mean = dev.mean(1)
    mean[torch.isnan(mean)] = float("inf")
    k = mean.tolist().index(min(mean.tolist()))
    return rates[k], k == 0 or k + 1 == len(rates)

def answer(rates, dev):
    kept = {r: float(m) for r, m in zip(rates, dev.mean(1)) if m == m}
    best = min(kept, key=kept.get)
    return [best, not min(rates) < best < max(rates)]
"""),
    wrong={
        "the highest loss": ("argmin", "argmax"),
        "the median": (".mean(1)", ".median(1).values"),
        "the luckiest seed": (".mean(1)", ".min(1).values"),
        "the unluckiest seed": (".mean(1)", ".max(1).values"),
        "diverged seeds left out": ("dev.nan_to_num(nan=math.inf).mean(1)", "dev.nanmean(1)"),
        "nan counts as zero": ("nan=math.inf", "nan=0.0"),
        "nan kept": (".nan_to_num(nan=math.inf)", ""),
        "nan wins": ("nan=math.inf", "nan=-math.inf"),
        "the place": ("return rates[best]", "return best"),
        "one edge": ("best in (0, len(rates) - 1)", "best == len(rates) - 1"),
        "the other edge": ("best in (0, len(rates) - 1)", "best == 0"),
        "no edge": ("best in (0, len(rates) - 1)", "False"),
        "off by one": ("len(rates) - 1", "len(rates)"),
        "the rate alone": (", best in (0, len(rates) - 1)", ""),
        "the best over nets": ("mean.argmin()", "dev.mean(0).argmin()"),
    },
)

BATCH_NORM = Answers(
    exercises.batch_norm,
    names=NAMES,
    right=each("""
def answer(x, gain):
    mean = x.mean(dim=2, keepdim=True)
    variance = x.var(dim=2, correction=0, keepdim=True)
    return gain.unsqueeze(2) * (x - mean) / torch.sqrt(variance + 1e-5)

def answer(x, gain):
    B = x.shape[-1]
    centred = x - (x.sum(-1) / B)[..., None]
    variance = (centred**2).sum(-1) / B
    return centred * (gain / (variance + 1e-5) ** 0.5)[..., None]

def answer(x, gain):
    rows = []
    for net, g in zip(x, gain):
        rows.append(torch.nn.functional.batch_norm(net.T, None, None, g, None, True, 0.1, 1e-5).T)
    return torch.stack(rows)

def answer(x, gain):
    scaled = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)
    return torch.einsum("rh,rhb->rhb", gain, scaled)
"""),
    wrong={
        "over the units": ("dim=2", "dim=1"),
        "over the nets": ("dim=2", "dim=0"),
        "one mean a net": ("dim=2", "dim=(1, 2)"),
        "mean not subtracted": ("(x - mean)", "x"),
        "not scaled": (" / torch.sqrt(variance + 1e-5)", ""),
        "by the variance": ("torch.sqrt(variance + 1e-5)", "(variance + 1e-5)"),
        "B minus 1": ("correction=0, ", ""),
        "no gain": ("gain.unsqueeze(2) * ", ""),
        "the gain along the windows": ("gain.unsqueeze(2)", "gain.unsqueeze(1)"),
        "the gain added": ("gain.unsqueeze(2) * (x", "gain.unsqueeze(2) + (x"),
        "times the spread": (" / torch", " * torch"),
        "mean added": ("x - mean", "x + mean"),
    },
)

FORECAST = Answers(
    exercises.forecast,
    names=NAMES,
    right=each("""
def answer(net, warm, N):
    outputs, state = net(warm, None)
    said = [outputs[..., -1:]]
    for _ in range(N - 1):
        outputs, state = net(said[-1], state)
        said.append(outputs[..., -1:])
    return torch.cat(said, dim=-1)

def answer(net, warm, N):
    X, state, values = warm, None, []
    while len(values) < N:
        outputs, state = net(X, state)
        X = outputs[:, :, -1:]
        values.append(X.squeeze(-1))
    return torch.stack(values, dim=-1)

def answer(net, warm, N):
    read = warm.expand(2, *warm.shape)
    for _ in range(N):
        following = net(read, None)[0][..., -1:]
        read = torch.cat([read, following], dim=-1)
    return read[..., -N:]

def answer(net, warm, N):
    outputs, state = net(warm, None)
    said = torch.empty(*outputs.shape[:2], N, dtype=outputs.dtype)
    for k in range(N):
        said[..., k] = outputs[..., -1]
        outputs, state = net(said[..., k : k + 1], state)
    return said
"""),
    wrong={
        "an empty state": ("net(said[-1], state)", "net(said[-1], None)"),
        "the old state": ("outputs, state = net(said", "outputs, _ = net(said"),
        "the last true value": ("net(said[-1]", "net(warm[:, -1:]"),
        "the first output": ("said = [outputs[..., -1:]]", "said = [outputs[..., :1]]"),
        "one step too late": """
def answer(net, warm, N):
    outputs, state = net(warm, None)
    said = [outputs[..., -1:]]
    for _ in range(N):
        outputs, state = net(said[-1], state)
        said.append(outputs[..., -1:])
    return torch.cat(said[1:], dim=-1)
""",
        "one step too many": ("range(N - 1)", "range(N)"),
        "one net": ("torch.cat(said, dim=-1)", "torch.cat(said, dim=-1)[0]"),
        "the output before the newest": ("net(said[-1]", "net(said[-2:][0]"),
        "the true values read twice": ("net(said[-1], state)", "net(warm, state)"),
        "all of the true values too": (
            "torch.cat(said",
            "torch.cat([warm.expand(2, -1, -1), *said]",
        ),
        "the first forecast read on": ("net(said[-1]", "net(said[0]"),
        "along the windows": ("torch.cat(said, dim=-1)", "torch.cat(said, dim=1)"),
    },
)

ANSWERS = [WINDOW_LOSS, READ_SCAN, BATCH_NORM, FORECAST]

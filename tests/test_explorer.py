"""The gate explorer in a browser: its networks, its answers, its keyboard."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch

from labkit.lab import record
from labkit.memory import data
from labkit.memory.figures import EXPLORER
from labkit.memory.figures import explorer as explorer_page
from labkit.memory.model import Ensemble, ModelSpec

DATA = json.loads((EXPLORER / "nets.json").read_text())
REPORTED = record.reported("03_gate_analysis")["measures"]
RUN = """([rows, gate, at, first]) => {
  const { nets, run } = document.querySelector(".gate-explorer").explorer, values = [];
  for (const net of nets) for (const row of rows) {
    const held = gate ? { [gate]: at === "mean" ? net.mean[first][gate] : 1 } : {};
    const { logits, ...trace } = run(net, row, held, first);
    values.push(...logits);
    if (gate) continue;
    for (const name of "ifogch") for (const column of trace[name]) values.push(...column);
  }
  const bytes = new Uint8Array(Float64Array.from(values).buffer), pieces = [];
  for (let k = 0; k < bytes.length; k += 4096)
    pieces.push(String.fromCharCode(...bytes.subarray(k, k + 4096)));
  return btoa(pieces.join(""));
}"""
PAIRS = data.all_pairs(10)
EVERY = torch.cat([data.with_digit(PAIRS.X, p, d) for p in range(2, 10) for d in range(10)])
X = torch.randint(0, 10, (200, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def explorer(browser):
    """The explorer's page; what it says on the console, and what it requests, fails the test."""
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.set_content(f"<!doctype html><main>{explorer_page(DATA)}</main>")
    yield page
    assert said == []
    page.close()


@pytest.fixture(scope="module")
def nets():
    """The exported networks as torch runs them in float64, and their exported mean gates."""
    flat = [np.frombuffer(base64.b64decode(net["numbers"]), "<f4") for net in DATA["nets"]]
    flat = torch.from_numpy(np.stack(flat)).double()
    ensemble = Ensemble(ModelSpec(cell="lstm"), range(len(flat)), dtype=torch.float64)
    shapes = {name: value.shape for name, value in ensemble.state_dict().items()}
    order = [f"recurrent.layers.0.{kind}_{gate}" for gate in "ifoc" for kind in "WUb"]
    order = ["embedding.weight", *order, "head.weight", "head.bias"]
    *values, means = flat.split([*(shapes[n][1:].numel() for n in order), 6 * 32], dim=1)
    ensemble.load_state_dict({n: v.view(shapes[n]) for n, v in zip(order, values, strict=True)})
    return ensemble, means.view(len(flat), 2, 3, 32)


def in_browser(page, gate="", at="", first=0):
    """Logits (R, B, 19), and without a held gate the trace, (R, B, 6, T, H), of all networks."""
    text = page.evaluate(RUN, [X.tolist(), gate, at, first])
    values = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float64)
    values = values.view(len(DATA["nets"]), len(X), -1)
    return values[..., :19], values[..., 19:].unflatten(-1, (-1, 10, 32)) if not gate else None


def test_every_network_has_the_gates_states_and_scores_of_torch(explorer, nets):
    ensemble, _ = nets
    logits, trace = in_browser(explorer)
    assert (logits - ensemble.logits(X)).abs().max() < 1e-6
    for k, (name, values) in enumerate(ensemble.trace(X).items()):
        assert "ifogch"[k] == name
        assert (trace[:, :, k] - values).abs().max() < 1e-6, name


@pytest.mark.parametrize("first", [0, data.ADDENDS])
def test_a_gate_is_held_as_in_the_ablations_of_chapter_03(explorer, nets, first):
    ensemble, means = nets
    trace = ensemble.trace(EVERY)
    for k, gate in enumerate("ifo"):
        mean = means[:, int(first > 0), k]  # (R, H)
        assert (mean - trace[gate][:, :, first:].mean((1, 2))).abs().max() < 1e-6
        for at, value in {"1": 1.0, "mean": mean.unsqueeze(1)}.items():
            wanted = ensemble.logits(X, {gate: value}, first)
            assert (in_browser(explorer, gate, at, first)[0] - wanted).abs().max() < 1e-6


def test_the_networks_and_what_is_said_about_them_are_those_of_the_record(nets):
    ensemble, means = nets
    told = record.reported("03_gate_analysis")["run_id"]
    assert DATA["record"]["run_id"] == told, "03 has a new record: python site/nets.py"
    answers = ensemble.logits(torch.tensor([DATA["digits"]])).argmax(-1)[:, 0].tolist()
    held = {"f": means[:, 0, 1].unsqueeze(1)}
    logits = {"as trained": ensemble.logits(EVERY), "f = mean": ensemble.logits(EVERY, held)}
    hits = {name: (z.argmax(-1) == PAIRS.y.repeat(80)) for name, z in logits.items()}
    for k, net in enumerate(DATA["nets"]):
        start, seed = net["start"], net["seed"]
        assert answers[k] == REPORTED[f"gates/{start}/predictions"][seed]
        for name, accuracy in net["accuracy"].items():
            assert accuracy == REPORTED[f"gates/{start}/accuracy/{name}"]["raw"][seed]
            if name in hits:  # counted in float32 there
                assert hits[name][k].double().mean() == pytest.approx(accuracy, abs=1e-3)


def test_all_is_done_by_keyboard_and_read_aloud(explorer, nets):
    ensemble, _ = nets
    digits = [1, 9, 0, 0, 0, 0, 0, 8, 0, 0]
    trace = ensemble.trace(torch.tensor([digits]))
    answers = ensemble.logits(torch.tensor([digits])).argmax(-1)[:, 0].tolist()
    said, read = (explorer.locator("[aria-live]").nth(k) for k in (0, 1))

    def go(label: str, *keys: str) -> None:
        """Tab to the next control, which must be the one of this label, and press keys there."""
        explorer.keyboard.press("Tab")
        text = "document.activeElement.labels[0].firstChild.textContent"
        assert explorer.evaluate(text) == label
        for key in keys:
            explorer.keyboard.press(key)

    go("10 digits", "Control+A", *"123")
    field = explorer.get_by_label("10 digits")
    help_text = explorer.locator(f"#{field.get_attribute('aria-describedby')}")
    assert field.get_attribute("aria-invalid") == "true"
    assert help_text.inner_text() == "Type 10 digits from 0 to 9."
    explorer.keyboard.press("Control+A")
    explorer.keyboard.type(" ".join(map(str, digits)))
    assert field.get_attribute("aria-invalid") == "false"
    assert said.inner_text().startswith(f"Model 1 predicts {answers[0]}: ")
    go("Step", "ArrowRight", "ArrowRight", "ArrowRight")
    assert "Step 8 reads 8. Unit 1." in read.inner_text()
    go("Hidden unit", "ArrowRight")
    assert "Step 8 reads 8. Unit 2." in read.inner_text()
    forget = trace["f"][0, 0, 7, 1].item()
    assert f"forget gate {forget:.2f}, " in read.inner_text()
    go("Compare with a second model", "Space")
    assert f"Model 2 predicts {answers[1]}: " in said.inner_text()

    go("Start", "x")  # the first letter of its choice
    go("Seed", "2")
    answers = {(net["start"], net["seed"]): a for net, a in zip(DATA["nets"], answers, strict=True)}
    assert said.inner_text().startswith(f"Model 1 predicts {answers['xavier', 2]}: ")
    go("Gate held", "f")
    net = next(n for n in DATA["nets"] if (n["start"], n["seed"]) == ("xavier", 2))
    held = net["accuracy"]["f = mean"]
    model = explorer.get_by_role("region", name="Model 1", exact=True)
    assert f"found this model right on {100 * held:.1f} %" in model.inner_text()
    go("Held at", "1")
    go("Held at steps", "f")
    held = net["accuracy"]["f = 1 from step 3 on"]
    assert f"found this model right on {100 * held:.1f} %" in model.inner_text()
    explorer.keyboard.press("Tab")
    explorer.keyboard.press("Enter")  # opens the table
    row = model.get_by_role("row").nth(2)
    assert row.inner_text().split()[:3:2] == ["2", "1.00"]  # unit 2, its forget gate


def test_a_click_on_a_map_chooses_step_and_unit_and_the_map_says_what_it_shows(explorer, nets):
    map_ = explorer.get_by_role("img", name="Heat map of the forget gate, zero start, seed 1.")
    box = map_.bounding_box()
    map_.click(position={"x": box["width"] * 0.15, "y": box["height"] * 31.5 / 32})
    assert "Step 2 reads 9. Unit 32." in explorer.locator("[aria-live]").nth(1).inner_text()

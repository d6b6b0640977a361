"""The gate explorer's networks: `python site/nets.py` writes static/explorer/nets.json anew.

They are the first LSTMs that chapter 03 trained of each start, whatever they predict, with what its
record says about them. The page around them is static/explorer/explorer.js and explorer.css.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from labkit.lab import code, machine, record, store
from labkit.memory.data import ADDENDS, DIGITS, all_pairs, with_digit
from labkit.memory.model import Ensemble, ModelSpec
from labkit.memory.training import DigitSumTraining

FOLDER = Path(__file__).parent / "static" / "explorer"
SHOWN = 3  # of each start


def explored(ensembles: Mapping[str, Ensemble], digits: Sequence[int]) -> dict[str, Any]:
    """What the explorer needs of LSTMs, by start: "numbers" of each network are its parameters and
    the means of i, f and o, at every step and from step 3 on, that an ablation holds them at."""
    pairs, places = all_pairs(len(digits)), range(ADDENDS, len(digits))
    X = torch.cat([with_digit(pairs.X, p, d) for p in places for d in range(DIGITS)])
    layer = [f"recurrent.layers.0.{kind}_{gate}" for gate in "ifoc" for kind in "WUb"]
    nets = []
    for start, ensemble in ensembles.items():
        trace, spec = ensemble.trace(X), ensemble.spec
        means = [trace[g][:, :, first:].mean((1, 2)) for first in (0, ADDENDS) for g in "ifo"]
        for replica, seed in enumerate(ensemble.seeds):
            p = ensemble.parameters_of(replica)
            parts = [p[name] for name in ("embedding.weight", *layer, "head.weight", "head.bias")]
            flat = torch.cat([part.flatten() for part in (*parts, *(m[replica] for m in means))])
            numbers = base64.b64encode(flat.cpu().numpy().astype("<f4").tobytes()).decode()
            nets.append({"start": start, "seed": seed, "numbers": numbers})
    sizes = {"embedding": spec.embedding_size, "hidden": spec.hidden_size}
    return {"digits": [*digits], **sizes, "nets": nets}


def document(data: Mapping[str, Any]) -> str:
    """The explorer of such networks, as HTML that needs nothing else."""
    style, script = ((FOLDER / f"explorer.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return (
        f'<style>{style}</style><section class="gate-explorer" aria-label="Gate explorer" '
        f'data-lm-suppress-shortcuts="true"><script type="application/json">{json.dumps(data)}'
        f"</script></section><script>{script}</script>"
    )


def export() -> dict[str, Any]:
    """The content of nets.json; networks that are no longer kept are trained."""
    reported = record.reported("03_gate_analysis")
    measures, settings = reported["measures"], reported["settings"]
    published, facts = record.published()["gates"], {"device": reported["provenance"]["device"]}
    facts |= {name: settings[name] for name in ("steps", "evaluate_every")}
    seeds = tuple(range(settings["seed"], settings["seed"] + settings["num_seeds"]))
    ensembles, starts = {}, {}
    for start in settings["starts"]:
        model = ModelSpec(cell="lstm", init=start)
        training = DigitSumTraining(model=model, length=published["length"], seeds=seeds, **facts)
        (arrays,) = store.train([training], name="gate models")
        state = training.load(arrays).state_dict()
        ensembles[start] = Ensemble(model, seeds[:SHOWN], dtype=torch.float64)
        ensembles[start].load_state_dict({name: v[:SHOWN] for name, v in state.items()})
        key, path = store.key(training), f"gates/{start}/accuracy/"
        kept = machine.CACHE / "trainings" / f"{key[:32]}.safetensors"
        found = {n.removeprefix(path): m for n, m in measures.items() if n.startswith(path)}
        starts[start] = {
            "training": key,
            "sha256": code.sha256(kept.read_bytes()),
            "share": measures[f"gates/{start}/share_predicting_{published['prediction']}"],
            "accuracy": {n: m for n, m in found.items() if "=" in n or n == "as trained"},
        }
    data = explored(ensembles, published["sequence"])
    for net in data["nets"]:
        found = starts[net["start"]]["accuracy"].items()
        net["accuracy"] = {name: m["raw"][m["seeds"].index(net["seed"])] for name, m in found}
    for start in starts.values():
        start["accuracy"] = {name: m["mean"] for name, m in start["accuracy"].items()}
    data["record"] = {name: reported[name] for name in ("chapter", "profile", "run_id")}
    facts = {"digits": published["sequence"], "prediction": published["prediction"]}
    data["record"] |= facts | {"seeds": len(seeds), "starts": starts}
    return data


if __name__ == "__main__":
    text = json.dumps(export(), indent=1) + "\n"
    code.write_atomically(FOLDER / "nets.json", text.encode())

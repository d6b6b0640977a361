"""The gate explorer's networks: `python site/nets.py` writes static/explorer/nets.json anew.

They are the first LSTMs that chapter 03 trained of each start, whatever they predict, with what its
record says about them. The page around them is static/explorer/explorer.js and explorer.css.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from labkit.lab import code, machine, record, store
from labkit.memory.figures import EXPLORER, explored
from labkit.memory.model import Ensemble, ModelSpec
from labkit.memory.training import DigitSumTraining

SHOWN = 3  # of each start


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
    code.write_atomically(EXPLORER / "nets.json", text.encode())

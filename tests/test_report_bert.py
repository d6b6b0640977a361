"""The report's rows on BERT: none is missing, and another model's figures are called so."""

from __future__ import annotations

import re
import tomllib

import pytest

from labkit.bert import rows as report_bert
from labkit.bert import study as bert
from labkit.lab import environment, report, results

CHAPTER = report_bert.CHAPTER
PUBLISHED = tomllib.loads((environment.DATA / "published.toml").read_text("utf-8"))
SETTINGS = {"source_epochs": 15, "source_max_len": 257, "main_size": 2_000,
            "sizes": [200, 20_000]}  # fmt: skip
BASE, MINILM = "google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"
FILLS = "`make reproduce CHAPTERS=05 PROFILE=full` fills it"


def summary(*values: float, **options) -> dict:
    return results.summarise(list(values), student=True, **options)


def measures(*values: float) -> dict:
    """The same summary for every row of the tables."""
    found = {f"source/{name}/held_out_accuracy": summary(*values) for name in bert.SOURCE}
    found |= {f"source/{name}/curve_accuracy/{k}": summary(*values)
              for name in ("4", "5") for k in (5, 10)}  # fmt: skip
    tuned = ("2000/held_out_accuracy", "20000/test_accuracy")
    return found | {f"tuned/{name}": summary(*values) for name in tuned}


@pytest.fixture
def page(chapter_page):
    """A function that renders the report for given measures of this chapter, None for no record."""

    def render(found: dict | None, model: str = BASE, claims=(), profile: str = "cpu") -> str:
        settings = SETTINGS | {"model_name": model}
        return chapter_page(CHAPTER, found, profile=profile, settings=settings, claims=claims)

    return render


def rows(text: str) -> list[str]:
    """The lines of the tables of figures, without heads and rules; those of claims apart."""
    text = text[text.index("### BERT, the sources") :]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if not line.startswith(("| figure", "|---"))]


def expected() -> list[str]:
    """The start of the row of every published figure."""
    starts = []
    for run in PUBLISHED["bert"]["runs"]:
        names = ["run 1, rate 1e-05", "run 1, rate 0.001", "run 1, rate 5e-05"]
        for name in names if run["id"] == 1 else [f"run {run['id']}"]:
            for key, value in run.items():
                if key.startswith("test_accuracy"):
                    epoch = key.removeprefix("test_accuracy").replace("_epoch_", ", epoch ")
                    starts.append(f"| {name}{epoch} | {value!r} |")
    starts.append(
        f"| held-out slice, fine-tuned | {PUBLISHED['bert']['held_out']['bert_accuracy']} |"
    )
    for peer, value in PUBLISHED["peers"].items():
        if "bert_base" in peer:
            name = peer.removesuffix("_test_accuracy").replace("_", " ")
            starts.append(f"| {name} | {value} |")
    return starts


@pytest.mark.parametrize("complete", [True, False])
def test_every_published_figure_has_its_row_and_no_other_is_there(page, complete):
    found = rows(page(measures(0.8, 0.81, 0.82) if complete else None))
    starts = expected()
    assert len(starts) == 14
    assert len(found) == len(starts)
    for start in starts:
        assert sum(line.startswith(start) for line in found) == 1, start
    assert all(("no result yet" in line) is not complete for line in found)


def test_rates_are_those_of_the_settings_and_of_the_source():
    assert {f"1/{rate}" for rate in report_bert.RATES} == {n for n in bert.SOURCE if n[:2] == "1/"}
    setting = PUBLISHED["bert"]["runs"][0]["setting"]
    assert all(f"{float(rate):g}".replace("e-05", "e-5").replace("0.001", "1e-3") in setting
               for rate in report_bert.RATES)  # fmt: skip


def test_the_same_model_is_judged(page):
    found = rows(page(measures(0.9, 0.901, 0.902)))
    run = next(line for line in found if line.startswith("| run 5 | 0.901"))
    assert "| as one more seed | one more seed is expected in" in run
    assert next(line for line in found if "run 2 |" in line).split("|")[4].strip() == "ours better"
    held_out = next(line for line in found if "held-out slice" in line)
    assert held_out.endswith("; ours on 2,000 reviews |")


def test_another_model_is_named_and_never_judged(page):
    text = page(measures(0.9, 0.901, 0.902), model=MINILM)
    for line in rows(text):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[2].startswith("all-MiniLM-L6-v2 0.901")
        assert cells[3] == "another model"
        assert cells[4].startswith("ours is all-MiniLM-L6-v2")
        assert cells[4].endswith(f"not bert-base-uncased: {FILLS}")
    assert "ours is all-MiniLM-L6-v2 on 2,000 reviews, not" in text
    assert "five settings (ours: all-MiniLM-L6-v2, 15 epochs, 257 word pieces)" in text


@pytest.mark.parametrize("model", ["/models/bert-base-uncased/", BASE, "bert-base-uncased"])
def test_a_folder_with_the_models_name_is_the_model(page, model):
    assert "| another model |" not in page(measures(0.9, 0.901, 0.902), model=model)


@pytest.mark.parametrize("model", [BASE, MINILM])
def test_what_a_profile_left_out_is_the_full_ones_to_fill(page, model):
    found = measures(0.9, 0.901, 0.902)
    gone = ["source/4/curve_accuracy/5", "source/5/held_out_accuracy", "tuned/20000/test_accuracy"]
    for name in gone:
        del found[name]
    missing = [line for line in rows(page(found, model=model)) if "no result yet" in line]
    assert len(missing) == 4  # two peers ask for all test reviews
    assert all(f"| not part of profile `cpu`; {FILLS} |" in line for line in missing)


def test_the_peers_rows_name_fewer_reviews_where_those_alone_were_read(page):
    found = measures(0.9, 0.901, 0.902)
    del found["tuned/20000/test_accuracy"]
    found[report_bert.ON_ALL] = summary(0.87)
    peers = [line for line in rows(page(found, model=MINILM)) if "bert base" in line]
    assert len(peers) == 2
    for line in peers:
        assert "| all-MiniLM-L6-v2 0.870, n = 1 | another model |" in line
        assert "ours is all-MiniLM-L6-v2 on 2,000 reviews, not bert-base-uncased" in line
    found["tuned/20000/held_out_accuracy"] = summary(0.9)
    peers = [line for line in rows(page(found, model=MINILM)) if "bert base" in line]
    assert all(
        line.endswith("; after 20,000 it was right on 0.900 of the slice |") for line in peers
    )
    judged = [line for line in rows(page(found)) if "bert base" in line]
    assert all("| too few seeds" in line and "ours on 2,000 reviews" in line for line in judged)


def test_without_a_record_a_row_names_the_command_for_a_gpu(page):
    text = page(None)
    assert f"No result yet: `python -m labkit run {CHAPTER} --profile cpu` makes it." in text
    assert all(line.endswith(f"| – | no result yet | {FILLS} |") for line in rows(text))


def test_the_claim_has_three_parts_with_the_published_figures(page):
    claims = report_bert.claims(PUBLISHED)
    assert list(claims) == ["beats", "size", "text"]
    assert "0.9055 against 0.79083" in claims["beats"]
    judged = {"id": "text", "claim": "as published", "holds": True, "verdict": "holds",
              "reason": "accuracy: +0.20", "evidence": []}  # fmt: skip
    text = page(measures(0.8, 0.8, 0.8), claims=[judged])
    assert f"| text | {claims['text']} | holds | accuracy: +0.20 |" in text
    assert re.search(r"^\| beats \|.*no result yet", text, re.M)
    text = page(measures(0.8, 0.8, 0.8), claims=[judged], model=MINILM)
    assert f"| text | {claims['text']} | holds (all-MiniLM-L6-v2) | accuracy: +0.20 |" in text


def test_the_page_explains_the_verdict():
    assert f"**{report_bert.ANOTHER}**" in report.HOW_TO_READ
    assert "Chapters 04 and 05" in report.HOW_TO_READ

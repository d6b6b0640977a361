"""Records: their one form, their publication as a folder, verification, the report."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest
from rocrate.rocrate import ROCrate

from labkit.lab import code, record, report
from labkit.measure import plots
from labkit.measure.claims import Claim, Condition, Row, judge
from labkit.measure.statistics import summarise

CHAPTER = "01_toy"
PARAMETERS = 'profile: str = "quick"\nseed: int = 0\ndevice_name: str = "cpu"'
VALUES = {"seed": 0, "device_name": "cpu"}
ACCURACY = summarise([0.7, 0.8, 0.75, 0.9, 0.85, 0.8, 0.7, 0.6], seeds=range(8))


class Place:
    """A lab of one chapter whose record is written without a kernel."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.results = root, root / "results"
        self.folder = self.results / "cpu" / CHAPTER
        monkeypatch.setattr(plots, "DPI", 20)
        self._monkeypatch = monkeypatch
        (root / "data").mkdir()
        (root / "data" / "published.toml").write_text("[toy]\nx = 1\n[other]\ny = 2\n")
        self.profiles = root / "notebooks" / "profiles" / f"{CHAPTER}.toml"
        self.profiles.write_text(
            'settings = "labkit.lab.settings:ChapterSettings"\n[quick]\n[cpu]\n[full]\n'
        )
        self.notebook = root / "notebooks" / f"{CHAPTER}.ipynb"
        self.write_notebook("import labkit.measure.claims")

    def write_notebook(self, source: str, text: str = "# 01 A toy") -> None:
        new = nbformat.v4.new_code_cell
        cells = [
            nbformat.v4.new_markdown_cell(text),
            new(PARAMETERS, metadata={"tags": ["parameters"]}),
            new(source),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), self.notebook)

    def write(self, profile: str = "cpu", **changes) -> Path:
        """Write a record into a staging folder; return that."""
        staging = self.results / profile / f".running-{CHAPTER}"
        self._monkeypatch.setenv("LABKIT_STAGING", str(staging))
        content = {
            "measures": {"accuracy": ACCURACY, "words": 7},
            "claims": [judge("a", "It learns.", "accuracy", [chance()])],
            "rows": {"Accuracies": [Row("LSTM", "0.80", "0.76", "inside our seeds", "rank | 3")]},
            "about": "Published: a toy.",
            "curves": {"loss": [[1.0, 0.5]]},
            "figures": [figure()],
            "data": code.data_digests("published.toml#toy"),
        } | changes
        record.write(CHAPTER, profile=profile, **content)
        return staging

    def publish(self, profile: str = "cpu", values: dict | None = None, **changes) -> dict:
        staging = self.write(profile, **changes)
        digests = code.chapter_code(CHAPTER)
        content = record.publish(
            staging, CHAPTER, profile, "interactive", values or VALUES, digests
        )
        shutil.rmtree(staging)
        return content

    def edit(self, **changes) -> None:
        """Change the published record as no run would."""
        content = json.loads((self.folder / "record.json").read_text())
        (self.folder / "record.json").write_text(json.dumps(content | changes))


def chance(limit: float = 0.5) -> Condition:
    return Condition("mean", "accuracy", ACCURACY, "above", limit)


def figure(name: str = "loss"):
    fig, ax = plots.new_figure(name, "A line that falls from left to right, for the tests.")
    ax.plot([0, 1], [1, 0])
    return fig


@pytest.fixture
def place(root, monkeypatch) -> Place:
    return Place(root, monkeypatch)


# the form


def test_a_record_holds_what_was_measured_and_the_runner_adds_the_rest(place):
    place.publish(figures=[figure("old"), figure()])  # of which nothing is left
    content = place.publish()
    assert content["measures"]["accuracy"]["raw"] == ACCURACY["raw"]
    assert content["claims"][0]["verdict"] == "holds"
    assert content["rows"]["Accuracies"][0]["published"] == "0.80"
    assert content["settings"] == VALUES
    assert content["code"].keys() == {
        "notebook", "labkit.measure.claims", "labkit.measure.statistics",
    }  # fmt: skip
    assert sorted(os.listdir(place.folder)) == ["SHA256SUMS", "loss.png", "record.json"]
    assert place.folder.joinpath("loss.png").read_bytes() == plots.png_bytes(figure())
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=place.folder).returncode == 0


CLAIM = Claim("a", "It learns.", None, "not shown", "accuracy", ())
WRONG = {
    "NaN": {"measures": {"x": float("nan")}},
    "a text for a mean": {"measures": {"x": ACCURACY | {"mean": "high"}}},
    "a name that is no path": {"measures": {"x//y": 1}},
    "NaN in a curve": {"curves": {"x": [float("nan")]}},
    "evidence that is not there": {"claims": [replace(CLAIM, evidence=("z",))]},
    "a claim twice": {"claims": [CLAIM] * 2},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_record_cannot_hold_is_refused_and_nothing_is_written(place, what):
    with pytest.raises(ValueError, match="the record of 01_toy is not sound"):
        place.write(**WRONG[what])
    assert not list(place.results.rglob("*.*"))


PAST_THE_FUNCTION = {
    "NaN": lambda c: c["measures"].update(x=float("nan")),
    "a figure elsewhere": lambda c: c["figures"]["loss"].update(file="../evil.png"),
    "another figure": lambda c: c["figures"]["loss"].update(sha256="0" * 64),
    "no provenance": lambda c: c.pop("provenance"),
    "another chapter": lambda c: c.update(chapter="02_other"),
}


@pytest.mark.parametrize("what", PAST_THE_FUNCTION)
def test_a_record_written_past_the_function_is_not_published(place, what):
    before = place.publish()
    staging = place.write()
    content = json.loads((staging / "record.json").read_text())
    PAST_THE_FUNCTION[what](content)
    (staging / "record.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"record\.json|loss\.png is not the figure"):
        record.publish(staging, CHAPTER, "cpu", "interactive", VALUES, {})
    assert record.reported(CHAPTER) == before


# verification


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


TAMPERED: dict[str, Callable[[Place], object]] = {
    "results/cpu/01_toy/record.json is not what was written": lambda p: p.edit(about=""),
    "results/cpu/01_toy/loss.png is missing": lambda p: (p.folder / "loss.png").unlink(),
    "results/cpu/01_toy/more.png is not in SHA256SUMS": lambda p: (
        p.folder / "more.png"
    ).write_text(""),
    "results/cpu/01_toy/SHA256SUMS is damaged": lambda p: rewrite(
        p.folder / "SHA256SUMS", "loss.png", "../../victim.txt"
    ),
    "results/cpu/other is not of the lab": lambda p: (p.results / "cpu" / "other").mkdir(),
    "results/cpu/01_toy/SHA256SUMS is missing": lambda p: shutil.rmtree(p.folder),
    "results/REPORT.md is not what was written": lambda p: rewrite(
        p.results / "REPORT.md", "**holds**", "**does not hold**"
    ),
    "results/report.csv is not what was written": lambda p: rewrite(
        p.results / "report.csv", ",holds,", ",fails,"
    ),
    "results/ro-crate-metadata.json is not what was written": lambda p: rewrite(
        p.results / "ro-crate-metadata.json", "MIT", "EU"
    ),
    "benchmarks/times.json is not what was written": lambda p: (
        p.root / "benchmarks" / "times.json"
    ).write_text("2"),
}


@pytest.mark.parametrize("finding", TAMPERED)
def test_tampering_is_found_and_named(place, finding):
    place.publish()
    report.write()
    victim = place.root / "victim.txt"
    victim.write_text("")
    bench = place.root / "benchmarks"
    bench.mkdir()
    (bench / "times.json").write_text("1")
    record.write_sums(bench, ["times.json"])
    assert not report.verify()
    TAMPERED[finding](place)
    assert any(line.startswith(f"tampered: {finding}") for line in report.verify())
    assert victim.exists()


STALE: dict[str, Callable[[Place], object]] = {
    "the code has moved on (notebook)": lambda p: p.write_notebook(
        "import labkit.measure.claims\nx = 2"
    ),
    "its settings are not these (seed)": lambda p: rewrite(
        p.profiles, "[cpu]", "[cpu]\nseed = 5\n"
    ),
    "the data have moved on (published.toml#toy)": lambda p: rewrite(
        p.root / "data" / "published.toml", "x = 1", "x = 3"
    ),
}


@pytest.mark.parametrize("reason", STALE)
def test_moved_sources_make_results_stale(place, reason):
    place.publish()
    STALE[reason](place)
    report.write()
    again = f"python -m labkit run {CHAPTER} --profile cpu"
    assert report.verify() == [f"stale: {CHAPTER} (cpu): {reason}; {again}"]


def test_what_changes_no_number_ages_nothing(place):
    words = place.root / "data" / "downloads" / "words.txt"
    words.parent.mkdir()
    words.write_text("a")
    place.publish(data=code.data_digests("published.toml#toy", "downloads/words.txt"))
    report.write()
    place.write_notebook("import labkit.measure.claims  # a comment", "# 01 A toy\n\nMore words.")
    rewrite(place.root / "data" / "published.toml", "y = 2", "y = 3")
    words.unlink()  # downloads may be absent, but not different
    assert not report.verify()
    words.write_text("b")
    assert report.stale_reasons(CHAPTER, "cpu")


def test_a_run_with_other_settings_than_the_profile_is_stale(place):
    place.publish(values=VALUES | {"seed": 9})
    assert report.stale_reasons(CHAPTER, "cpu")
    assert report.stale_reasons(CHAPTER, "cpu", VALUES | {"seed": 9}) == []


# the report


def test_the_report_sets_out_what_the_chapters_wrote(place):
    place.publish(figures=[figure(), figure("more")])
    page, table, _ = report.write()
    text = page.read_text("utf-8")
    decided = "accuracy: 0.762 [0.672, 0.837]; needs above 0.5"
    assert f"| [01](#01-a-toy) | **a** It learns. | **holds** | {decided} |" in text
    assert "## 01 A toy\n\nPublished: a toy.\n\nOurs ([record](cpu/01_toy/record.json))" in text
    assert "| LSTM | 0.80 | 0.76 | inside our seeds | rank \\| 3 |" in text
    assert "Published numbers: 1; inside our seeds 1." in text
    alt = "A line that falls from left to right, for the tests."
    assert text.count(f'<img src="cpu/01_toy/loss.png" alt="{alt}"') == text.count("<img") == 1
    assert "Figures: [loss](cpu/01_toy/loss.png), [more](cpu/01_toy/more.png)." in text
    with table.open(newline="") as file:
        claim, row = csv.DictReader(file)
    files = {"figure": "cpu/01_toy/loss.png", "record": "cpu/01_toy/record.json"}
    assert {k: v for k, v in claim.items() if v} == files | {
        "chapter": CHAPTER, "kind": "claim", "what": "a", "published": "It learns.",
        "ours": "0.762", "low": "0.672", "high": "0.837", "n": "8", "verdict": "holds",
        "reason": judge("a", "It learns.", "accuracy", [chance()]).reason,
    }  # fmt: skip
    assert {k: v for k, v in row.items() if v} == files | {
        "chapter": CHAPTER, "kind": "number", "heading": "Accuracies", "what": "LSTM",
        "published": "0.80", "ours": "0.76", "verdict": "inside our seeds", "reason": "rank | 3",
    }  # fmt: skip


def test_an_archive_learns_what_each_file_is_and_what_made_it_when_and_where(place):
    content = place.publish()
    report.write()
    assert report.render() == report.render()
    crate = ROCrate(place.results)  # complains of a part that is not linked or has no type
    files = {file.id: place.results / file.id for file in crate.root_dataset["hasPart"]}
    published = {path for path in place.results.rglob("[!.]*.*") if path.is_file()}
    assert {*files.values()} == published - {place.results / crate.metadata.id}
    for file in crate.root_dataset["hasPart"]:
        assert file["sha256"] == code.sha256(files[file.id].read_bytes())
    (run,) = crate.root_dataset["mentions"]
    source, computer = run["instrument"]
    assert content["timing"]["started"][:10] == run["startTime"][:10]
    assert source["identifier"] == f"sha256:{code.sha256(code.canonical(content['code']))}"
    assert content["provenance"]["device_name"] in computer["name"]
    made = [f"cpu/{CHAPTER}/{name}" for name in ("record.json", "loss.png")]
    assert [file.id for file in run["result"]] == made


def test_what_decided_a_claim_is_said_in_few_words():
    low = summarise([-0.25] * 8, seeds=range(8))
    measures = {"accuracy": ACCURACY, "b": low, "plain": True}

    def decided(limit: float, **changes) -> str:
        conditions = [chance(), Condition("other", "b", low, "above", limit)]
        claim = vars(judge("x", "", "what: it is", conditions)) | changes
        return report.deciding(claim, measures)

    assert decided(0.5) == "what: it is: -0.250 to 0.762 in 2 cases; needs above 0.5"
    assert "(needs above 0.9)" in decided(0.9)  # two limits: the reason itself
    assert decided(0.5, evidence=("plain",), reason="word " * 99).endswith("word …")


def test_rows_that_differ_only_in_the_epoch_become_a_curve():
    def rows(name: str) -> list[dict]:
        values = zip(("0.5", "0.4", "0.2"), ("0.6", "0.4", "0.3"), "xxy", strict=True)
        return [
            vars(Row(name.format(k, k), published, ours, verdict, f"reason {k}"))
            for k, (published, ours, verdict) in enumerate(values, start=1)
        ]

    rest = [vars(Row("at 10 digits", "1", "2", "v", "r"))] * 2  # what differs otherwise stays
    ends = ("0.5 → 0.2", "0.6 → 0.3", "x 2, y 1", "reason 3")
    curves = rows("loss, epoch {}"), rows("batches {}1 to {}9")
    assert report.folded([*curves[0], *rest, *curves[1]]) == [
        ("loss, epochs 1 to 3", *ends),
        *[("at 10 digits", "1", "2", "v", "r")] * 2,
        ("batches 11 to 39", *ends),
    ]


def test_full_is_reported_before_cpu_and_quick_never(place):
    place.publish("quick")
    assert record.reported(CHAPTER) is None
    missing = "No result yet: `python -m labkit run 01_toy --profile cpu`"
    assert missing in report.render()["REPORT.md"]
    place.publish("cpu")
    place.publish("full", about="Of full.")
    assert record.reported(CHAPTER)["about"] == "Of full."


def test_a_newer_record_makes_the_report_stale_and_a_damaged_one_stops_it(place):
    place.publish()
    report.write()
    place.publish(about="Published: another toy.")
    older = "stale: results/{} is not of these records; python -m labkit report"
    names = ("REPORT.md", "ro-crate-metadata.json")  # which holds the digest of the record
    assert report.verify() == [older.format(name) for name in names]
    (place.folder / "record.json").write_text("{")
    with pytest.raises(ValueError, match=r"results/cpu/01_toy/record\.json is not sound"):
        report.render()


def test_reported_results_are_shown_with_their_run(place, monkeypatch):
    monkeypatch.setattr("IPython.display.display", display := Mock())
    record.show_claims(CHAPTER)
    missing = "`python -m labkit run 01_toy --profile cpu` makes them"
    assert missing in display.call_args.args[0].data
    place.publish()
    record.show_claims(CHAPTER)
    assert "**a** It learns. | holds" in display.call_args.args[0].data
    run_id = record.reported(CHAPTER)["run_id"]
    assert display.call_args.kwargs["metadata"] == {"labkit": {"record": run_id}}
    record.show_claims(CHAPTER, "no such claim")
    assert "|" not in display.call_args.args[0].data

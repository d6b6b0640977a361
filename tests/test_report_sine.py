"""The report's rows on the sine: every published number has one, and each is judged over seeds."""

from __future__ import annotations

import re
import tomllib

import pytest

from labkit.lab import digests, environment, results
from labkit.sine import rows as report_sine

CHAPTER = report_sine.CHAPTER
PUBLISHED = tomllib.loads((environment.DATA / "published.toml").read_text("utf-8"))["sine"]
HEADINGS = {
    "Losses, ours with gluon's start": "loss/gluon",
    "Losses, ours with Xavier start": "loss/xavier",
    "Outputs before training": "note/0",
    "Outputs after training, ours after 100 batches": "note/100",
    "Outputs after training, ours after 1,000 batches": "note/end",
}


def measures(shift: float = 0.0) -> dict:
    """Twelve seeds around every published number, or beside it by a share `shift` of it."""

    def around(value: float) -> dict:
        return results.summarise([value * (1 + shift + k / 100) for k in range(-6, 6)])

    found = {}
    for start in ("gluon", "xavier"):
        for optimiser in ("adam", "sgd"):
            for k, value in enumerate(PUBLISHED[f"{optimiser}_loss"], start=1):
                found[f"loss/{start}/{optimiser}/{k}"] = around(value)
    table = PUBLISHED["every_step"]
    for k in range(9):
        found[f"note/0/{k + 1}"] = around(table["initial_prediction"][k])
        for when in ("100", "end"):
            found[f"note/{when}/{k + 1}"] = around(table["final_prediction"][k])
    return found


@pytest.fixture
def page(chapter_page):
    """A function that renders the chapter's part of the report, None for no record."""

    def render(found: dict | None, claims=(), batches: int = 1_000) -> str:
        return chapter_page(CHAPTER, found, settings={"batches": batches}, claims=claims)

    return render


def rows(page: str, heading: str) -> list[str]:
    (rest,) = re.findall(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", page, re.M | re.S)
    return [line for line in rest.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize("complete", [True, False])
def test_every_published_number_has_its_row_in_its_order(page, complete):
    text = page(measures() if complete else None)
    headings = [h for h in re.findall(r"^### (.+)$", text, re.M) if h not in ("Claims", "Figures")]
    assert headings == list(HEADINGS)
    table = PUBLISHED["every_step"]
    expected = {
        "loss": [*PUBLISHED["adam_loss"], *PUBLISHED["sgd_loss"]],
        "note/0": table["initial_prediction"],
        "note": table["final_prediction"],
    }
    for heading, prefix in HEADINGS.items():
        values = expected.get(prefix) or expected[prefix.partition("/")[0]]
        found = rows(text, heading)
        assert [line.split(" | ")[1] for line in found] == [repr(value) for value in values]
        for line in found:
            wanted = "inside our seeds" if complete else "no result yet"
            assert f"| {wanted} |" in line
            assert ("n = 12" in line) is complete


def test_the_stretch_of_batches_is_named(page):
    found = rows(page(measures()), "Losses, ours with gluon's start")
    assert found[0].startswith("| Adam, 0.001, loss of batches 1 to 20 | 0.0378 |")
    assert found[9].startswith("| SGD, 0.01, loss of batches 81 to 100 | 0.0214 |")


def test_a_lower_loss_is_better_and_an_output_is_neither(page):
    text = page(measures(shift=-0.5))
    assert all("| ours better |" in line for line in rows(text, next(iter(HEADINGS))))
    assert all("| outside our seeds |" in line for line in rows(text, list(HEADINGS)[2]))
    assert all("| ours worse |" in line for line in rows(page(measures(0.5)), list(HEADINGS)[1]))


def test_outputs_after_training_are_judged_at_both_moments(page):
    found = measures()
    for k in range(1, 10):
        found[f"note/end/{k}"] = measures(shift=1.0)[f"note/end/{k}"]
    text = page(found)
    assert all("| inside our seeds |" in line for line in rows(text, list(HEADINGS)[3]))
    assert all("| lower than all 12" in line for line in rows(text, list(HEADINGS)[4]))


def test_the_number_of_batches_is_that_of_the_record(page):
    assert "ours after 1,500 batches" in page(measures(), batches=1_500)


def test_the_setting_says_what_the_printed_labels_are(page):
    text = page(None)
    assert "are sin t on a grid of 0.0100, so twice what the net was trained on" in text
    assert f"No result yet: `python -m labkit run {CHAPTER} --profile cpu`" in text


def test_claims_carry_the_chapters_verdicts(page):
    claims = [
        {"id": name, "claim": "as posed", "holds": True, "verdict": "holds", "reason": "so",
         "evidence": []}
        for name in ("faster/gluon", "faster/tuned", "mended/every_nine")
    ]  # fmt: skip
    found = rows(page(measures(), claims), "Claims")
    assert len(found) == 4
    assert f"| faster/tuned | {report_sine.CLAIMS['faster']} | holds | so |" in found
    assert f"| mended/every_nine | {report_sine.CLAIMS['mended']} | holds | so |" in found
    assert any(line.startswith("| last_step |") and "no result yet" in line for line in found)


def test_the_reports_code_ages_no_result():
    assert "labkit.sine.rows" in digests.BOOKKEEPING

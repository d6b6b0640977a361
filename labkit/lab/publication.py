"""From a staging folder into `results/<profile>/`, all or nothing; and whether all is so still.

A publication first writes down what it will do, `publish.json` in the staging folder, and then does
it by renames. Whatever cuts it off after that line is on the disk, `recover` carries it through. A
manifest holds the SHA-256 of all that lies in a profile's folder and of all that it was made from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit.lab import digests, environment
from labkit.lab.digests import canonical, sha256, sync_folder, write_atomically
from labkit.measure.statistics import SUMMARY_KEYS

SCHEMA = 1
MANIFEST = "manifest.json"
LOG = "publish.json"
REPORT = "REPORT.md"
VERIFIED_PROFILES = ("cpu", "full")
RECORD_KEYS = (
    "schema", "chapter", "profile", "run_id", "settings", "measures", "claims", "curves", "figures",
    "data", "provenance", "timing",
)  # fmt: skip
CLAIM_KEYS = ("id", "claim", "holds", "verdict", "reason", "evidence")


def read_record(path: Path, chapter: str, profile: str) -> dict[str, Any]:
    """The record in a file; ValueError that names the file when it is no record of that chapter."""
    record = read_any_record(path)
    found = (record["schema"], record["chapter"], record["profile"])
    if found != (SCHEMA, chapter, profile):
        raise ValueError(
            f"{shown(path)} has schema, chapter and profile {found}; "
            f"expected {(SCHEMA, chapter, profile)}"
        )
    return record


def read_any_record(path: Path) -> dict[str, Any]:
    """The record in a file, whatever its chapter; ValueError that names the file for no record."""
    record = _read_json(path)
    missing = [key for key in RECORD_KEYS if key not in record]
    if missing:
        raise ValueError(f"{shown(path)} lacks {', '.join(missing)}: it is not a whole record")
    if wrong := _unreadable(record):
        raise ValueError(f"{shown(path)} is damaged: {', '.join(wrong)} cannot be read")
    return record


def _unreadable(record: dict[str, Any]) -> list[str]:
    """The parts of a record that have not the form of such a part."""
    kinds = {"measures": dict, "figures": dict, "claims": list}
    if wrong := [key for key, kind in kinds.items() if not isinstance(record[key], kind)]:
        return wrong
    measures = [
        f"measure {name}"
        for name, value in record["measures"].items()
        if isinstance(value, dict) and value.keys() != SUMMARY_KEYS
    ]
    claims = [
        f"claim {position}"
        for position, claim in enumerate(record["claims"], start=1)
        if not isinstance(claim, dict) or claim.keys() != set(CLAIM_KEYS)
    ]
    return measures + claims


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{shown(path)} is damaged, not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{shown(path)} is damaged: it holds no JSON object")
    return value


def shown(path: Path) -> str:
    """A path as messages name it: relative to the repository where it lies in there."""
    inside = path.is_relative_to(environment.ROOT)
    return str(path.relative_to(environment.ROOT) if inside else path)


# the manifest


def read_manifest(profile: str) -> dict[str, Any]:
    """The entries of a profile's manifest by chapter, {} where there is none; ValueError when it is
    damaged or edited."""
    path = environment.RESULTS / profile / MANIFEST
    if not path.exists():
        return {}
    manifest = _read_json(path)
    digest = manifest.pop("digest", None)
    if digest != sha256(canonical(manifest)):
        raise ValueError(f"{shown(path)} is not what was written: its own digest does not match")
    return manifest["chapters"]


def _manifest_bytes(chapters: dict[str, Any]) -> bytes:
    manifest = {"schema": SCHEMA, "chapters": dict(sorted(chapters.items()))}
    manifest["digest"] = sha256(canonical(manifest))
    return (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()


def _entry(staging: Path, chapter: str, profile: str) -> dict[str, Any]:
    """What the manifest will say about the staged record; ValueError for a figure not its own."""
    path = staging / f"{chapter}.json"
    record = read_record(path, chapter, profile)
    for figure in record["figures"].values():
        if sha256((staging / figure["file"]).read_bytes()) != figure["sha256"]:
            raise ValueError(f"{staging / figure['file']} is not the figure of its record")
    provenance = record["provenance"]
    return {
        "record": sha256(path.read_bytes()),
        "figures": {f["file"]: f["sha256"] for f in record["figures"].values()},
        "code": provenance["code"],
        "notebook": provenance["notebook"],
        "modules": provenance["modules"],
        "settings": digests.settings_digest(chapter, profile),
        "data": record["data"],
        "lock": provenance["lock"],
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# publication


def publish(staging: Path, chapter: str, profile: str) -> None:
    """Move a chapter's record and figures from its staging folder into `results/<profile>/`.

    What other chapters have left there goes when their notebooks are gone. Raises ValueError for a
    record or figure that is not sound, with nothing published. An OSError
    before the log is written leaves everything as it was; after that, `recover` finishes the work.
    """
    entry = _entry(staging, chapter, profile)
    log = {"chapter": chapter, "profile": profile, "entry": entry}
    write_atomically(staging / LOG, canonical(log))
    _carry_out(staging, log)


def recover(profile: str) -> None:
    """Finish every publication of a profile that was cut off.

    One whose files are gone or changed cannot be finished; it is dropped, with a line that says so,
    and `verify` tells what it left.
    """
    for path in _unfinished(profile):
        log = _read_json(path)
        if all(_arrived_or_ready(path.parent, log)):
            _carry_out(path.parent, log)
            print(f"{log['chapter']}: finished the publication that was cut off")
        else:
            path.unlink()
            print(f"{log['chapter']}: an unfinished publication has lost files; it is dropped")


def _unfinished(profile: str) -> list[Path]:
    return sorted((environment.RESULTS / ".staging" / profile).glob(f"*/{LOG}"))


def _moves(staging: Path, log: dict[str, Any]) -> Iterator[tuple[Path, Path, str]]:
    """Source, target and SHA-256 of every file of a publication, the record last."""
    target, entry = environment.RESULTS / log["profile"], log["entry"]
    record = f"{log['chapter']}.json"
    for name, digest in [*entry["figures"].items(), (record, entry["record"])]:
        yield staging / name, target / name, digest


def _arrived_or_ready(staging: Path, log: dict[str, Any]) -> Iterator[bool]:
    for source, target, digest in _moves(staging, log):
        files = (path for path in (source, target) if path.is_file())
        yield any(sha256(path.read_bytes()) == digest for path in files)


def _carry_out(staging: Path, log: dict[str, Any]) -> None:
    """Do what the log says; doing it again after any part of it has the same effect.

    What needs space on the disk comes first, so that a full disk stops it before any rename.
    """
    chapter, entry = log["chapter"], log["entry"]
    folder = environment.RESULTS / log["profile"]
    figures = folder / "figures"
    (figures if entry["figures"] else folder).mkdir(parents=True, exist_ok=True)
    before = _mendable_manifest(log["profile"]) | {chapter: entry}
    known = {*environment.chapters(), chapter}
    chapters = {name: other for name, other in before.items() if name in known}
    write_atomically(staging / MANIFEST, _manifest_bytes(chapters))

    for source, target, _ in _moves(staging, log):
        if source.exists():
            os.replace(source, target)
    listed = {name for other in chapters.values() for name in other["figures"]}
    for path in figures.glob(f"{chapter}_*.png"):
        if f"figures/{path.name}" not in listed:
            path.unlink()
    for gone in before.keys() - chapters.keys():
        for name in (f"{gone}.json", *before[gone]["figures"]):
            (folder / name).unlink(missing_ok=True)
        print(f"{gone}: its notebook is gone, so its results are removed")
    os.replace(staging / MANIFEST, folder / MANIFEST)

    for touched in (figures, folder):
        if touched.is_dir():
            sync_folder(touched)
    (staging / LOG).unlink()


def _mendable_manifest(profile: str) -> dict[str, Any]:
    """The manifest's entries, or none where it is damaged: the other chapters then run again."""
    try:
        return read_manifest(profile)
    except ValueError as error:
        print(f"{error}; a new one is begun, and the other chapters must be run again")
        return {}


# verification


@dataclass
class Verification:
    """What is not as written (`tampered`), and what is older than its sources (`stale`)."""

    tampered: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    def report(self) -> str:
        """One line for each finding, or one that says that all is well."""
        lines = [f"tampered: {finding}" for finding in self.tampered]
        lines += [f"stale: {finding}" for finding in self.stale]
        return "\n".join(lines) or (
            "every record, figure and manifest of cpu and full is as written and up to date"
        )


def verify() -> Verification:
    """Hash again all that is published for `cpu` and `full`, and all that it was made from."""
    found = Verification()
    published: set[str] = set()
    for profile in VERIFIED_PROFILES:
        chapters, tampered = _check_files(profile)
        found.tampered += tampered
        published |= chapters.keys()
        for chapter, entry in chapters.items():
            if chapter not in environment.chapters():
                found.stale.append(
                    f"{chapter} ({profile}): its notebook is gone; the next chapter that is run "
                    f"with --profile {profile} removes its results"
                )
                continue
            again = f"python -m labkit run {chapter} --profile {profile}"
            reasons = _stale_reasons(chapter, profile, entry)
            found.stale += [f"{chapter} ({profile}): {reason}; {again}" for reason in reasons]
    for chapter in environment.chapters():
        if chapter not in published:
            command = f"python -m labkit run {chapter} --profile cpu"
            found.stale.append(f"{chapter}: nothing is reported yet; {command}")
    if not found.tampered:
        found.stale += _check_report(bool(published))
    return found


def up_to_date(chapter: str, profile: str) -> bool:
    """Whether a chapter's published record and figures are as written and not stale."""
    try:
        entry = read_manifest(profile).get(chapter)
    except ValueError:
        return False
    if entry is None or _check_chapter(chapter, profile, entry):
        return False
    return not _stale_reasons(chapter, profile, entry)


def _check_files(profile: str) -> tuple[dict[str, Any], list[str]]:
    """The manifest's entries, and what in the profile's folder is not as written."""
    folder = environment.RESULTS / profile
    try:
        chapters = read_manifest(profile)
    except ValueError as error:
        return {}, [str(error)]

    tampered = [
        f"results/{profile}/{log.parent.name}.json: its publication was cut off; "
        f"python -m labkit run {log.parent.name} --profile {profile} finishes it"
        for log in _unfinished(profile)
    ]
    for chapter, entry in chapters.items():
        tampered += _check_chapter(chapter, profile, entry)
    listed = {MANIFEST, *(f"{chapter}.json" for chapter in chapters)}
    listed |= {name for entry in chapters.values() for name in entry["figures"]}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and not path.is_dir() and name.as_posix() not in listed:
            tampered.append(f"{shown(path)} is not in the manifest")
    return chapters, tampered


def _check_chapter(chapter: str, profile: str, entry: dict[str, Any]) -> list[str]:
    folder = environment.RESULTS / profile
    tampered = []
    for name, digest in {f"{chapter}.json": entry["record"], **entry["figures"]}.items():
        path = folder / name
        if not path.is_file():
            tampered.append(f"{shown(path)} is missing")
        elif sha256(path.read_bytes()) != digest:
            tampered.append(f"{shown(path)} is not what was written; restore it or run again")
    return tampered


def _stale_reasons(chapter: str, profile: str, entry: dict[str, Any]) -> list[str]:
    """In what respects the sources of a published chapter have moved on."""
    reasons = []
    try:
        code = digests.code_parts(chapter)
    except ValueError as error:
        return [str(error)]
    if sha256(canonical(code)) != entry["code"]:
        before = {"notebook": entry["notebook"], **entry["modules"]}
        names = sorted(code.keys() | before.keys())
        moved = [name for name in names if code.get(name) != before.get(name)]
        reasons.append(f"the code has moved on ({', '.join(moved)})")
    if digests.settings_digest(chapter, profile) != entry["settings"]:
        reasons.append(f"notebooks/profiles/{profile}/{chapter}.json has moved on")
    elif overridden := _overridden(chapter, profile):
        reasons.append(f"it was run with other settings than the profile's ({overridden})")
    data = [name for name, digest in entry["data"].items() if _data_moved(name, digest)]
    if data:
        reasons.append(f"the data have moved on ({', '.join(data)})")
    if digests.lock_digest() != entry["lock"]:
        reasons.append(f"{digests.LOCK} has moved on")
    return reasons


def _data_moved(name: str, digest: str) -> bool:
    """Downloads may be absent: a fresh clone has none, and they are checked when they are used."""
    now = digests.data_digest(name)
    return now != digest and not (now is None and name.startswith("downloads/"))


def _overridden(chapter: str, profile: str) -> str:
    """The recorded settings that differ from what the profile says now, as after `--set`."""
    from labkit.lab.parameters import ParameterError, read_parameters

    try:
        record = read_record(environment.RESULTS / profile / f"{chapter}.json", chapter, profile)
        cells = _read_json(environment.NOTEBOOKS / f"{chapter}.ipynb")["cells"]
        parameters = read_parameters(
            [{**cell, "source": "".join(cell["source"])} for cell in cells], chapter
        )
        given = _read_json(environment.PROFILES / profile / f"{chapter}.json")
    except (FileNotFoundError, ValueError, KeyError, ParameterError):
        return ""  # damage is told by other checks
    expected = {name: parameter.default for name, parameter in parameters.items()} | given
    differing = [
        f"{name} = {value!r}"
        for name, value in record["settings"].items()
        if name in expected and name != "profile" and value != expected[name]
    ]
    return ", ".join(differing)


def _check_report(expected: bool) -> list[str]:
    """Whether REPORT.md is what the records render."""
    from labkit.lab import report

    path = environment.RESULTS / REPORT
    if not path.exists():
        return [f"{shown(path)} is missing; python -m labkit report"] if expected else []
    if path.read_text("utf-8") != report.render():
        return [f"{shown(path)} is not what the records give; python -m labkit report"]
    return []

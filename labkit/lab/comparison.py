"""Two records side by side: bit for bit, or within the declared tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from labkit.lab.digests import canonical

RTOL, ATOL = 1e-4, 1e-6


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Where two records differ by more than the declared tolerance; [] where they agree.

    Settings, data, names and verdicts must be equal; single numbers may differ by 1e-6 plus 1e-4 of
    their size; two summaries of as many values agree where their centres lie no further apart than
    the sum of the half-widths of their intervals. Timings, provenance, curves and figures are not
    compared.
    """
    differences = _unequal(a, b, ("chapter", "data")) + _compared_settings(a, b)
    differences += _compared_claims(a, b, ("id", "holds", "verdict"))
    for name, one, other in _paired_measures(a, b, differences):
        if not _agree(one, other):
            differences.append(f"measure {name}: {_shown(one)} and {_shown(other)}")
    return differences


def identical(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Where two records differ at all, durations, timestamps and the run's name aside.

    A figure called like the first part of a timing measure's name ("speed") shows timings, so its
    bytes are not compared; nor is the reason of a claim whose evidence is timings, for it quotes
    them.
    """
    parts = ("schema", "chapter", "profile", "curves", "data", "provenance")
    differences = _unequal(a, b, parts) + _compared_settings(a, b)
    differences += _compared_claims(a, b, None)
    for name, one, other in _paired_measures(a, b, differences):
        if canonical(one) != canonical(other):  # which tells 1, 1.0 and True apart
            differences.append(f"measure {name}: {one!r} and {other!r}"[:300])

    timed = {
        name.split("/")[0]
        for record in (a, b)
        for name, value in record["measures"].items()
        if _is_timing(value)
    }
    for name in sorted(a["figures"].keys() | b["figures"].keys()):
        one, other = a["figures"].get(name), b["figures"].get(name)
        if (one is None) != (other is None) or (one != other and name not in timed):
            differences.append(f"figure {name}: not the same")
    return differences


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [f"{key}: not the same" for key in keys if canonical(a[key]) != canonical(b[key])]


def _compared_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    one, other = a["settings"], b["settings"]
    return [
        f"setting {name}: {_setting(one, name)} and {_setting(other, name)}"
        for name in sorted(one.keys() | other.keys())
        if name not in one or name not in other or canonical(one[name]) != canonical(other[name])
    ]


def _setting(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name])[:100] if name in settings else "none"


def _compared_claims(
    a: Mapping[str, Any], b: Mapping[str, Any], keys: Sequence[str] | None
) -> list[str]:
    """Claims that differ in `keys`, or in anything where that is None."""
    one, other = (
        {
            claim["id"]: [
                claim[key]
                for key in keys or sorted(claim)
                if key != "reason" or not _timed(claim, r)
            ]
            for claim in r["claims"]
        }
        for r in (a, b)
    )
    differences = [f"claim {name}: only in one" for name in sorted(one.keys() ^ other.keys())]
    names = sorted(one.keys() & other.keys())
    return differences + [f"claim {n}: not the same" for n in names if one[n] != other[n]]


def _timed(claim: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    return any(_is_timing(record["measures"][name]) for name in claim["evidence"])


def _is_timing(value: Any) -> bool:
    return isinstance(value, dict) and value["timing"]


def _paired_measures(
    a: Mapping[str, Any], b: Mapping[str, Any], differences: list[str]
) -> list[tuple[str, Any, Any]]:
    """The measures of both records, without timings; what only one of them has is a difference."""
    one, other = a["measures"], b["measures"]
    differences += [f"measure {name}: only in one" for name in sorted(one.keys() ^ other.keys())]
    both = [(name, one[name], other[name]) for name in one if name in other]
    return [(name, x, y) for name, x, y in both if not (_is_timing(x) and _is_timing(y))]


def _agree(a: Any, b: Any) -> bool:
    """Whether two values of one measure lie within the declared tolerance."""
    if isinstance(a, bool | str) or isinstance(b, bool | str):
        return type(a) is type(b) and a == b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_agree, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        if any(a[key] != b[key] for key in ("n", "statistic", "unit")):
            return False
        reach = sum((s["high"] - s["low"]) / 2 for s in (a, b) if s["low"] is not None)
        a, b = a[a["statistic"]], b[b["statistic"]]
        return abs(a - b) <= max(reach, ATOL + RTOL * abs(b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= ATOL + RTOL * abs(b)
    return False


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    centre = f"{value['statistic']} {value[value['statistic']]:.6g}"
    if value["low"] is not None:
        centre += f" [{value['low']:.6g}, {value['high']:.6g}]"
    return f"{centre}, n = {value['n']}"

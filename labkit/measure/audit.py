"""What the digits of a printed accuracy give away: over how many examples it was counted.

An accuracy is k/N. Printed with d digits it is one of 10**d + 1 numbers, of which N + 1 are k/N. So
few N fit a series of printed accuracies by chance, and the N that does need not be the number of
examples that there were: a program may have divided by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def _digits(printed: str) -> tuple[int, int]:
    """The digits of a printed accuracy over their power of ten: "79.083 %" is (79083, 100000)."""
    text = printed.strip()
    whole, _, decimals = text.removesuffix("%").strip().partition(".")
    return int(whole + decimals), 10 ** (len(decimals) + 2 * text.endswith("%"))


def fitting(printed: str, candidates: Iterable[int], *, cut: bool = False) -> dict[int, int]:
    """N -> k for every N of which some k/N is printed so: rounded, or with `cut` cut off.

    Every printed digit counts: "0.80" says more than "0.8".
    """
    digits, power = _digits(printed)
    fits = {}
    for n in candidates:
        # power * k / n lies in [digits, digits + 1), or at most one half from digits
        k = -(-digits * n // power) if cut else (2 * digits * n + power) // (2 * power)
        above = power * k - digits * n
        if 0 <= above < n if cut else 2 * abs(above) <= n:
            fits[n] = k
    return fits


@dataclass(frozen=True)
class Audit:
    """Printed accuracies, and for each N how many of them are k/N."""

    printed: tuple[str, ...]
    fits: dict[int, int]

    @property
    def fit_all(self) -> list[int]:
        """The N that fit every printed accuracy."""
        return [n for n, count in self.fits.items() if count == len(self.printed)]

    def chance(self, n: int) -> float:
        """The share of such numbers that are k/n: what would fit if n had nothing to do with it."""
        powers = [_digits(text)[1] for text in self.printed]
        return sum(min(1.0, (n + 1) / (power + 1)) for power in powers) / len(powers)


def audit(printed: Sequence[str], candidates: Sequence[int], *, cut: bool = False) -> Audit:
    """Try every candidate denominator on every accuracy of a series, given as it was printed."""
    each = [fitting(text, candidates, cut=cut) for text in printed]
    return Audit(tuple(printed), {n: sum(n in fits for fits in each) for n in candidates})


def correct(printed: str, n_counted: int, n_true: int, *, cut: bool = False) -> float:
    """k / n_true, from an accuracy that was printed as k / n_counted.

    ValueError where it is no such fraction, or where its digits leave more than one k.
    """
    fits = fitting(printed, [n_counted], cut=cut)
    if not fits or n_counted > _digits(printed)[1]:
        raise ValueError(f"{printed} is not one k of {n_counted:,}: look for another denominator")
    return fits[n_counted] / n_true

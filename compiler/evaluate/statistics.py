"""Means with their uncertainty. Every number that is reported comes from here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class Estimate:
    """value with its standard error; error is None where there is only one observation. n: independent observations."""

    value: float
    error: float | None
    n: int

    def __str__(self) -> str:
        """`28.38 ± 0.41`."""
        return f"{self.value:.4g}" if self.error is None else f"{self.value:.4g} ± {self.error:.2g}"


def mean(values: Sequence[float]) -> Estimate:
    """The mean of independent values and its standard error, sd / sqrt(n).

    >>> mean([1.0, 2.0, 3.0, 2.0])
    Estimate(value=2.0, error=0.408248290463863, n=4)
    """
    n = len(values)
    centre = math.fsum(values) / n
    if n == 1:
        return Estimate(centre, None, 1)
    variance = math.fsum((v - centre) ** 2 for v in values) / (n - 1)
    return Estimate(centre, math.sqrt(variance / n), n)


def exponential(e: Estimate) -> Estimate:
    """exp of an estimate; the error to first order. A perplexity from a mean loss in nats."""
    value = math.exp(e.value) if e.value < 700 else math.inf
    return Estimate(value, None if e.error is None else value * e.error, e.n)


@dataclass(frozen=True)
class Paired:
    """Two models on the same items. difference: share of items right, this minus the baseline, with the paired standard
    error. gained, lost: items that only this one, only the baseline, has right. p: two-sided exact McNemar test."""

    difference: Estimate
    gained: int
    lost: int
    p: float


def paired(these: Sequence[bool], baseline: Sequence[bool]) -> Paired:
    """Compare right and wrong answers item by item (McNemar 1947, Psychometrika 12:153).

    >>> result = paired([True, True, True, False], [True, False, False, False])
    >>> result.difference.value, result.gained, result.lost, result.p
    (0.5, 2, 0, 0.5)
    """
    gained = sum(a and not b for a, b in zip(these, baseline, strict=True))
    lost = sum(b and not a for a, b in zip(these, baseline, strict=True))
    difference = mean([float(a) - float(b) for a, b in zip(these, baseline, strict=True)])
    return Paired(difference, gained, lost, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """Probability of a split at least as uneven as this one if either way were a coin's toss.

    >>> mcnemar(5, 0)
    0.0625
    """
    n = gained + lost
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile by linear interpolation between order statistics.

    >>> quantile([3.0, 1.0, 2.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])

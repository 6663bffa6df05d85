"""What repeats say of each other: medians, quartiles, and whether two sets of them differ. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median, quantiles
from typing import Any, Final

LEVEL: Final = 0.01  # two sets of repeats differ when chance would do as much less often than this


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some repeats."""

    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        return {"median": self.median, "low": self.low, "high": self.high}


def spread(values: Sequence[float]) -> Spread:
    """ValueError for no values."""
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), low, high)


def chance(a: Sequence[float], b: Sequence[float]) -> float:
    """How often chance alone would set two sets of repeats as far apart as these: the exact two-sided Mann-Whitney
    test (H. B. Mann and D. R. Whitney, 1947). Equal values count half."""
    above = sum((x > y) + 0.5 * (x == y) for x in a for y in b)
    extreme = math.floor(min(above, len(a) * len(b) - above))
    ways = sum(_ways(len(a), len(b), u) for u in range(extreme + 1))
    return min(1.0, 2 * ways / math.comb(len(a) + len(b), len(a)))


def differ(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the difference exceeds the noise. Fewer than five repeats each never show one."""
    return chance(a, b) < LEVEL


@cache
def _ways(n: int, m: int, u: int) -> int:
    """Orders of n and m values in which u pairs stand the other way round."""
    if u < 0 or u > n * m:
        return 0
    if n == 0 or m == 0:
        return 1
    return _ways(n - 1, m, u - m) + _ways(n, m - 1, u)

"""How fast this machine reads memory, after STREAM (J. D. McCalpin, 1995): the least time that a pass can take."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np

CACHE_MULTIPLE: Final = 4  # STREAM's rule: arrays of at least four times the last-level cache
LEAST_BYTES: Final = 2**27  # of an array
_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")

#: What one probe measures, for reports.
DEFINITION: Final = (
    "NumPy on float64 arrays of at least 128 MiB and four times the last-level cache, cut evenly over the engine's "
    "threads, one of each per repeat, between the settings. copy: numpy.copyto(b, a), counted as one read and one "
    "write per value. triad: b = s * a and then b += c, counted as five moves per value. read: a sum of a, one read "
    "per value. Bandwidth: the best of the three by the median of the repeats."
)


class Bandwidth:
    """Probes of one size on `threads` threads; the first touch of the memory is not part of any."""

    def __init__(self, threads: int, array_bytes: int | None = None) -> None:
        self.threads = threads
        self.array_bytes = array_bytes or max(LEAST_BYTES, CACHE_MULTIPLE * last_level_cache_bytes())
        count = max(threads, self.array_bytes // 8)
        self._parts = [np.array_split(np.full(count, value), threads) for value in (1.0, 2.0, 3.0)]

    def probe(self) -> dict[str, float]:
        """Bytes per second of each kernel, once."""
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(id, range(self.threads)))  # threads exist before the clock runs
            return {
                "copy": self._rate(pool, 2, lambda a, b, c: np.copyto(b, a)),
                "triad": self._rate(pool, 5, _triad),
                "read": self._rate(pool, 1, lambda a, b, c: a.sum()),
            }

    def _rate(self, pool: ThreadPoolExecutor, moves: int, kernel: Callable[..., object]) -> float:
        began = perf_counter()
        list(pool.map(kernel, *self._parts))
        seconds = perf_counter() - began
        return moves * 8 * sum(map(len, self._parts[0])) / seconds


def _triad(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    np.multiply(a, 3.0, out=b)
    np.add(b, c, out=b)


def last_level_cache_bytes() -> int:
    """Of one processor; 0 where the system does not say."""
    sizes = [_size(file) for file in _CACHES.glob("index*/size")]
    return max(sizes, default=0)


def _size(file: Path) -> int:
    text = file.read_text().strip()
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text or 0)

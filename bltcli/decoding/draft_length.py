"""How many bytes to draft: a fixed number, or what pays on this text and this machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Final, Protocol

import numpy as np

from bltcli.decoding.rows import Rows
from bltcli.vocab import IdArray

LADDER: Final = (0, 1, 2, 4, 8, 16)  # the lengths that are tried
SAMPLES: Final = 5  # rounds whose median is the price of a length
LEARNING_RATE: Final = 0.1  # of running acceptance
PROBE_EVERY: Final = 48  # rounds between looks at a length that is not in use


class DraftLength(Protocol):
    def choose(self, rows: Rows) -> int | IdArray:
        """Bytes to draft at most, for all rows or each, [b]."""
        ...

    def observe(self, rows: Rows, drafted: IdArray, kept: IdArray) -> None:
        """The round that `choose` began is over: kept[r] of drafted[r] bytes were right."""
        ...


class FixedLength:
    """Always the same."""

    def __init__(self, k: int) -> None:
        self.k = k

    def choose(self, rows: Rows) -> int | IdArray:
        return self.k

    def observe(self, rows: Rows, drafted: IdArray, kept: IdArray) -> None:
        pass


class AdaptiveLength:
    """The k that promises most bytes per second: for each row, running acceptance of its own record by the byte's place
    in the draft; for all, the time that rounds of each length took. 0 is among them, so that drafting stops where it
    does not pay. What is generated does not depend on k, so that a clock may decide."""

    def __init__(self, longest: int = LADDER[-1], clock: Callable[[], float] = perf_counter) -> None:
        self.ladder = np.array([k for k in LADDER if k <= longest])
        self._clock, self._began, self._rounds = clock, 0.0, 0
        self._seconds: list[deque[float]] = [deque(maxlen=SAMPLES) for _ in self.ladder]
        self._records: IdArray = np.full(0, -1, dtype=np.int64)
        self._accepts = np.zeros((0, int(self.ladder[-1])))  # [b, longest]: of a byte whose predecessors were right

    def choose(self, rows: Rows) -> int | IdArray:
        self._begin(rows)
        untried = [i for i in reversed(range(len(self.ladder))) if len(self._seconds[i]) < 2]
        if untried:
            chosen = np.full(len(rows.active), untried[0])
        else:
            seconds = np.array([median(times) for times in self._seconds])
            right = np.concatenate([np.ones((len(self._accepts), 1)), np.cumprod(self._accepts, axis=1)], axis=1)
            expected = np.cumsum(right, axis=1)[:, self.ladder]  # bytes per round, the full model's own included
            chosen = (expected / seconds).argmax(axis=1)
            if self._rounds % PROBE_EVERY == 0:  # prices and texts change
                step = 1 if (self._rounds // PROBE_EVERY) % 2 else -1
                chosen = np.clip(chosen + step, 0, len(self.ladder) - 1)
        self._rounds += 1
        self._began = self._clock()
        lengths: IdArray = self.ladder[chosen]
        return lengths

    def observe(self, rows: Rows, drafted: IdArray, kept: IdArray) -> None:
        longest = int(drafted[rows.active].max(initial=0))
        if longest in self.ladder:
            self._seconds[int(np.searchsorted(self.ladder, longest))].append(self._clock() - self._began)
        for row in np.flatnonzero(drafted).tolist():
            right = np.arange(drafted[row]) < kept[row]
            seen = right[: min(int(kept[row]) + 1, int(drafted[row]))]  # behind the first refusal nothing is learnt
            self._accepts[row, : len(seen)] += LEARNING_RATE * (seen - self._accepts[row, : len(seen)])

    def _begin(self, rows: Rows) -> None:
        """Forget what was learnt of a row's former record."""
        if len(self._records) != len(rows.records):
            self._records = np.full(len(rows.records), -1, dtype=np.int64)
            self._accepts = np.full((len(rows.records), int(self.ladder[-1])), 0.8)
        changed = self._records != rows.records
        self._accepts[changed], self._records[changed] = 0.8, rows.records[changed]

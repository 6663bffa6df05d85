"""How many bytes to draft: a fixed number, or what pays on these texts and this machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final, Protocol

from bltcli.vocab import IdArray

#: The lengths that are tried. Odd ones fill calls of an even number of rows: a draft is verified behind a pending byte.
LADDER: Final = (0, 1, 2, 3, 5, 7, 11, 15)
FIRST: Final = (7, 3)  # tried before anything is known
LOOK: Final = 2  # rounds of a length that is only looked at
STAY: Final = 8  # rounds between decisions
LOOK_EVERY: Final = 6  # decisions between looks at a neighbour of the length in use
SAMPLES: Final = 16  # rounds of each length that make its price
GUESS: Final = 0.8  # share of first bytes that are right, before there is any
LEARNING_RATE: Final = 0.05


class DraftLength(Protocol):
    def choose(self) -> int:
        """Bytes that each row may draft in the round that begins."""
        ...

    def observe(self, drafted: IdArray, kept: IdArray) -> None:
        """The round is over: kept[r] of drafted[r] bytes of each row were right."""
        ...


class FixedLength:
    """Always the same."""

    def __init__(self, k: int) -> None:
        self.k = k

    def choose(self) -> int:
        return self.k

    def observe(self, drafted: IdArray, kept: IdArray) -> None:
        pass


class AdaptiveLength:
    """The k that promises most bytes per second, by how often the bytes at each place of a draft were right and how
    long rounds of each length took; lengths not tried yet are priced on the line through the others. 0 is among them,
    so that drafting stops where it does not pay.

    One k for all rows, as a round takes as long as its longest draft; and what is learnt of one text serves the next.
    What is generated does not depend on k, so that a clock may decide."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock, self._began = clock, 0.0
        self._seconds: dict[int, deque[float]] = {k: deque(maxlen=SAMPLES) for k in LADDER}
        self._right: list[float] = []  # by place in the draft: how many were right where those before them were
        self._k, self._left, self._decisions = 0, 0, 0

    def choose(self) -> int:
        if not self._left:
            self._k, self._left = self._decide()
        self._left -= 1
        self._began = self._clock()
        return self._k

    def observe(self, drafted: IdArray, kept: IdArray) -> None:
        counts = drafted.tolist()
        if max(counts) == self._k:  # near the end of a text it is less
            self._seconds[self._k].append(self._clock() - self._began)
        for count, good in zip(counts, kept.tolist(), strict=True):
            for place in range(min(good + 1, count)):  # behind the first refusal nothing is learnt
                if place == len(self._right):
                    self._right.append(self._right[-1] if place else GUESS)
                self._right[place] += LEARNING_RATE * ((place < good) - self._right[place])

    def _decide(self) -> tuple[int, int]:
        """The length of the next rounds, and how many."""
        for k in FIRST:
            if not self._seconds[k]:
                return k, LOOK
        self._decisions += 1
        promised = [n / s for n, s in zip(self._bytes(), self._prices(), strict=True)]
        best = promised.index(max(promised))
        if self._decisions % LOOK_EVERY:
            return LADDER[best], STAY
        step = 1 if self._decisions % (2 * LOOK_EVERY) else -1
        looked_at = LADDER[min(max(best + step, 0), len(LADDER) - 1)]
        self._seconds[looked_at].clear()  # prices change
        return looked_at, LOOK

    def _bytes(self) -> list[float]:
        """Bytes that a round of each length is expected to give, the full model's own included."""
        expected, right = [1.0], 1.0
        for place in range(LADDER[-1]):
            right *= self._right[min(place, len(self._right) - 1)] if self._right else GUESS
            expected.append(expected[-1] + right)
        return [expected[k] for k in LADDER]

    def _prices(self) -> list[float]:
        """Seconds of a round of each length. The slowest of each, which may have been its first, is left out."""
        known = {k: (sum(s) - max(s)) / (len(s) - 1) if len(s) > 1 else s[0] for k, s in self._seconds.items() if s}
        low, high = min(known), max(known)
        slope = max(0.0, (known[high] - known[low]) / (high - low))
        return [known.get(k, max(known[low] + (k - low) * slope, known[low] / 2)) for k in LADDER]

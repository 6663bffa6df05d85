"""State along one axis, bytes or patches: linear buffers written in place, and where each text stands in them.

Slot of position p of row r: p - bases[r]. Rewinding moves a length; nothing that was cached is ever revised, only
overwritten. Knows no graph and no runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bltcli.graphs import MASKED
from bltcli.vocab import IdArray
from bltcli_engines.protocol import Buffer

STEP = 128  # what estimates and fixed numbers of slots are rounded to; buffers that grow follow their runtime
SPARE = 3  # times what is needed that a capacity may be before it shrinks


class KVCache:
    """All buffers that share the byte axis, or the patch axis."""

    def __init__(self, buffers: Sequence[Buffer], rows: int, step: int) -> None:
        """Capacities are multiples of `step`."""
        self.buffers, self.step = list(buffers), step
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.bases = np.zeros(rows, dtype=np.int64)
        self._sights: dict[tuple[int | None, int], NDArray[np.float32]] = {}  # by window and capacity

    @property
    def capacity(self) -> int:
        return self.buffers[0].capacity

    @property
    def used(self) -> int:
        """Slots that the longest row fills."""
        longest: int = max((self.lengths - self.bases).tolist())
        return longest

    def reserve(self, more: int) -> None:
        """Make room for `more` positions beyond each row's; give back what is far more than that, as after a long
        text."""
        needed = -(-(self.used + more) // self.step) * self.step
        if not needed <= self.capacity <= SPARE * needed:
            for buffer in self.buffers:
                buffer.resize(needed)

    def slide(self, row: int, first_needed: int, step: int) -> None:
        """Drop what lies before position `first_needed` of `row`, in whole steps."""
        base = max(0, first_needed) // step * step
        if base > self.bases[row]:
            for buffer in self.buffers:
                buffer.shift(row, int(base - self.bases[row]))
            self.bases[row] = base

    def append(self, counts: IdArray) -> None:
        """Count counts[r] more positions of each row as written."""
        self.lengths += counts

    def rewind(self, lengths: IdArray) -> None:
        """Forget positions from lengths[r] on. Forward, or behind what has slid away, is an error of the caller."""
        assert (lengths <= self.lengths).all(), "rewinding forward"
        assert (lengths >= np.minimum(self.bases, self.lengths)).all(), "rewinding behind the buffers"
        self.lengths[:] = lengths

    def adopt(self, row: int, other: KVCache, source: int) -> None:
        """Let `row` stand where row `source` of another cache stands."""
        self.lengths[row], self.bases[row] = other.lengths[source], other.bases[source]
        self.reserve(0)
        for own, theirs in zip(self.buffers, other.buffers, strict=True):
            own.adopt(row, theirs, source, int(other.lengths[source] - other.bases[source]))

    def clear(self, row: int) -> None:
        """Start `row` anew; what its slots hold is finite and masked until it is overwritten."""
        self.lengths[row] = self.bases[row] = 0

    def bias(
        self, own: IdArray, window: int | None, blocks: tuple[IdArray, IdArray] | None = None
    ) -> NDArray[np.float32]:
        """attn_bias [b, 1, q, C] of rows in slots own [b, q], in order: 0 where a row sees a slot, else MASKED.
        A row sees itself and what lies before it in its window; so does padding, as an empty row would be undefined.
        Window 3:

            slot       0  1  2  3  4  5
            row at 3   .  0  0  0  .  .
            row at 4   .  .  0  0  0  .

        `blocks`: rows from number blocks[0][r] to before blocks[1][r] are one, each also sees its later rows. 1 to 3:

            row at 3   .  0  0  0  .  .
            row at 4   .  .  0  0  0  0
            row at 5   .  .  .  0  0  0
        """
        bias: NDArray[np.float32] = self._sight(window)[own]
        if blocks is not None:
            firsts, ends = blocks
            for of_text, slot, first, end in zip(bias, own[:, 0].tolist(), firsts.tolist(), ends.tolist(), strict=True):
                for number in range(first, end - 1):
                    of_text[number, slot + number + 1 : slot + end] = 0
        return bias[:, None]

    def _sight(self, window: int | None) -> NDArray[np.float32]:
        """What a row in each slot sees, [C, C]; a view of one line, as each row is the last one moved by a slot."""
        size = self.capacity
        if (window, size) not in self._sights:
            line = np.full(2 * size - 1, MASKED, dtype=np.float32)
            line[max(0, size - (window or size)) : size] = 0
            self._sights[window, size] = np.lib.stride_tricks.sliding_window_view(line, size)[::-1]
        return self._sights[window, size]

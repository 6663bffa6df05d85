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

STEP = 128  # capacities grow in these steps: engines compute over the whole buffer, so spare room costs time
SPARE = 3  # times what is needed that a capacity may be before it shrinks
SLIDE = 512  # contents move by multiples of this, which leaves every value bitwise unchanged


class KVCache:
    """All buffers that share the byte axis, or the patch axis."""

    def __init__(self, buffers: Sequence[Buffer], rows: int) -> None:
        self.buffers = list(buffers)
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.bases = np.zeros(rows, dtype=np.int64)

    @property
    def capacity(self) -> int:
        return self.buffers[0].capacity

    def reserve(self, ends: IdArray) -> None:
        """Make room for positions below ends [b]; give back what is far more than that, as after a long text."""
        needed = -(-int((ends - self.bases).max()) // STEP) * STEP
        if not needed <= self.capacity <= SPARE * needed:
            for buffer in self.buffers:
                buffer.resize(needed)

    def slide(self, row: int, first_needed: int) -> None:
        """Drop what lies before position `first_needed` of `row`, in whole steps of SLIDE."""
        base = max(0, first_needed) // SLIDE * SLIDE
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
        self.reserve(self.lengths)
        for own, theirs in zip(self.buffers, other.buffers, strict=True):
            own.adopt(row, theirs, source, int(other.lengths[source] - other.bases[source]))

    def clear(self, row: int) -> None:
        """Start `row` anew; what its slots hold is finite and masked until it is overwritten."""
        self.lengths[row] = self.bases[row] = 0

    def place(self, starts: IdArray, counts: IdArray, rows: int, limit: int) -> dict[str, IdArray]:
        """position_ids [b, rows] and write_indices [b] of `rows` rows from position starts[r], counts[r] of them real.
        Positions of padding are clipped below `limit`, the length of the rotary table."""
        positions = starts[:, None] + np.arange(rows)
        real = np.arange(rows) < counts[:, None]
        return {
            "position_ids": np.where(real, positions, np.minimum(positions, limit - 1)),
            "write_indices": starts - self.bases,
        }

    def bias(
        self, starts: IdArray, counts: IdArray, rows: int, window: int | None, *, causal: IdArray | None = None
    ) -> NDArray[np.float32]:
        """attn_bias [b, 1, rows, C]: 0 where a row sees a slot, MASKED elsewhere. Window 3, one real row, one pad:

            slot       0  1  2  3  4  5
            row at 3   .  0  0  0  .  .
            pad at 4   .  .  .  .  0  .     a pad sees its own slot only: an empty row would be undefined

        Rows from number causal[r] on are a block: each also sees the block's later rows. Causal 1, three real rows:

            row at 3   .  0  0  0  .  .
            row at 4   .  .  0  0  0  0
            row at 5   .  .  .  0  0  0
        """
        slots, numbers = np.arange(self.capacity), np.arange(rows)
        first = starts - self.bases
        own = first[:, None] + numbers  # slot of each row, [b, rows]
        real = numbers < counts[:, None]
        last = (
            own if causal is None else np.where(real & (numbers >= causal[:, None]), (first + counts - 1)[:, None], own)
        )
        reach = np.where(real, self.capacity + 1 if window is None else window, 1)
        seen = (slots <= last[:, :, None]) & (slots > (own - reach)[:, :, None])
        return np.where(seen, np.float32(0), np.float32(MASKED))[:, None]

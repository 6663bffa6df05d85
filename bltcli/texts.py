"""What the host keeps of a batch of texts: ids, how many patches were closed up to each byte, where patches start.

Everything is indexed by position, and rewinding moves lengths. Knows no graph and no engine, but the buffers it makes
room in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bltcli.cache import KVCache
from bltcli.config import ModelConfig
from bltcli.patcher import closes_patch
from bltcli.sampling import FloatArray
from bltcli.vocab import IdArray
from bltcli_engines.protocol import Buffer

PREFILL_ROWS = 128

#: Per text: first byte and length of each patch.
Patches = list[list[tuple[int, int]]]


class Texts:
    """A batch of texts, and where each stands in the buffers that hold its state."""

    def __init__(
        self, config: ModelConfig, rows: int, byte_buffers: Sequence[Buffer], patch_buffers: Sequence[Buffer]
    ) -> None:
        self.config, self.rows = config, rows
        self.byte_cache, self.patch_cache = KVCache(byte_buffers, rows), KVCache(patch_buffers, rows)
        # indexed by position + _margin: reading a little before or after the text needs no clipping
        self._margin = max(config.encoder.hash_group_sizes, default=1) - 1
        shape = (rows, self._margin + config.max_bytes + PREFILL_ROWS + 2)
        self._ids = np.zeros(shape, dtype=np.int64)
        self._closed = np.zeros(shape, dtype=np.int64)  # patches closed up to and including a byte
        self._starts = np.zeros(
            (rows, config.global_model.max_positions + 1), dtype=np.int64
        )  # the last: of the open one
        self._row = np.arange(rows)[:, None]
        self.encoded = np.zeros(rows, dtype=np.int64)  # bytes whose states are valid; ahead while drafting
        self.decoded = np.zeros(rows, dtype=np.int64)  # bytes whose decoder keys are valid; behind after `absorb`
        self.peeked = np.zeros(rows, dtype=np.int64)  # 1 where the latent after the last one is that of the open patch
        local = (config.patcher, config.encoder, config.decoder)
        self._reach = max(stack.window or config.max_bytes for stack in local)
        self._placed_for: tuple[Any, ...] = ()
        self._placed: dict[str, Any] = {}

    @property
    def max_bytes(self) -> int:
        return self.config.max_bytes

    @property
    def lengths(self) -> IdArray:
        return self.byte_cache.lengths

    @property
    def patches(self) -> IdArray:
        return self.patch_cache.lengths

    @property
    def room(self) -> IdArray:
        bytes_left = self.config.max_bytes - self.lengths
        return np.minimum(bytes_left, self.config.global_model.max_positions - self.patches)

    @property
    def latest(self) -> IdArray:
        """Number of the latent that continues each text, [b]: of the last closed patch, or of the open one."""
        found: IdArray = np.maximum(self.patches - 1, 0) + self.peeked
        return found

    def patch_starts(self, row: int) -> list[int]:
        """Position of the first byte of each patch of text `row`, the open one included."""
        starts: list[int] = self._starts[row, : self.patches[row] + 1].tolist()
        return starts

    def clear(self, row: int) -> None:
        self.byte_cache.clear(row)
        self.patch_cache.clear(row)
        self.encoded[row] = self.decoded[row] = self.peeked[row] = 0

    def adopt(self, row: int, other: Texts, source: int) -> None:
        """Let text `row` be text `source` of another batch of the same model: a copy of its state."""
        self.byte_cache.adopt(row, other.byte_cache, source)
        self.patch_cache.adopt(row, other.patch_cache, source)
        for own, theirs in (
            (self._ids, other._ids), (self._closed, other._closed), (self._starts, other._starts),
            (self.encoded, other.encoded), (self.decoded, other.decoded), (self.peeked, other.peeked),
        ):  # fmt: skip
            own[row] = theirs[source]

    def rewind(self, lengths: IdArray) -> None:
        kept = self.byte_cache.bases <= np.maximum(0, lengths - self._reach + 1)
        assert (kept | (lengths == self.lengths)).all(), "rewinding to where what a window needs has slid away"
        self.byte_cache.rewind(lengths)
        closed = self._closed[self._row[:, 0], self._margin + np.maximum(lengths - 1, 0)]
        self.patch_cache.rewind(np.where(lengths > 0, closed, 0))
        np.minimum(self.encoded, lengths, out=self.encoded)
        np.minimum(self.decoded, lengths, out=self.decoded)
        self.peeked[:] = 0

    def store(self, starts: IdArray, ids: Sequence[IdArray]) -> None:
        """Write ids; byte states stay valid up to the first id that changes."""
        for row, new in enumerate(ids):
            if len(new):
                start = int(starts[row])
                held = self._ids[row, self._margin + start : self._margin + start + len(new)]
                changed = np.flatnonzero(held != new)
                if changed.size:
                    self.encoded[row] = min(int(self.encoded[row]), start + int(changed[0]))
                held[:] = new

    def ids(self, starts: IdArray, rows: int, *, context: bool = False) -> IdArray:
        """Ids [b, rows] from positions starts[r] on, whatever was written there; with `context` also those before that
        n-grams reach back to."""
        return self._window(self._ids, starts, rows, self._margin if context else 0)

    def latents(self, starts: IdArray, rows: int) -> IdArray:
        """Number of the latent that each byte from positions starts[r] on reads, [b, rows]."""
        found: IdArray = np.maximum(self._window(self._closed, starts, rows) - 1, 0)
        return found

    def _window(self, held: IdArray, starts: IdArray, rows: int, before: int = 0) -> IdArray:
        window: IdArray = held[self._row, (starts + self._margin)[:, None] + np.arange(-before, rows)]
        return window

    def make_room(self, counts: IdArray) -> None:
        """Slide what no row needs any more, then hold counts[r] positions beyond each text."""
        for row in range(self.rows):
            open_patch = self._starts[row, self.patches[row]] if self.lengths[row] else 0
            self.byte_cache.slide(row, min(int(self.decoded[row]) - self._reach + 1, int(open_patch)))
        self.byte_cache.reserve(self.lengths + counts)

    def place(self, starts: IdArray, counts: IdArray, rows: int, window: int | None) -> dict[str, Any]:
        """Positions, slots and mask of byte rows; kept, as the graphs of one pass mostly ask for the same."""
        cache = self.byte_cache
        key = (rows, window, cache.capacity, starts.tobytes(), counts.tobytes(), cache.bases.tobytes())
        if key != self._placed_for:
            self._placed_for = key
            self._placed = {
                **cache.place(starts, counts, rows, self.config.max_bytes),
                "attn_bias": cache.bias(starts, counts, rows, window),
            }
        return self._placed

    def close_patches(self, counts: IdArray, entropy: FloatArray, *, peek: bool) -> Patches:
        """Decide which of the counts[r] bytes after each text end a patch, by the entropies [b, q] after them.

        Returns the patches that ended; with `peek`, the open ones too, whose latents count until the next byte comes.
        """
        patches: Patches = [[] for _ in range(self.rows)]
        self.peeked[:] = 0
        for row in np.flatnonzero(counts).tolist():
            start, count, closed = int(self.lengths[row]), int(counts[row]), int(self.patches[row])
            first = int(self._starts[row, closed]) if start else 0
            ends = closes_patch(
                entropy[row, :count], position=start, open_bytes=start - first, config=self.config.patcher
            )
            self._closed[row, self._margin + start : self._margin + start + count] = closed + np.cumsum(ends)
            if not start:
                self._starts[row, 0] = 0
            for end in (np.flatnonzero(ends) + start + 1).tolist():
                patches[row].append((first, end - first))
                first = end
                closed += 1
                self._starts[row, closed] = first
            if peek and first < start + count:
                patches[row].append((first, start + count - first))
                self.peeked[row] = 1
        return patches

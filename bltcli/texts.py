"""What the host keeps of a batch of texts: ids, how many patches were closed up to each byte, where patches start.

Everything is indexed by position, and rewinding moves lengths. Knows no graph and no engine, but the buffers it makes
room in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bltcli.cache import KVCache
from bltcli.config import ModelConfig
from bltcli.patcher import closes_patch
from bltcli.sampling import FloatArray
from bltcli.vocab import IdArray
from bltcli_engines.protocol import Buffer

PREFILL_ROWS = 128
#: Of each text: what the decoder is behind with at most, and a call's patches and their padding.
LATENT_SLOTS = 3 * PREFILL_ROWS

#: Per text: first byte and length of each patch.
Patches = list[list[tuple[int, int]]]


def slide_step(config: ModelConfig) -> int:
    """Slots by whose multiples the contents of a model's local buffers may move with every value bitwise unchanged:
    ONNX Runtime's CPU sums values over slots in groups of 16,384 / head dimension, of a power of two from 16 to 128."""
    return max(16_384 // min(max(16, 1 << (stack.head_dim - 1).bit_length()), 128) for stack in config.local)


@dataclass(frozen=True)
class Span:
    """Byte rows of one call of a local graph; padding has the ids that were last written there."""

    positions: IdArray  # [b, rows]
    ids: IdArray  # [b, margin + rows]: with the ids before them that n-grams reach back to
    place: dict[str, Any]  # position_ids, write_indices and attn_bias
    window: int | None  # of `place`

    @property
    def own_ids(self) -> IdArray:
        """[b, rows]"""
        return self.ids[:, -self.positions.shape[1] :]


class Texts:
    """A batch of texts, and where each stands in the buffers that hold its state."""

    def __init__(self, config: ModelConfig, rows: int, step: int, buffers: Sequence[Sequence[Buffer]]) -> None:
        """`step`: that of the capacities of `buffers`, which lie along the axes of bytes, patches and latents."""
        self.config, self.rows, self.max_bytes = config, rows, config.max_bytes
        self.byte_cache, self.patch_cache, self.latent_cache = (KVCache(along, rows, step) for along in buffers)
        self.latent_cache.lengths = self.patch_cache.lengths  # one array: there is a latent of every closed patch
        # indexed by position + _margin: reading a little before or after the text needs no clipping
        self._margin = max(config.encoder.hash_group_sizes, default=1) - 1
        shape = (rows, self._margin + config.max_bytes + PREFILL_ROWS + 2)
        self._ids = np.zeros(shape, dtype=np.int64)
        self._closed = np.zeros(shape, dtype=np.int64)  # patches closed up to and including a byte
        self._starts = np.zeros(
            (rows, config.global_model.max_positions + 1), dtype=np.int64
        )  # the last: of the open one
        self._row = np.arange(rows)[:, None]
        self.encoded = np.zeros(rows, dtype=np.int64)  # bytes whose states are valid; ahead while drafting, or behind
        self.decoded = np.zeros(rows, dtype=np.int64)  # bytes whose decoder keys are valid; behind after `absorb`
        self.peeked = np.zeros(rows, dtype=np.int64)  # 1 where the latent after the last one is that of the open patch
        self._reach, self._slide = config.reach, slide_step(config)

    @property
    def lengths(self) -> IdArray:
        return self.byte_cache.lengths

    @property
    def patches(self) -> IdArray:
        return self.patch_cache.lengths

    @property
    def room(self) -> IdArray:
        bytes_left = self.max_bytes - self.lengths
        return np.minimum(bytes_left, self.config.global_model.max_positions - self.patches)

    @property
    def latest(self) -> IdArray:
        """Slot of the latent that continues each text, [b]: of the last closed patch, or of the open one."""
        found: IdArray = np.maximum(self.patches - 1, 0) + self.peeked - self.latent_cache.bases
        return found

    @property
    def behind(self) -> IdArray:
        """How far the graph that is furthest behind has come in each text, [b]."""
        found: IdArray = np.minimum(self.encoded, self.decoded)
        return found

    def patch_starts(self, row: int) -> list[int]:
        """Position of the first byte of each patch of text `row`, the open one included."""
        starts: list[int] = self._starts[row, : self.patches[row] + 1].tolist()
        return starts

    def clear(self, row: int) -> None:
        self.byte_cache.clear(row)
        self.patch_cache.clear(row)
        self.latent_cache.clear(row)
        self.encoded[row] = self.decoded[row] = self.peeked[row] = 0

    def adopt(self, row: int, other: Texts, source: int) -> None:
        """Let text `row` be text `source` of another batch of the same model: a copy of its state."""
        self.byte_cache.adopt(row, other.byte_cache, source)
        self.patch_cache.adopt(row, other.patch_cache, source)
        self.latent_cache.adopt(row, other.latent_cache, source)
        for own, theirs in (
            (self._ids, other._ids), (self._closed, other._closed), (self._starts, other._starts),
            (self.encoded, other.encoded), (self.decoded, other.decoded), (self.peeked, other.peeked),
        ):  # fmt: skip
            own[row] = theirs[source]

    def rewind(self, lengths: IdArray) -> None:
        self.peeked[:] = 0
        if lengths.tolist() == self.lengths.tolist():
            return
        kept = self.byte_cache.bases <= np.maximum(0, lengths - self._reach + 1)
        assert (kept | (lengths == self.lengths)).all(), "rewinding to where what a window needs has slid away"
        self.byte_cache.rewind(lengths)
        closed = self._closed[self._row[:, 0], self._margin + np.maximum(lengths - 1, 0)]
        closed = np.where(lengths > 0, closed, 0)
        assert (self.latent_cache.bases <= np.maximum(0, closed - 1)).all(), "rewinding to a latent that has slid away"
        self.patch_cache.rewind(closed)
        np.minimum(self.encoded, lengths, out=self.encoded)
        np.minimum(self.decoded, lengths, out=self.decoded)

    def store(self, starts: IdArray, ids: Sequence[IdArray]) -> None:
        """Write ids; byte states stay valid up to the first id that changes."""
        for row, new in enumerate(ids):
            if len(new):
                start = int(starts[row])
                held = self._ids[row, self._margin + start : self._margin + start + len(new)]
                if self.encoded[row] > start:
                    changed = np.flatnonzero(held != new)
                    if changed.size:
                        self.encoded[row] = min(int(self.encoded[row]), start + int(changed[0]))
                held[:] = new

    def span(self, starts: IdArray, rows: int, window: int | None, last: Span | None = None) -> Span:
        """`rows` byte rows from position starts[r] on, for a graph with this window. `last` again if it has the same
        rows, which see the same, and nothing was stored since."""
        if last is None or last.positions.shape[1] != rows or last.positions[:, 0].tolist() != starts.tolist():
            positions = starts[:, None] + np.arange(rows)
            ids = self.ids_at(starts - self._margin, self._margin + rows)
            return Span(positions, ids, self.place(positions, window), window)
        end = max(starts.tolist()) + rows
        if window == last.window or all(w is None or end <= w for w in (window, last.window)):
            return last
        return replace(last, place=self.place(last.positions, window), window=window)

    def ids_at(self, starts: IdArray, count: int) -> IdArray:
        """A copy of `count` ids from position starts[r] on, which may lie a margin before the text, [b, count]."""
        found: IdArray = self._ids[self._row, (self._margin + starts)[:, None] + np.arange(count)]
        return found

    def place(
        self, positions: IdArray, window: int | None, blocks: tuple[IdArray, IdArray] | None = None
    ) -> dict[str, Any]:
        """Positions, slots and mask of byte rows, of which `blocks` see their later rows too (`KVCache.bias`);
        positions of padding end with the rotary table."""
        slots = positions - self.byte_cache.bases[:, None]
        return {
            "position_ids": np.minimum(positions, self.max_bytes - 1),
            "write_indices": slots[:, 0],
            "attn_bias": self.byte_cache.bias(slots, window, blocks),
        }

    def latents(self, positions: IdArray) -> IdArray:
        """Slot of the latent that the byte at each position reads, [b, q]; padding one that is there for certain."""
        found: IdArray = self._closed[self._row, positions + self._margin]
        np.minimum(found, self.patches[:, None], out=found)
        found -= 1 + self.latent_cache.bases[:, None]
        return np.maximum(found, 0, out=found)

    def make_room(self, rows: int) -> None:
        """Slide what no row needs any more, then hold `rows` positions beyond each text."""
        if self.byte_cache.used >= self._slide:
            behind = self.behind
            for row in range(self.rows):
                open_patch = self._starts[row, self.patches[row]] if self.lengths[row] else 0
                self.byte_cache.slide(row, min(int(behind[row]) - self._reach + 1, int(open_patch)), self._slide)
        self.byte_cache.reserve(rows)

    def make_latent_room(self, patches: int) -> None:
        """Let latents that no byte reads any more slide away where there are many, then hold `patches` beyond those of
        each text."""
        if self.latent_cache.used + patches > LATENT_SLOTS:
            last = self._margin + np.maximum(self.decoded - 1, 0)
            read = np.where(self.decoded > 0, self._closed[self._row[:, 0], last] - 1, 0)
            for row, first in enumerate(read.tolist()):
                self.latent_cache.slide(row, first, 1)
        self.latent_cache.reserve(patches)

    def close_patches(self, counts: IdArray, entropy: FloatArray, *, peek: bool) -> Patches:
        """Decide which of the counts[r] bytes after each text end a patch, by the entropies [b, q] after them.

        Returns the patches that ended; with `peek`, the open ones too, whose latents count until the next byte comes.
        """
        patches: Patches = [[] for _ in range(self.rows)]
        self.peeked[:] = 0
        for row, count in enumerate(counts.tolist()):
            if not count:
                continue
            start, closed = int(self.lengths[row]), int(self.patches[row])
            first = int(self._starts[row, closed]) if start else 0
            ends = closes_patch(
                entropy[row, :count], position=start, open_bytes=start - first, config=self.config.patcher
            )
            if not start:
                self._starts[row, 0] = 0
            for position, ended in enumerate(ends, start):
                if ended:
                    patches[row].append((first, position + 1 - first))
                    first = position + 1
                    closed += 1
                    self._starts[row, closed] = first
                self._closed[row, self._margin + position] = closed
            if peek and first < start + count:
                patches[row].append((first, start + count - first))
                self.peeked[row] = 1
        return patches

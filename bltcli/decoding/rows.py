"""Texts that are being decoded together: who is active, what is pending, what was committed. Knows no method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bltcli.sampling import Chooser, FloatArray, Sampler
from bltcli.stats import DecodeStats
from bltcli.vocab import EOS, IdArray

if TYPE_CHECKING:
    from bltcli.decoding.protocol import ByteModel

Bools = NDArray[np.bool_]
#: No ids.
NOTHING: IdArray = np.empty(0, dtype=np.int64)


def where(rows: Bools) -> list[int]:
    """Numbers of the rows [b] that are true; NumPy's own way costs more than a small batch."""
    return [row for row, chosen in enumerate(rows.tolist()) if chosen]


class Rows:
    """One row per text of the model.

    Invariant: between rounds an active row has pending bytes, at least one: committed, but not run through the graphs
    yet. After a verified round there is just one, the full model's own byte; so each round commits at least one byte
    and no "bonus token" case exists. After an unverified one the whole block is pending, or nothing (`keep_patches`);
    after one of the hybrid that byte, and what was trusted behind it.
    """

    def __init__(self, model: ByteModel, sampler: Sampler, stats: DecodeStats, count: int) -> None:
        self.model, self.sampler, self.stats = model, sampler, stats
        self.active = np.zeros(count, dtype=np.bool_)
        self.pending: list[IdArray] = [NOTHING] * count
        self.records = np.zeros(count, dtype=np.int64)
        self.choose = Chooser(sampler, self.records)
        self.wanted = np.zeros(count, dtype=np.int64)  # bytes still wanted after the pending ones
        self.texts: list[list[int]] = [[] for _ in range(count)]  # ids, prompt included
        self.guesses: list[IdArray] = [NOTHING] * count  # of bytes after the pending ones; forgotten when a text ends
        self._taken = [0] * count
        self._begun_bytes = np.zeros(count, dtype=np.int64)
        self._begun_patches = np.zeros(count, dtype=np.int64)

    def start(self, row: int, prompt: IdArray, *, record: int, logits: FloatArray, wanted: int) -> None:
        """Activate `row` after its prompt (ids with BOS) was run: logits [260] of its last byte choose the first."""
        position = self.model.lengths[row : row + 1]
        self.records[row], self.active[row] = record, True
        self.texts[row], self._taken[row], self.wanted[row] = prompt.tolist(), len(prompt), wanted
        self._commit(row, self.sampler.choose(logits[None], self.records[row : row + 1], position).tolist())
        self._begun_bytes[row], self._begun_patches[row] = position[0], self.model.patches[row]

    def finish(self, row: int) -> None:
        """Deactivate `row`."""
        self.active[row], self.pending[row], self.guesses[row] = False, NOTHING, NOTHING
        self.stats.patches += int(self.model.patches[row] - self._begun_patches[row])
        self.stats.patch_bytes += int(self.model.lengths[row] - self._begun_bytes[row])

    def take(self, row: int) -> list[int]:
        """The ids committed to `row` since the last call."""
        ids = self.texts[row][self._taken[row] :]
        self._taken[row] = len(self.texts[row])
        return ids

    @property
    def last(self) -> IdArray:
        """The one pending byte of each row, [b]; 0 for inactive rows."""
        assert all(len(ids) <= 1 for ids in self.pending)
        return np.array([ids[0] if len(ids) else 0 for ids in self.pending], dtype=np.int64)

    def draft_counts(self, k: int) -> IdArray:
        """How many bytes each row may draft, [b]: at most k, no further than its end, none after a pending EOS."""
        if k == 0:
            return np.zeros(len(self.active), dtype=np.int64)
        ended = np.array([EOS in ids.tolist() for ids in self.pending], dtype=np.bool_)
        counts = np.minimum(np.minimum(k, self._room_after(self.pending)), self.wanted - 1)
        return np.where(self.active & ~ended, np.maximum(counts, 0), 0)

    def block_counts(self, block: int, runs: Sequence[IdArray] | None = None) -> IdArray:
        """Lengths of blocks that may be committed unverified, [b]: `block`, or what room there is after `runs`, the
        pending bytes if not said. Such a block may run over the end of what is wanted: shorter there, its bytes would
        depend on how many are wanted."""
        room = self._room_after(self.pending if runs is None else runs)
        return np.where(self.active, np.minimum(np.maximum(room, 0), block), 0)

    def _room_after(self, runs: Sequence[IdArray]) -> IdArray:
        return self.model.room - np.array([len(ids) for ids in runs], dtype=np.int64)

    def absorb(self, *, leave: int = 0, peek: bool = False) -> None:
        """Run pending bytes, all but the last `leave` of each row, through patcher, encoder and global model."""
        runs = [ids[: max(0, len(ids) - leave)] for ids in self.pending]
        self.pending = [ids[len(run) :] for ids, run in zip(self.pending, runs, strict=True)]
        if any(map(len, runs)):
            self.model.absorb(runs, peek=peek)

    def with_pending(self, drafts: Sequence[IdArray], rows: Bools | None = None) -> list[IdArray]:
        """The bytes that a verifying pass runs: pending, then draft; nothing for rows that are inactive or left out."""
        runs = [NOTHING] * len(drafts)
        for row in self._chosen(rows):
            runs[row] = np.concatenate([self.pending[row], drafts[row]]) if len(drafts[row]) else self.pending[row]
        return runs

    def keep(self, blocks: Sequence[IdArray]) -> None:
        """Commit blocks as they are, unverified: what this round gave."""
        self.trust(blocks)
        for row in where(self.active):
            if len(blocks[row]):
                self.stats.bytes_per_round_histogram[len(blocks[row])] += 1

    def guess(self, logits: FloatArray, ends: IdArray, *, first: int = 0) -> list[IdArray]:
        """Bytes chosen from logits [b, B, 260] of what follows each text, those from number `first` to before
        ends[r]."""
        columns = np.arange(logits.shape[1])
        row, column = np.nonzero((first <= columns) & (columns < ends[:, None]))
        chosen = self.choose(logits[row, column], row, self.model.lengths[row] + column) if len(row) else NOTHING
        return [chosen[row == r] for r in range(len(ends))]

    def trust(self, ids: Sequence[IdArray]) -> None:
        """Commit bytes after the pending ones, unverified; the round in which they are run counts them."""
        for row in where(self.active):
            if len(ids[row]):
                self.pending[row] = np.concatenate([self.pending[row], ids[row]])
                self._append(row, ids[row].tolist())

    def keep_patches(self, blocks: Sequence[IdArray]) -> None:
        """Run blocks through patcher, encoder and global model. Of each, commit what ends with its last patch,
        unverified; all of it where no patch ends. Rewinds the model past the rest; nothing is pending."""
        starts = self.model.lengths.copy()
        self.model.absorb(blocks)
        lengths = self.model.lengths.copy()
        for row in self._chosen(None):
            ends = [end for end in self.model.patch_starts(row) if end > starts[row]]
            if ends:
                lengths[row] = ends[-1]
            kept = blocks[row][: lengths[row] - starts[row]].tolist()
            if kept:
                self._append(row, kept)
                self.stats.bytes_per_round_histogram[len(kept)] += 1
        self.model.rewind(lengths)

    def verify(self, logits: FloatArray, drafts: Sequence[IdArray], rows: Bools | None = None) -> IdArray:
        """Keep of each draft what the full model agrees with, plus its own next byte; rewind the model past the rest.

        logits [b, q, 260] of `with_pending`, run since. Returns how many drafted bytes were kept, [b].
        """
        chosen, lengths, kept = self._chosen(rows), self.model.lengths.copy(), np.zeros(len(drafts), dtype=np.int64)
        row, column, position = list[int](), list[int](), list[int]()  # of each byte of the full model
        for r in chosen:
            count, end, trusted = len(drafts[r]) + 1, int(lengths[r]) + 1, len(self.pending[r]) - 1
            row += [r] * count
            column += range(trusted, trusted + count)
            position += range(end - count, end)
        line = self.choose(logits[row, column], np.array(row), np.array(position)).tolist()
        for r in chosen:
            own, line = line[: len(drafts[r]) + 1], line[len(drafts[r]) + 1 :]
            agreed = kept[r] = count_agreed(drafts[r].tolist(), own)
            self.stats.drafted += len(drafts[r])
            self.stats.accepted += agreed
            self.stats.bytes_per_round_histogram[len(self.pending[r]) + agreed] += 1
            self._commit(r, own[: agreed + 1])
            lengths[r] -= len(drafts[r]) - agreed
        self.model.rewind(lengths)
        return kept

    def _chosen(self, rows: Bools | None) -> list[int]:
        return where(self.active if rows is None else self.active & rows)

    def _commit(self, row: int, ids: list[int]) -> None:
        """Commit ids of which the last has not been run yet."""
        self.pending[row] = np.array(ids[-1:], dtype=np.int64)
        self._append(row, ids)

    def _append(self, row: int, ids: list[int]) -> None:
        self.texts[row] += ids
        self.wanted[row] -= len(ids)


def count_agreed(draft: Sequence[int], own: Sequence[int]) -> int:
    """How many bytes of a draft come before the first that is not the full model's own."""
    for index, (drafted, chosen) in enumerate(zip(draft, own, strict=False)):
        if drafted != chosen:
            return index
    return len(draft)

"""Texts that are being decoded together: who is active, what is pending, what was committed. Knows no method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bltcli.sampling import FloatArray, Sampler
from bltcli.stats import DecodeStats
from bltcli.vocab import EOS, IdArray

if TYPE_CHECKING:
    from bltcli.decoding.protocol import ByteModel


class Rows:
    """One row per text of the model.

    Invariant: the pending byte of an active row is already the full model's own byte; it is committed, but was not run
    through the graphs yet. So each round commits at least one byte and no "bonus token" case exists.
    """

    def __init__(self, model: ByteModel, sampler: Sampler, stats: DecodeStats, count: int) -> None:
        self.model, self.sampler, self.stats = model, sampler, stats
        self.active = np.zeros(count, dtype=np.bool_)
        self.pending = np.zeros(count, dtype=np.int64)
        self.records = np.zeros(count, dtype=np.int64)
        self.wanted = np.zeros(count, dtype=np.int64)  # bytes still wanted after the pending one
        self._begun_bytes = np.zeros(count, dtype=np.int64)
        self._begun_patches = np.zeros(count, dtype=np.int64)
        self.committed: list[list[int]] = [[] for _ in range(count)]  # since `take` was last called

    def start(self, row: int, *, record: int, logits: FloatArray, wanted: int) -> None:
        """Activate `row` after its prompt was run: logits [260] of the last prompt byte choose the first byte."""
        position = self.model.lengths[row : row + 1]
        self.records[row], self.active[row] = record, True
        self.pending[row] = self.sampler.choose(logits[None], self.records[row : row + 1], position)[0]
        self.committed[row] = [int(self.pending[row])]
        self.wanted[row] = wanted - 1
        self._begun_bytes[row], self._begun_patches[row] = position[0], self.model.patches[row]

    def finish(self, row: int) -> None:
        """Deactivate `row`."""
        self.active[row] = False
        self.stats.patches += int(self.model.patches[row] - self._begun_patches[row])
        self.stats.patch_bytes += int(self.model.lengths[row] - self._begun_bytes[row])

    def take(self, row: int) -> list[int]:
        """The ids committed to `row` since the last call."""
        ids, self.committed[row] = self.committed[row], []
        return ids

    def draft_counts(self, k: int) -> IdArray:
        """How many bytes each row may draft, [b]: at most k, no further than its end, none after a pending EOS."""
        counts = np.minimum(np.minimum(k, self.model.room - 1), self.wanted - 1)
        return np.where(self.active & (self.pending != EOS), np.maximum(counts, 0), 0)

    def with_pending(self, drafts: list[IdArray]) -> list[IdArray]:
        """The bytes that a verifying pass runs: pending, then draft; nothing for inactive rows."""
        return [
            np.concatenate([self.pending[row : row + 1], drafts[row]]) if self.active[row] else drafts[row][:0]
            for row in range(len(drafts))
        ]

    def choose(self, logits: FloatArray, rows: IdArray, positions: IdArray) -> IdArray:
        """Ids for `rows` [n] at `positions` [n] from logits [n, 260]."""
        return self.sampler.choose(logits, self.records[rows], positions)

    def targets(self, logits: FloatArray, counts: IdArray) -> list[IdArray]:
        """The full model's own bytes, counts[r] of them, after the first rows that logits [b, q, 260] stand for."""
        row, column = np.nonzero(np.arange(logits.shape[1]) < counts[:, None])
        first = self.model.lengths - counts + 1  # position of the first byte chosen
        chosen = self.choose(logits[row, column], row, first[row] + column)
        return np.split(chosen, np.cumsum(counts)[:-1])

    def commit(self, drafts: list[IdArray], targets: list[IdArray]) -> None:
        """Keep what the full model agrees with, plus its own next byte; rewind the model past the rest."""
        lengths = self.model.lengths.copy()
        for row in np.flatnonzero(self.active):
            draft, target = drafts[row], targets[row]
            agreed = draft == target[:-1]
            kept = len(draft) if agreed.all() else int(agreed.argmin())
            self.committed[row] += target[: kept + 1].tolist()
            self.pending[row] = target[kept]
            self.wanted[row] -= kept + 1
            lengths[row] -= len(draft) - kept
            self.stats.drafted += len(draft)
            self.stats.accepted += kept
            self.stats.bytes_per_round_histogram[kept + 1] += 1
        self.model.rewind(lengths)
        self.stats.rounds += 1

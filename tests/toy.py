"""A model whose law is written down: the next byte depends on the last one alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bltcli.decoding.denoise import Unmask
from bltcli.decoding.protocol import Choose
from bltcli.sampling import FloatArray
from bltcli.stats import Work
from bltcli.vocab import OUTPUT_IDS, IdArray

CONTEXT = 4096


class ToyModel:
    """`law` [260, 260]: logits of the next id given the last one; `guess` the same for drafts. A patch per byte."""

    prefill_rows = 5
    block_size = 16

    def __init__(
        self, law: NDArray[np.float32], guess: NDArray[np.float32], rows: int = 1, context: int = CONTEXT
    ) -> None:
        self.law, self.guess, self.context = law, guess, context
        self.texts: list[list[int]] = [[] for _ in range(rows)]
        self.work = Work()

    @property
    def max_bytes(self) -> int:
        return self.context

    @property
    def lengths(self) -> IdArray:
        return np.array([len(text) for text in self.texts], dtype=np.int64)

    @property
    def patches(self) -> IdArray:
        return self.lengths

    @property
    def room(self) -> IdArray:
        return self.context - self.lengths

    def clear(self, row: int) -> None:
        self.texts[row] = []

    def rewind(self, lengths: IdArray) -> None:
        assert (lengths <= self.lengths).all()
        self.texts = [text[:n] for text, n in zip(self.texts, lengths.tolist(), strict=True)]

    def extend(self, ids: Sequence[IdArray]) -> FloatArray:
        assert (self.room >= [len(row) for row in ids]).all()
        logits = np.zeros((len(ids), max(map(len, ids)), OUTPUT_IDS), dtype=np.float32)
        for row, new in enumerate(ids):
            logits[row, : len(new)] = self.law[new]
            self.texts[row] += new.tolist()
        self.work.charge("decoder", 10, 1)
        return logits

    def denoise(self, pending: IdArray, counts: IdArray, unmask: Unmask, choose: Choose) -> list[IdArray]:
        """Position by position, as if each byte of the block followed the drafted one before it; `unmask` is asked."""
        for row, count in enumerate(counts.tolist()):
            if count:
                logits = np.repeat(self.guess[pending[row]][None, None], count, axis=1)
                assert unmask.reveal(logits, np.ones((1, count), dtype=np.bool_)).any()
        return self.draft(pending, counts, choose)

    def draft(self, pending: IdArray, counts: IdArray, choose: Choose) -> list[IdArray]:
        drafts = []
        for row, count in enumerate(counts.tolist()):
            last, found = pending[row], []
            for step in range(count):
                position = np.array([len(self.texts[row]) + step + 1])
                last = choose(self.guess[[last]], np.array([row]), position)[0]
                found.append(last)
            drafts.append(np.array(found, dtype=np.int64))
        return drafts


def chain(*ids: int) -> NDArray[np.float32]:
    """The law that follows `ids` in order, round and round."""
    law = np.zeros((OUTPUT_IDS, OUTPUT_IDS), dtype=np.float32)
    for last, following in zip(ids, [*ids[1:], ids[0]], strict=True):
        law[last, following] = 9
    return law


def random_law(seed: int, sharpness: float = 2.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((OUTPUT_IDS, OUTPUT_IDS)) * sharpness).astype(np.float32)

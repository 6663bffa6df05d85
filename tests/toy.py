"""A model whose law is written down: a Markov chain, the next byte depends on the last one alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bltcli.decoding.denoise import OfLogits, Unmask
from bltcli.decoding.protocol import Choose
from bltcli.sampling import FloatArray
from bltcli.stats import Ledger
from bltcli.vocab import OUTPUT_IDS, IdArray

CONTEXT = 4096


class ToyModel:
    """`law` [260, 260]: logits of the next id given the last one; `guess` the same for drafts. A patch per
    `patch_bytes` bytes.

    A masked byte has the exact law of the chain `guess` given the nearest known bytes on both sides, so that revealing
    one byte at a time draws from the chain itself, in whatever order.
    """

    prefill_rows = 5
    block_size = 16
    patch_bytes = 1

    def __init__(
        self, law: NDArray[np.float32], guess: NDArray[np.float32], rows: int = 1, context: int = CONTEXT
    ) -> None:
        self.law, self.guess, self.context = law, guess, context
        self.texts: list[list[int]] = [[] for _ in range(rows)]
        self.undecoded = np.zeros(rows, dtype=np.int64)
        self.ledger = Ledger()
        self._nursery: ToyModel | None = None

    @property
    def max_bytes(self) -> int:
        return self.context

    @property
    def lengths(self) -> IdArray:
        return np.array([len(text) for text in self.texts], dtype=np.int64)

    @property
    def patches(self) -> IdArray:
        return self.lengths // self.patch_bytes

    def patch_starts(self, row: int) -> list[int]:
        return list(range(0, len(self.texts[row]) + 1, self.patch_bytes))

    @property
    def room(self) -> IdArray:
        return self.context - self.lengths

    def clear(self, row: int) -> None:
        self.texts[row] = []
        self.undecoded[row] = 0

    @property
    def nursery(self) -> ToyModel:
        if self._nursery is None:
            self._nursery = ToyModel(self.law, self.guess, context=self.context)
        return self._nursery

    def adopt(self, row: int, other: ToyModel, source: int) -> None:
        self.texts[row], self.undecoded[row] = list(other.texts[source]), other.undecoded[source]

    def rewind(self, lengths: IdArray) -> None:
        assert (lengths <= self.lengths).all()
        self.texts = [text[:n] for text, n in zip(self.texts, lengths.tolist(), strict=True)]

    def extend(self, ids: Sequence[IdArray]) -> FloatArray:
        self.absorb(ids)
        logits = np.zeros((len(ids), max(map(len, ids)), OUTPUT_IDS), dtype=np.float32)
        for row, new in enumerate(ids):
            logits[row, : len(new)] = self.law[new]
        self.undecoded[:] = 0
        self.ledger.work.charge("decoder", 10, 1)
        return logits

    def absorb(self, ids: Sequence[IdArray], *, peek: bool = False) -> None:
        assert (self.room >= [len(row) for row in ids]).all()
        for row, new in enumerate(ids):
            self.texts[row] += new.tolist()
            self.undecoded[row] += len(new)
        for graph, weight_bytes in (("patcher", 1), ("encoder", 2), ("global", 100)):
            self.ledger.work.charge(graph, weight_bytes, 1)

    def draft(self, pending: IdArray, counts: IdArray, choose: Choose) -> list[IdArray]:
        assert not self.undecoded.any()
        drafts: list[list[int]] = [[] for _ in counts]
        for step in range(int(counts.max())):
            for row in np.flatnonzero(counts > step):
                last = (drafts[row] or [pending[row]])[-1]
                position = np.array([len(self.texts[row]) + step + 1])
                drafts[row].append(int(choose(self.guess[[last]], np.array([row]), position)[0]))
            self.ledger.work.charge("decoder", 10, 1)
        return [np.array(draft, dtype=np.int64) for draft in drafts]

    def denoise(
        self, pending: Sequence[IdArray], counts: IdArray, unmask: Unmask, choose: Choose
    ) -> tuple[list[IdArray], list[FloatArray]]:
        known: list[dict[int, int]] = [{} for _ in counts]  # position in the block -> id; -1 is the byte before it
        logits = [np.zeros((count, OUTPUT_IDS), dtype=np.float32) for count in counts]
        for row, text in enumerate(self.texts):
            if counts[row]:
                known[row][-1] = int(pending[row][-1]) if len(pending[row]) else text[-1]
                self.undecoded[row] = 0
        while any(len(ids) <= count for ids, count in zip(known, counts, strict=True) if count):
            for row in np.flatnonzero(counts):
                masked = np.array([place not in known[row] for place in range(counts[row])])
                if masked.any():
                    now = np.array([self._between(known[row], place) for place in range(counts[row])])
                    shown = np.flatnonzero(unmask.reveal(OfLogits(now[None]), masked[None])[0])
                    places = len(self.texts[row]) + len(pending[row]) + shown
                    logits[row][shown] = now[shown]
                    chosen = choose(now[shown], np.full_like(shown, row), places)
                    known[row] |= dict(zip(shown.tolist(), chosen.tolist(), strict=True))
            self.ledger.work.charge("decoder", 10, 1)
        blocks = [
            np.array([ids[i] for i in range(count)], dtype=np.int64) for ids, count in zip(known, counts, strict=True)
        ]
        return blocks, logits

    def look_ahead(self, ids: Sequence[IdArray], counts: IdArray) -> tuple[FloatArray, FloatArray]:
        logits = self.extend(ids)
        masked = np.zeros((len(ids), max(1, int(counts.max())), OUTPUT_IDS), dtype=np.float32)
        for row in np.flatnonzero(counts).tolist():
            for place in range(counts[row]):
                masked[row, place] = self._between({-1: self.texts[row][-1]}, place)
        return logits, masked

    def _between(self, known: dict[int, int], place: int) -> FloatArray:
        """Logits [260] of the byte at `place` given the nearest known ones."""
        left = max(i for i in known if i < place or i == -1)
        if left == place:
            return np.zeros(OUTPUT_IDS, dtype=np.float32)
        guess = self.guess.tobytes()
        law = transitions(guess, place - left)[known[left]]
        right = min((i for i in known if i > place), default=None)
        if right is not None:
            law = law * transitions(guess, right - place)[:, known[right]]
        return np.log(np.maximum(law, 1e-30)).astype(np.float32)


@lru_cache(maxsize=200)
def transitions(guess: bytes, steps: int) -> NDArray[np.float64]:
    """Probabilities [260, 260] of the id `steps` further on, under the chain with these logits."""
    one = OfLogits(np.frombuffer(guess, dtype=np.float32).reshape(OUTPUT_IDS, OUTPUT_IDS)).probabilities
    return one if steps == 1 else transitions(guess, steps - 1) @ one


def chain(*ids: int) -> NDArray[np.float32]:
    """The law that follows `ids` in order, round and round."""
    law = np.zeros((OUTPUT_IDS, OUTPUT_IDS), dtype=np.float32)
    for last, following in zip(ids, [*ids[1:], ids[0]], strict=True):
        law[last, following] = 9
    return law


def random_law(seed: int, sharpness: float = 2.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((OUTPUT_IDS, OUTPUT_IDS)) * sharpness).astype(np.float32)

"""From logits to a byte. The only random numbers in the program live here.

One noise per position: every byte is argmax(log p + g), where p is the distribution after temperature, top-k, top-p and
min-p, and g is Gumbel noise from a counter-based generator keyed by (seed, record, position). The Gumbel-max trick
makes that an exact draw from p; the key makes the draw depend on nothing else, so a byte drafted, verified, batched,
sharded or resumed comes out the same. Greedy decoding is zero noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bltcli.errors import UsageError
from bltcli.graphs import BANNED
from bltcli.vocab import ALLOWED, EOS, OUTPUT_IDS, IdArray

#: A drafted byte is chosen again when it is verified. 2 kB each.
NOISES_KEPT: Final = 1024

FloatArray = NDArray[np.float32]
_ALLOWED_BUT_EOS: Final = np.where(np.arange(OUTPUT_IDS) == EOS, np.float32(-np.inf), ALLOWED)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How bytes are chosen. temperature 0 is greedy; ties go to the lowest id."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"--temperature is {self.temperature}; use 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UsageError(f"--top-k is {self.top_k}; use 0 (all) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p is {self.top_p}; use a number above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"--min-p is {self.min_p}; use a number from 0 to 1")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"--seed is {self.seed}; use a number from 0 to 2^64 - 1")

    def choose(self, logits: FloatArray, records: IdArray, positions: IdArray) -> IdArray:
        """The id for each row, int64 [n]. logits [n, 260]; records [n]; positions [n] of the bytes being chosen."""
        if self.temperature == 0:
            likeliest: IdArray = (logits + self._allowed).argmax(axis=-1)
            return likeliest
        noise = np.stack([self.noise(int(r), int(p)) for r, p in zip(records, positions, strict=True)])
        allowed = np.add(logits, self._allowed, dtype=np.float64)
        chosen: IdArray = (self.log_probabilities(allowed) + noise).argmax(axis=-1)
        return chosen

    @property
    def _allowed(self) -> FloatArray:
        """Added to logits [n, 260]: minus infinity where an id is not to be generated."""
        return _ALLOWED_BUT_EOS if self.ignore_eos else ALLOWED

    def log_probabilities(self, allowed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log of the distribution drawn from, float64 [n, 260], up to a constant per row; minus infinity where cut."""
        scores: NDArray[np.float64] = allowed / self.temperature
        scores -= scores.max(axis=-1, keepdims=True)
        if not self.cuts:
            return scores
        rows, order = np.arange(len(scores))[:, None], np.argsort(-scores, axis=-1, kind="stable")
        likeliest_first = scores[rows, order]
        kept = np.ones(scores.shape, dtype=np.bool_)
        if self.top_k:
            kept[:, self.top_k :] = False
        if self.top_p < 1:
            p = np.exp(np.where(kept, likeliest_first, -np.inf))
            kept &= np.cumsum(p, axis=-1) - p < self.top_p * p.sum(axis=-1, keepdims=True)  # of everything likelier
        if self.min_p > 0:
            kept &= likeliest_first >= np.log(self.min_p)
        kept[:, 0] = True
        scores[rows, order] = np.where(kept, likeliest_first, -np.inf)
        return scores

    @property
    def cuts(self) -> bool:
        """Whether some ids are left out of what is drawn from."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    def addends(self, records: IdArray, positions: IdArray) -> FloatArray:
        """What makes argmax(logits + addend) over the ids that can be generated the id that `choose` takes where it
        `cuts` nothing off, float32 [n, 260]."""
        found = np.zeros((len(records), OUTPUT_IDS), dtype=np.float32)
        if self.temperature > 0:
            for row, (record, position) in enumerate(zip(records.tolist(), positions.tolist(), strict=True)):
                found[row] = self.temperature * self.noise(record, position)
        if self.ignore_eos:
            found[:, EOS] = BANNED
        return found

    def noise(self, record: int, position: int) -> NDArray[np.float64]:
        """Standard Gumbel noise, float64 [260], a function of (seed, record, position) alone; not to be written to."""
        return _gumbel(self.seed, record, position)


@lru_cache(maxsize=NOISES_KEPT)
def _gumbel(seed: int, record: int, position: int) -> NDArray[np.float64]:
    """Raw Philox words turned into uniforms by hand: NumPy promises the raw stream, not its distributions."""
    generator = np.random.Philox(key=np.array([seed, record], dtype=np.uint64), counter=position << 64)
    words = generator.random_raw(OUTPUT_IDS)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise = -np.log(-np.log(uniform))
    noise.flags.writeable = False
    return noise


class Chooser:
    """Chooses the bytes of numbered texts, and tells a graph how to."""

    def __init__(self, sampler: Sampler, records: IdArray) -> None:
        """records [b]: the number of the text in each row, which may change."""
        self.sampler, self.records = sampler, records

    def __call__(self, logits: FloatArray, rows: IdArray, positions: IdArray) -> IdArray:
        """Ids for `rows` [n] at `positions` [n] from logits [n, 260]."""
        return self.sampler.choose(logits, self.records[rows], positions)

    @property
    def cuts(self) -> bool:
        return self.sampler.cuts

    def addends(self, positions: IdArray) -> FloatArray:
        """`Sampler.addends` of bytes at positions [b, q] of every row, float32 [b, q, 260]."""
        records = np.repeat(self.records, positions.shape[1])
        return self.sampler.addends(records, positions.reshape(-1)).reshape(*positions.shape, OUTPUT_IDS)

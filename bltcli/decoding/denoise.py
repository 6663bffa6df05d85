"""Which masked bytes of a block are revealed after a decoder pass. Knows no model; the bytes are the sampler's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bltcli.errors import UsageError
from bltcli.sampling import FloatArray
from bltcli.vocab import ALLOWED, IdArray

Bools = NDArray[np.bool_]


class Certainty(Protocol):
    """How sure a model is of each position, of its own distribution over the ids that can be generated."""

    @property
    def confidence(self) -> FloatArray:
        """Probability of the likeliest byte, [n, B]."""
        ...

    @property
    def entropy(self) -> FloatArray:
        """In nats, [n, B]."""
        ...


class OfLogits:
    """Certainty from logits [n, B, 260], float64."""

    def __init__(self, logits: FloatArray) -> None:
        self._logits = logits

    @cached_property
    def _odds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each id that can be generated beside the likeliest, [n, B, 260], and their sum, [n, B]."""
        allowed = np.add(self._logits, ALLOWED, dtype=np.float64)
        odds = np.exp(allowed - allowed.max(axis=-1, keepdims=True))
        return odds, odds.sum(axis=-1)

    @property
    def confidence(self) -> Any:
        return 1 / self._odds[1]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Of each id that can be generated, [n, B, 260]."""
        odds, total = self._odds
        return odds / total[..., None]

    @property
    def entropy(self) -> Any:
        p = self.probabilities
        return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


@dataclass(frozen=True)
class Told:
    """Certainty as a graph found it."""

    confidence: FloatArray
    entropy: FloatArray


@dataclass(frozen=True)
class SureOfFirst:
    """As `rest` is, but wholly sure of the first position of each row."""

    rest: Certainty

    @property
    def confidence(self) -> FloatArray:
        return _with_first(self.rest.confidence, 1.0)

    @property
    def entropy(self) -> FloatArray:
        return _with_first(self.rest.entropy, 0.0)


def _with_first(values: FloatArray, first: float) -> FloatArray:
    found = values.copy()
    found[:, 0] = first
    return found


class Unmask(Protocol):
    """A rule. Confidence, EntropyBounded and OneStep are those of Fast BLT (arXiv 2605.08044, inference of BLT-D)."""

    def reveal(self, certainty: Certainty, masked: Bools) -> Bools:
        """Which of the masked positions to reveal, bool [n, B]; at least one in each row that has any. masked [n, B]"""
        ...


@dataclass(frozen=True)
class Confidence:
    """Every masked position whose likeliest byte has more than probability `alpha`, else the single surest one."""

    alpha: float

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"--alpha is {self.alpha}; use a probability from 0 to 1")

    def reveal(self, certainty: Certainty, masked: Bools) -> Bools:
        confidence = certainty.confidence
        shown: Bools = masked & (confidence > self.alpha)
        for row, revealed in enumerate(shown.tolist()):
            if not any(revealed):
                surest = np.where(masked[row], confidence[row], -1.0).argmax()
                shown[row, surest] = masked[row, surest]
        return shown


@dataclass(frozen=True)
class Prefix(Confidence):
    """As Confidence, but from the left: masked positions as long as each has more than probability `alpha`, else the
    first. A byte far to the right, settled early, fixes where the words before it end, which a small model is rarely
    right about."""

    def reveal(self, certainty: Certainty, masked: Bools) -> Bools:
        unsure = masked & (certainty.confidence <= self.alpha)
        first = masked & (np.cumsum(masked, axis=1) == 1)
        shown: Bools = first | (masked & (np.cumsum(unsure, axis=1) == 0))
        return shown


@dataclass(frozen=True)
class EntropyBounded:
    """Masked positions in order of entropy, as many as keep their cumulative entropy at most `gamma` nats, else the
    first. "sum-max" leaves the largest entropy of the prefix out of its sum (the EB-Sampler's own bound)."""

    gamma: float
    form: Literal["sum", "sum-max"] = "sum"

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise UsageError(f"--gamma is {self.gamma}; use 0 or a positive number of nats")

    def reveal(self, certainty: Certainty, masked: Bools) -> Bools:
        entropy = np.where(masked, certainty.entropy, np.inf)
        order = np.argsort(entropy, axis=1, kind="stable")
        ordered = np.take_along_axis(entropy, order, axis=1)
        total = np.cumsum(np.where(np.isinf(ordered), 0, ordered), axis=1)
        bounded = total if self.form == "sum" else total - np.where(np.isinf(ordered), 0, ordered)
        shown = bounded <= self.gamma
        shown[:, 0] = True
        chosen = np.zeros_like(masked)
        np.put_along_axis(chosen, order, shown, axis=1)
        return chosen & masked


@dataclass(frozen=True)
class OneStep:
    """Everything at once."""

    def reveal(self, certainty: Certainty, masked: Bools) -> Bools:
        return masked


def surest(unmask: Unmask, certainty: Certainty, counts: IdArray) -> IdArray:
    """Of counts[r] MASK rows of each text: how many from the first on `unmask` reveals at once, [b], where it is wholly
    sure of the first."""
    masked = np.arange(certainty.confidence.shape[1]) < counts[:, None]
    shown = unmask.reveal(SureOfFirst(certainty), masked) & masked
    found: IdArray = np.logical_and.accumulate(shown, axis=1).sum(axis=1)
    return found


def make_unmask(name: str, alpha: float, gamma: float) -> Unmask:
    """The rule by its name on the command line. UsageError for an unknown name or a threshold out of range."""
    rules: dict[str, Callable[[], Unmask]] = {
        "one-step": OneStep,
        "confidence": lambda: Confidence(alpha),
        "prefix": lambda: Prefix(alpha),
        "entropy": lambda: EntropyBounded(gamma),
        "entropy-max": lambda: EntropyBounded(gamma, "sum-max"),
    }
    if name not in rules:
        raise UsageError(f"--unmask is {name!r}; use one of {', '.join(rules)}")
    return rules[name]()

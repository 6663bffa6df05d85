"""Two texts that should be equal and are not: which decision came out differently first, and how close it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from bltcli.bundle import Bundle
from bltcli.decoding.driver import run_whole
from bltcli.graphs import Precision
from bltcli.pipeline import open_model
from bltcli.sampling import FloatArray, Sampler
from bltcli.vocab import EOS, OFFSET, encode

#: A decision with at most this margin (logits, or nats of entropy) may fall either way by rounding.
NEAR_TIE: Final[dict[Precision, float]] = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.3, "int8": 0.5, "int4": 0.5}


@dataclass(frozen=True)
class Run:
    """What a prompt was continued with; starts of the patches among the first `length` ids, BOS included."""

    text: bytes
    patch_starts: list[int]
    length: int


@dataclass(frozen=True)
class Difference:
    """The first decision that came out differently."""

    setting: str
    record: int
    offset: int  # first differing byte of the continuation
    decision: Literal["byte", "patch"]
    margin: float  # of that decision under teacher forcing: by how much one byte leads, or |entropy - threshold|
    bug: bool  # False: a near-tie

    def __str__(self) -> str:
        kind = "bug" if self.bug else "near-tie"
        where = f"{self.setting}, text {self.record}, byte {self.offset}"
        return f"{where}: {kind}, {self.decision} decided by {self.margin:.2e}"


def explain(
    bundle: Bundle,
    engine: str,
    prompt: bytes,
    record: int,
    expected: Run,
    found: Run,
    sampler: Sampler,
    setting: str,
    *,
    promised: bool,
) -> Difference:
    """Teacher-force what both texts share and find the margin of the first differing decision: a patch boundary, if
    one before the first differing byte is in one run only, else that byte.

    `promised`: the engine promises equality to the last bit, so that no margin excuses a difference.
    """
    pairs = zip(expected.text, found.text, strict=False)
    shortest = min(len(expected.text), len(found.text))
    offset = next((i for i, (a, b) in enumerate(pairs) if a != b), shortest)
    ids = encode(prompt + expected.text[:offset])
    model = open_model(bundle, engine=engine)
    entropies, logits = [], np.zeros(260, dtype=np.float32)
    for pieces, values in run_whole(model, {0: ids}):
        entropies += model.engines["patcher"].outputs["entropy"][0, : len(pieces[0])].tolist()
        logits = values[0, len(pieces[0]) - 1].copy()
    known = min(expected.length, found.length, len(ids))
    flipped = [s for s in set(expected.patch_starts) ^ set(found.patch_starts) if 0 < s < known]
    decision: Literal["byte", "patch"]
    if flipped:
        decision, margin = "patch", abs(entropies[min(flipped) - 1] - bundle.config.patcher.threshold_nats)
    else:
        decision, margin = "byte", _lead(logits, record, len(ids), sampler, _id(expected, offset), _id(found, offset))
    bug = promised or margin > NEAR_TIE[bundle.precision]
    return Difference(setting, record, offset, decision, float(margin), bug)


def _id(run: Run, offset: int) -> int:
    """The id that was chosen there; a text that is over chose EOS."""
    return run.text[offset] + OFFSET if offset < len(run.text) else EOS


def _lead(logits: FloatArray, record: int, position: int, sampler: Sampler, ours: int, theirs: int) -> float:
    """How far apart the scores of two ids are, in logits of temperature 1."""
    scores, scale = logits.astype(np.float64), 1.0
    if sampler.temperature > 0:
        scores = sampler.log_probabilities(scores[None])[0] + sampler.noise(record, position)
        scale = sampler.temperature
    return float(abs(scores[ours] - scores[theirs])) * scale

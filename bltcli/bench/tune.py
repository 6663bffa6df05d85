"""Finds the fastest method for a bundle, engine, machine and sample text, in turns, and goes on where it was left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from bltcli.bench.agreement import agreement
from bltcli.bench.machine import machine_name
from bltcli.bench.measure import Contender, Ours, Task
from bltcli.bench.noise import differ
from bltcli.bench.report import task_facts
from bltcli.bench.settings import Setting, parse_settings
from bltcli.decoding import ONE_PASS_BLOCK
from bltcli.errors import BltError, UsageError
from bltcli.records import JournalFile, Record

REFERENCE: Final = "ar"
#: Repeats that every setting still in the race has after each stage, and the share of settings that stays in it.
STAGES: Final = ((1, 1 / 3), (3, 1 / 3), (9, 0.0))
FRESH: Final = STAGES[-2][0]  # the repeats before chose the finalists; only later ones tell whether they pay
FINALISTS: Final = 3
_BLOCKS: Final = (4, 8, 16)

_VERIFIED: Final = ("ar", "ar ngram=yes", "blt-s k=1,2,4,8,16,auto ngram=no,yes")
_VERIFIED_BLOCKS: Final = ("blt-dv unmask=one-step ngram=no,yes", "blt-dv unmask=confidence alpha=0.3",
                           "blt-dv unmask=entropy gamma=1.5,2.0")  # fmt: skip
_UNVERIFIED_BLOCKS: Final = ("blt-d unmask=confidence alpha=0.5,0.7,0.9", "blt-d unmask=entropy gamma=0.5,1.0",
                             "blt-d unmask=prefix commit=block,patches")  # fmt: skip
# a round of these is one pass, whose rows larger blocks only add to
_VERIFIED_AHEAD: Final = ("blt-h trust=1",)
_UNVERIFIED_AHEAD: Final = ("blt-d commit=sure alpha=0.7,0.8,0.9", "blt-h trust=0.8,0.9,0.97")


@dataclass(frozen=True)
class Measured:
    """One setting's turns so far."""

    setting: str
    equal_share: float  # of bytes, with those of `ar`
    seconds_per_byte: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.seconds_per_byte)


@dataclass(frozen=True)
class Found:
    """The outcome: `ar` where nothing is faster by more than noise."""

    best: Measured
    reference: Measured
    measured: list[Measured]  # everything, the fastest first
    refused: list[Measured]  # too far from `ar`

    @property
    def speedup(self) -> float:
        return self.reference.median / self.best.median


def candidates(block_size: int, quality: float | None) -> list[Setting]:
    """What is tried on a model trained on blocks of `block_size` bytes (0: none); `quality` None: only methods that
    write the bytes of `ar`."""
    texts = list(_VERIFIED)
    if block_size:
        unverified = quality is not None
        for methods, sizes in (
            (_VERIFIED_BLOCKS + _UNVERIFIED_BLOCKS * unverified, (*_BLOCKS, block_size)),
            (_VERIFIED_AHEAD + _UNVERIFIED_AHEAD * unverified, (2, ONE_PASS_BLOCK)),
        ):
            blocks = ",".join(str(size) for size in sorted({min(size, block_size) for size in sizes}))
            texts += [f"{text} block={blocks}" for text in methods]
    return parse_settings(texts)


def most_turns(count: int) -> int:
    """How many turns a search among `count` settings takes at most."""
    turns = before = 0
    for repeats, kept_share in STAGES:
        turns += count * (repeats - before)
        before, count = repeats, min(count, max(FINALISTS, math.ceil(count * kept_share)) + 1)
    return turns


def search_key(task: Task, bundle_sha256: str, engine: str, quality: float | None) -> dict[str, Any]:
    """What a search rests on: one of another key starts anew."""
    return {
        **task_facts(task),
        "bundle_sha256": bundle_sha256,
        "engine": engine,
        "machine": machine_name(),
        "quality": "exact" if quality is None else quality,
    }


class State(JournalFile):
    """Turns that were measured, on disk as soon as they are."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        super().__init__(path, {"task": "tune", **key})
        self.turns: dict[str, list[Record]] = {}

    def _read(self) -> None:
        for number, (turn, _) in enumerate(self.found(), 2):
            if not {"setting", "seconds_per_byte", "equal_share"} <= set(turn):
                raise UsageError(f"{self.path}: line {number} is damaged; start anew with --again")
            self._keep(turn)

    def add(self, turn: Record) -> None:
        self._keep(turn)
        self.append([turn])

    def _keep(self, turn: Record) -> None:
        self.turns.setdefault(turn["setting"], []).append(turn)

    def measured(self, setting: str, repeats: int | None = None) -> Measured:
        """Its first so many turns: those of later stages must not change what an earlier stage decided."""
        turns = self.turns[setting][:repeats]
        return Measured(setting, min(t["equal_share"] for t in turns), [t["seconds_per_byte"] for t in turns])


def search(
    contenders: Sequence[Ours], state: State, quality: float | None, advance: Callable[[], object] = lambda: None
) -> Found:
    """Stage by stage, the slower settings drop out; `ar` stays. BltError when a setting that has to write the bytes of
    `ar` does not."""
    by_name = {contender.name: contender for contender in contenders}
    bound = 1.0 if quality is None else quality
    expected = by_name[REFERENCE].run().texts
    warm = {REFERENCE}
    racing = list(by_name)
    refused: list[Measured] = []
    for repeats, kept_share in STAGES:
        for number in range(repeats):
            for place in range(len(racing)):
                name = racing[(place + number) % len(racing)]
                if len(state.turns.get(name, ())) <= number:
                    _measure(by_name[name], state, expected, warm)
                    advance()
        stage = [state.measured(name, repeats) for name in racing]
        refused += [m for m in stage if m.equal_share < bound]
        for name in (m.setting for m in refused):
            if by_name[name].promised:
                raise BltError(f"{name} does not write the bytes of ar, which it promises; see bltcli verify")
        ranked = sorted((m for m in stage if m.equal_share >= bound), key=lambda m: m.median)
        count = max(FINALISTS, math.ceil(len(ranked) * kept_share))
        racing = [m.setting for i, m in enumerate(ranked) if i < count or m.setting == REFERENCE]
    finalists = [state.measured(name) for name in racing]
    reference = next(m for m in finalists if m.setting == REFERENCE)
    paying = [m for m in finalists if _pays(m.seconds_per_byte[FRESH:], reference.seconds_per_byte[FRESH:])]
    everything = [state.measured(name) for name in by_name]
    ranked = sorted(everything, key=lambda m: (m in refused, -len(m.seconds_per_byte), m.median))
    return Found(min(paying, key=lambda m: m.median, default=reference), reference, ranked, refused)


def _pays(seconds: Sequence[float], reference: Sequence[float]) -> bool:
    return median(seconds) < median(reference) and differ(seconds, reference)


def _measure(contender: Contender, state: State, expected: Sequence[bytes], warm: set[str]) -> None:
    if contender.name not in warm:
        contender.run()
        warm.add(contender.name)
    turn = contender.run()
    found = agreement(turn.texts, expected)
    seconds = turn.seconds / max(1, turn.new_bytes)
    state.add({"setting": contender.name, "seconds_per_byte": seconds, "equal_share": found.share})

"""Settings in turns on the same prompts: round-robin, so that what a machine does meanwhile meets all alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bltcli.bench.settings import Setting
from bltcli.bundle import Bundle
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats


@dataclass(frozen=True)
class Task:
    """What every setting does: continue these prompts, one after another."""

    prompts: tuple[bytes, ...]
    sampler: Sampler = field(default_factory=Sampler)
    stop: Stop = field(default_factory=Stop)


@dataclass(frozen=True)
class Turn:
    """One setting's run over all prompts."""

    texts: list[bytes]
    seconds: float  # prompts included
    stats: DecodeStats | None = None  # summed over the prompts; None for a program that does not count

    @property
    def new_bytes(self) -> int:
        return sum(map(len, self.texts))


class Contender(Protocol):
    """Something that continues the prompts of a task."""

    @property
    def name(self) -> str: ...

    def run(self) -> Turn: ...


class Ours:
    """One setting over a pipeline."""

    def __init__(self, setting: Setting, options: MethodOptions, bundle: Bundle, model: Pipeline, task: Task) -> None:
        """`options`: what the setting's stand for. ModelError or UsageError where the model cannot run this method."""
        self.setting, self.options, self.bundle, self.model, self.task = setting, options, bundle, model, task
        options.make(model)

    @property
    def name(self) -> str:
        return self.setting.name

    @property
    def promised(self) -> bool:
        """Whether the bytes have to be those of `ar`: by the method, and by how the engine computes."""
        used = dataclasses.replace(self.setting, options=self.options)
        return used.verified and self.model.promised

    def run(self) -> Turn:
        texts, parts = [], []
        method = self.options.make(self.model)  # what it has learnt in one turn is not kept for the next
        for record, prompt in enumerate(self.task.prompts):
            found, stats = generate_texts(
                self.model, method, [prompt], sampler=self.task.sampler, stop=self.task.stop, records=[record]
            )
            texts += found
            parts.append(stats)
        return Turn(texts, sum(stats.wall_s for stats in parts), added(parts))


def open_contenders(
    settings: Sequence[Setting],
    bundle_of: Callable[[str | None], Bundle],
    task: Task,
    *,
    engine: str,
    threads: int,
    opener: Callable[..., Pipeline] = open_model,
) -> list[Ours]:
    """One contender per setting, with buffers of its own; those with the same engine, precision and padding share the
    weights in memory. `opener` opens a bundle, with the arguments of `open_model`."""
    models: dict[tuple[str, str | None, bool], list[Pipeline]] = {}
    bundles: dict[str | None, Bundle] = {}
    contenders = []
    for setting in settings:
        key = (setting.engine or engine, setting.precision, setting.exact)
        if setting.precision not in bundles:
            bundles[setting.precision] = bundle_of(setting.precision)
        bundle = bundles[setting.precision]
        if key not in models:
            models[key] = [opener(bundle, engine=key[0], threads=threads, exact=setting.exact)]
        else:
            models[key].append(models[key][-1].nursery)
        used = setting.options.resolved(models[key][0])
        contenders.append(Ours(setting, used, bundle, models[key][-1], task))
    return contenders


def take_turns(
    contenders: Sequence[Contender],
    repeats: int,
    between: Callable[[], object] = lambda: None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[list[Turn]]:
    """Run every contender once to warm up, then `repeats` times in turns, each round beginning with another one.
    `between` runs once per round. Returns the turns per contender, in the order of rounds, warm-up left out."""
    turns: list[list[Turn]] = [[] for _ in contenders]
    done = 0
    for number in range(repeats + 1):
        if number:
            between()
        for place in range(len(contenders)):
            index = (place + number) % len(contenders)
            turn = contenders[index].run()
            if number:
                turns[index].append(turn)
            done += 1
            advance(done)
    return turns


def added(parts: Sequence[DecodeStats]) -> DecodeStats:
    """Statistics of several generations as those of one: everything is a sum, seconds too."""
    total = DecodeStats()
    for entry in dataclasses.fields(DecodeStats):
        empty = type(getattr(total, entry.name))()
        setattr(total, entry.name, sum((getattr(part, entry.name) for part in parts), start=empty))
    return total

"""One run: its folder, its data, its processes; knows no phase."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import nn

from bltcli.nn import Blt
from bltcli.train.config import PhaseConfig, TrainConfig
from bltcli.train.curve import write_curve
from bltcli.train.data import Corpus
from bltcli.train.loop import Log, Trainer, log_to
from bltcli.train.objective import Objective
from bltcli.train.world import World

PATCHER_STATE: Final = "patcher.pt"
THRESHOLD: Final = "threshold.json"
PATCHER: Final = "patcher.sha256"
BLT_STATE: Final = "blt.pt"
#: What a run keeps in its folder to be resumed, in the order in which it appears.
STATES: Final = (PATCHER_STATE, THRESHOLD, PATCHER, BLT_STATE)
LOG: Final = "log.jsonl"
CURVE: Final = "curve.html"


@dataclass(frozen=True)
class Run:
    """What all phases of a run share."""

    config: TrainConfig
    out: Path
    corpus: Corpus
    dev: Corpus
    world: World
    until: float  # reading of `time.monotonic()` at which the run saves and stops
    show: Callable[[str], None]

    def trainer(
        self, model: Blt, parts: Iterable[nn.Module], objective: Objective, phase: PhaseConfig, state: str
    ) -> Trainer:
        """A trainer that has taken up its saved state, if there is one."""
        trainer = Trainer(
            model, parts, objective, self.corpus, phase, self.config.optimiser, self.out / state, self.world
        )
        trainer.saved = lambda: write_curve(self.out / LOG, self.out / CURVE)
        trainer.resume()
        return trainer

    def log(self, phase: str) -> Log:
        return log_to(self.out / LOG, phase, self.show, self.world)

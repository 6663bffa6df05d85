"""The optimisation loop, resumable to the same losses; knows phases and objectives, not what they train."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bltcli.errors import ModelError
from bltcli.nn import Blt
from bltcli.train.config import OptimiserConfig, PhaseConfig
from bltcli.train.data import Corpus
from bltcli.train.objective import Objective, Terms

Log = Callable[[dict[str, Any]], None]


def learning_rate(step: int, phase: PhaseConfig) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then a cosine to `final_fraction` at the last step."""
    if step < phase.warmup_steps:
        return phase.learning_rate * (step + 1) / phase.warmup_steps
    done = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
    low = phase.final_fraction
    return phase.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def make_optimiser(parts: Iterable[nn.Module], config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over `parts`; only linear weights are decayed."""
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for part in parts:
        for module in part.modules():
            kind = decayed if isinstance(module, nn.Linear) else others
            kind.extend(module.parameters(recurse=False))
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


class Figures:
    """Sums and counts of reported figures over some batches."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    @classmethod
    def of(cls, terms: Terms) -> Figures:
        figures = cls()
        for name, (total, count) in terms.report.items():
            figures.sums[name], figures.counts[name] = total.item(), count.item()
        return figures

    def add(self, other: Figures) -> None:
        for name in other.sums:
            self.sums[name] = self.sums.get(name, 0.0) + other.sums[name]
            self.counts[name] = self.counts.get(name, 0.0) + other.counts[name]

    def means(self) -> dict[str, float]:
        """Means of what occurred at all."""
        return {name: total / self.counts[name] for name, total in self.sums.items() if self.counts[name]}


class Trainer:
    """One phase: `parts` of `model` are trained on `corpus`, the rest is left alone. Its state is one file."""

    def __init__(
        self,
        model: Blt,
        parts: Iterable[nn.Module],
        objective: Objective,
        corpus: Corpus,
        phase: PhaseConfig,
        optimiser: OptimiserConfig,
        state_file: Path,
    ) -> None:
        self.model, self.objective, self.corpus = model, objective, corpus
        self.phase, self.config, self.state_file = phase, optimiser, state_file
        self.optimiser = make_optimiser(parts, optimiser)
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.step = 0
        self.seen_bytes = 0

    def run(self, log: Log) -> None:
        """Train to the phase's last step, saving on the way and at the end."""
        started, seen, figures = time.perf_counter(), self.seen_bytes, Figures()
        while self.step < self.phase.steps:
            figures.add(self.take_step())
            if self.step % self.config.log_every == 0 or self.step == self.phase.steps:
                rate = (self.seen_bytes - seen) / (time.perf_counter() - started)
                log({"step": self.step, **figures.means(), "bytes": self.seen_bytes,
                     "learning_rate": self.optimiser.param_groups[0]["lr"], "bytes_per_s": round(rate)})  # fmt: skip
                started, seen, figures = time.perf_counter(), self.seen_bytes, Figures()
            if self.step % self.config.save_every == 0 or self.step == self.phase.steps:
                self.save()

    def take_step(self) -> Figures:
        """One optimiser step; the figures of its batches."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.phase)
        # the mean is over all bytes of the step, however they fall into its batches
        figures, count = Figures(), 0.0
        for part in range(self.config.accumulate):
            ids = self.corpus.batch(self.step * self.config.accumulate + part)
            terms = self.objective(self.model, ids, self.config.bf16)
            terms.loss.backward()
            count += terms.count.item()
            figures.add(Figures.of(terms))
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= count
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip, error_if_nonfinite=True)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.seen_bytes += int(count)
        return figures

    def save(self) -> None:
        """Write everything that a later run needs to go on as if it had not stopped, atomically. The position in the
        data is the step, since a batch depends on the seed and its number only."""
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seen_bytes": self.seen_bytes,
            "random": torch.get_rng_state(),
        }
        part = self.state_file.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.state_file)

    def resume(self) -> bool:
        """Take up the saved state; False if there is none."""
        if not self.state_file.exists():
            return False
        state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{self.state_file}: is of another recipe ({reason}); use --fresh") from error
        self.step, self.seen_bytes = state["step"], state["seen_bytes"]
        torch.set_rng_state(state["random"])
        return True


def log_to(path: Path, phase: str, show: Callable[[str], None]) -> Log:
    """A log that appends JSON lines to `path` and shows a short line."""

    def log(record: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": phase, **record}) + "\n")
        show(
            f"{phase}  " + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
        )

    return log

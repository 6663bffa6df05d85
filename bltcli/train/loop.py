"""The optimisation loop, resumable to the same losses; knows phases and objectives, not what they train."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bltcli.errors import ModelError
from bltcli.nn import Blt
from bltcli.train.config import OptimiserConfig, PhaseConfig
from bltcli.train.data import Corpus
from bltcli.train.objective import Objective, Terms
from bltcli.train.world import ALONE, World

Log = Callable[[dict[str, Any]], None]


def learning_rate(step: int, phase: PhaseConfig) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then a cosine to `final_fraction` at the last step."""
    if step < phase.warmup_steps:
        return phase.learning_rate * (step + 1) / phase.warmup_steps
    done = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
    low = phase.final_fraction
    return phase.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def make_optimisers(parts: Iterable[nn.Module], config: OptimiserConfig) -> list[torch.optim.Optimizer]:
    """AdamW over `parts`; only linear weights are decayed. With `config.muon`, Muon takes those of them that are not
    the output's, its updates scaled to the size of AdamW's, so that one learning rate suits both (Liu et al., "Muon is
    scalable for LLM training", arXiv 2502.16982)."""
    hidden: list[Tensor] = []
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for part in parts:
        for name, module in part.named_modules():
            linear = hidden if config.muon and name != "lm_head" else decayed
            kind = linear if isinstance(module, nn.Linear) else others
            kind.extend(module.parameters(recurse=False))
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    if not hidden:
        return [adamw]
    return [adamw, torch.optim.Muon(hidden, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")]


class Figures:
    """Sums and counts of reported figures over some batches, and the predicted bytes of them."""

    def __init__(self) -> None:
        self.bytes = 0.0
        self.totals: dict[str, tuple[float, float]] = {}

    @classmethod
    def of(cls, batches: Sequence[Terms], world: World = ALONE) -> Figures:
        """The figures of batches that report the same ones, those of all processes together."""
        names = list(batches[0].report)
        rows = [[t.count, *(x for name in names for x in t.report[name])] for t in batches]
        flat = torch.stack([torch.stack([x.detach().double() for x in row]) for row in rows]).sum(0).tolist()
        figures = cls()
        figures.bytes, *values = world.sum(flat)
        figures.totals = dict(zip(names, zip(values[::2], values[1::2], strict=True), strict=True))
        return figures

    def add(self, other: Figures) -> None:
        self.bytes += other.bytes
        for name, pair in other.totals.items():
            mine = self.totals.get(name, (0.0, 0.0))
            self.totals[name] = (mine[0] + pair[0], mine[1] + pair[1])

    def means(self) -> dict[str, float]:
        """Means of what occurred at all."""
        return {name: total / count for name, (total, count) in self.totals.items() if count}


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
        world: World = ALONE,
    ) -> None:
        self.model, self.objective, self.corpus = model, objective, corpus
        self.phase, self.config, self.state_file, self.world = phase, optimiser, state_file, world
        self.optimisers = make_optimisers(parts, optimiser)
        self.parameters = [p for group in self.groups for p in group["params"]]
        self.step = 0
        self.seen_bytes = 0
        self.saved: Callable[[], None] = lambda: None  # called in the first process after each save
        self.ahead = world.on_gpu  # on a CPU the two would only take turns

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all optimisers; `load_state_dict` puts others in their place."""
        return [group for each in self.optimisers for group in each.param_groups]

    def run(self, log: Log, until: float = math.inf) -> bool:
        """Train to the phase's last step, or until `time.monotonic()` reads `until`, saving on the way and at the end.
        Whether the last step was reached."""
        started, seen, figures = time.perf_counter(), self.seen_bytes, Figures()
        batches = self.batches()
        while self.step < self.phase.steps:
            figures.add(self.take_step(batches))
            last = self.step == self.phase.steps or (until < math.inf and self.world.any(time.monotonic() >= until))
            if self.step % self.config.log_every == 0 or last:
                rate = (self.seen_bytes - seen) / (time.perf_counter() - started)
                log({"step": self.step, **figures.means(), "bytes": self.seen_bytes,
                     "learning_rate": self.groups[0]["lr"], "bytes_per_s": round(rate)})  # fmt: skip
                started, seen, figures = time.perf_counter(), self.seen_bytes, Figures()
            if self.step % self.config.save_every == 0 or last:
                self.save()
            if last:
                break
        batches.close()
        return self.step >= self.phase.steps

    def batches(self) -> Generator[Any]:
        """This process's batches from the current step on, as the objective prepares them."""
        world = self.world
        numbers = itertools.count(self.step * self.config.accumulate * world.size + world.rank, world.size)

        def prepare(number: int) -> Any:
            return self.objective.prepare(self.model, self.corpus.batch(number))

        if not self.ahead:
            yield from map(prepare, numbers)
        with ThreadPoolExecutor(1, initializer=_use_own_stream, initargs=(world.device,)) as pool:
            coming = pool.submit(prepare, next(numbers))
            for number in numbers:
                ready, coming = coming, pool.submit(prepare, number)
                yield ready.result()

    def take_step(self, batches: Iterator[Any]) -> Figures:
        """One optimiser step; the figures of its batches in all processes."""
        for group in self.groups:
            group["lr"] = learning_rate(self.step, self.phase)
        done = []
        for _ in range(self.config.accumulate):
            done.append(self.objective.terms(self.model, next(batches), self.config.bf16))
            done[-1].loss.backward()
        figures = Figures.of(done, self.world)
        self.world.sum_gradients(self.parameters)
        # the mean is over all bytes of the step, however they fall into its batches
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= figures.bytes
        if not nn.utils.clip_grad_norm_(self.parameters, self.config.clip).isfinite():
            raise ModelError(f"the gradient of step {self.step + 1} is not finite; lower learning_rate and --resume")
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.seen_bytes += int(figures.bytes)
        return figures

    def save(self) -> None:
        """Write everything that a later run needs to go on as if it had not stopped, atomically. The position in the
        data is the step, since a batch depends on the seed and its number only."""
        if self.world.first:
            state = {
                "model": self.model.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                "step": self.step,
                "seen_bytes": self.seen_bytes,
                "random": torch.get_rng_state(),
                "cuda_random": torch.cuda.get_rng_state(self.world.device) if self.world.on_gpu else None,
            }
            part = self.state_file.with_suffix(".part")
            torch.save(state, part)
            os.replace(part, self.state_file)
            self.saved()
        self.world.wait()

    def resume(self) -> bool:
        """Take up the saved state; False if there is none."""
        if not self.state_file.exists():
            return False
        state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        try:
            self.model.load_state_dict(state["model"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{self.state_file}: is of another recipe ({reason}); use --fresh") from error
        self.step, self.seen_bytes = state["step"], state["seen_bytes"]
        torch.set_rng_state(state["random"])
        if self.world.on_gpu and state.get("cuda_random") is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.world.device)
        return True


def _use_own_stream(device: torch.device) -> None:
    if device.type == "cuda":  # or what is prepared would wait for the whole step before it
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))


def log_to(path: Path, phase: str, show: Callable[[str], None], world: World = ALONE) -> Log:
    """A log that appends JSON lines to `path` and shows a short line, in the first process only."""

    def log(record: dict[str, Any]) -> None:
        if not world.first:
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": phase, **record}) + "\n")
        show(
            f"{phase}  " + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
        )

    return log

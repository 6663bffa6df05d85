"""A whole run: patcher, its rounding and threshold, the rest of the model, the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bltcli.errors import UsageError
from bltcli.train.config import TrainConfig
from bltcli.train.data import Corpus
from bltcli.train.diffusion import BlockDiffusion
from bltcli.train.evaluation import export
from bltcli.train.objective import NextByteObjective, Objective
from bltcli.train.run import BLT_STATE, CURVE, LOG, STATES, Run
from bltcli.train.start import keep_patcher, take_start, train_patcher
from bltcli.train.world import ALONE, World


def discard(out: Path) -> None:
    """Forget the run in `out`; its checkpoint stays until it is replaced."""
    for name in (*STATES, LOG, CURVE):
        (out / name).unlink(missing_ok=True)


def train(
    config: TrainConfig,
    root: Path,
    out: Path,
    *,
    resume: bool,
    show: Callable[[str], None],
    init: Path | None = None,
    world: World = ALONE,
    until: float = math.inf,
) -> dict[str, Any] | None:
    """Run the recipe on the files under `root`, writing states, a log and the checkpoint into `out`; returns the
    figures that also stand in the checkpoint, or None when `time.monotonic()` read `until` before the last step.

    With `resume`, states found in `out` are taken up. With `init`, a checkpoint, its weights and its patches are taken
    instead of the first phase.
    """
    if not resume and any((out / name).exists() for name in STATES):
        raise UsageError(f"{out} holds an earlier run; use --resume to go on or --fresh to discard it")
    torch.manual_seed(config.data.seed)
    start = take_start(config, init, world.device) if init else None
    corpora = Corpus(config.data, root, "train"), Corpus(config.data, root, "dev")
    world.wait()  # or a process that is late would find the files of the first
    out.mkdir(parents=True, exist_ok=True)
    run = Run(config, out, *corpora, world, until, show)
    start = start or train_patcher(run)
    if start is None:
        return None
    model = start.model
    keep_patcher(run, model)
    show(f"threshold {model.config.patcher.threshold_nats:.4f} nats")

    parts = [model.encoder, model.global_model, model.decoder]
    if config.optimiser.compile:
        for part in parts:
            part.compile(dynamic=True)
    blt = run.trainer(model, parts, objective_of(config), config.blt, BLT_STATE)
    if not blt.run(run.log("blt"), until):
        return None
    figures = export(run, start, blt) if world.first else {}
    world.wait()
    return figures


def objective_of(config: TrainConfig) -> Objective:
    """Next-byte prediction, with block diffusion where the recipe asks for it."""
    blocks = config.blocks
    if blocks is None:
        return NextByteObjective(config.prompt_weight)
    return BlockDiffusion(
        block_sizes=blocks.sizes,
        blocks_per_row=blocks.per_row,
        random_starts=blocks.random_starts,
        suffix=blocks.suffix,
        block_weight=blocks.weight,
        prompt_weight=config.prompt_weight,
        seed=config.data.seed,
    )

"""Where the second phase begins: after an entropy model of its own, or from a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bltcli.atomic import write_atomically
from bltcli.checkpoint import open_checkpoint
from bltcli.checkpoint.identity import check_patcher, patcher_sha256
from bltcli.config import ModelConfig
from bltcli.errors import UsageError
from bltcli.layout import document_positions, text_closes
from bltcli.nn import Blt
from bltcli.nn.loading import load_blt
from bltcli.train.config import TrainConfig
from bltcli.train.data import Corpus
from bltcli.train.objective import PatcherObjective
from bltcli.train.run import PATCHER, PATCHER_STATE, THRESHOLD, Run
from bltcli.train.save import rounded
from bltcli.vocab import PAD

_CALIBRATION_BATCHES: Final = 8


@dataclasses.dataclass(frozen=True)
class Start:
    """Where the second phase begins."""

    model: Blt  # its patcher is rounded, frozen, and has its threshold
    figures: dict[str, Any]  # of training so far


def train_patcher(run: Run) -> Start | None:
    """The first phase: the entropy model, rounded as it will be shipped, and its threshold. None if time ran out."""
    model = Blt(run.config.model).to(run.world.device)
    patcher = run.trainer(model, [model.patcher], PatcherObjective(), run.config.patcher, PATCHER_STATE)
    if not patcher.run(run.log("patcher"), run.until):
        return None
    model.patcher.bfloat16().float()  # as shipped
    threshold = run.out / THRESHOLD
    if run.world.first and not threshold.exists():
        nats = calibrate(model.config, *entropies(model, run.dev), run.config.bytes_per_patch)
        write_atomically(threshold, json.dumps(nats).encode())
    run.world.wait()
    figures = {"patcher": {"steps": patcher.step, "bytes": patcher.seen_bytes}}
    return Start(frozen_patcher(model, json.loads(threshold.read_bytes())), figures)


def take_start(config: TrainConfig, init: Path, device: torch.device) -> Start:
    """The model of the checkpoint `init` with the recipe's block size. Raises UsageError where its geometry is not the
    recipe's in anything but block size, threshold, and the windows of what is trained."""
    checkpoint = open_checkpoint(init)
    check_patcher(checkpoint)
    threshold = checkpoint.config.patcher.threshold_nats
    patcher = dataclasses.replace(config.model.patcher, threshold_nats=threshold)
    wanted = dataclasses.replace(config.model, patcher=patcher)
    found = dataclasses.replace(checkpoint.config, block_size=wanted.block_size)
    for part in ("encoder", "global_model", "decoder"):
        stack = dataclasses.replace(getattr(found, part), window=getattr(wanted, part).window)
        found = dataclasses.replace(found, **{part: stack})
    difference = first_difference(wanted.to_dict(), found.to_dict())
    if difference:
        raise UsageError(f"{init} does not fit the recipe's model: {difference}")
    model = Blt(wanted).to(device)
    model.load_state_dict(load_blt(checkpoint).state_dict())
    model.patcher.requires_grad_(False).bfloat16().float()  # as shipped
    training = checkpoint.metadata.get("training", {})
    history = {"sha256": checkpoint.sha256, **{key: training[key] for key in ("init", "blt") if key in training}}
    return Start(model, {"init": history, "patcher": training.get("patcher", {})})


def first_difference(recipe: Mapping[str, Any], found: Mapping[str, Any], path: str = "model") -> str | None:
    """The first key of two nested tables of one form whose values differ, and both values."""
    for key, value in recipe.items():
        if isinstance(value, dict):
            inner = first_difference(value, found[key], f"{path}.{key}")
            if inner:
                return inner
        elif value != found[key]:
            return f"{path}.{key} is {value} in the recipe and {found[key]} in the checkpoint"
    return None


def keep_patcher(run: Run, model: Blt) -> None:
    """Note in the run's folder which patches it is trained on; raises UsageError where it was begun on others."""
    file, sha256 = run.out / PATCHER, patcher_sha256(model.config.patcher, rounded(model)).encode()
    if file.exists() and file.read_bytes() != sha256:
        raise UsageError(f"{run.out} was begun with another entropy model; resume with the same --init, or --fresh")
    run.world.wait()
    if run.world.first:
        write_atomically(file, sha256)


def frozen_patcher(model: Blt, threshold_nats: float) -> Blt:
    """The same weights in a model with this threshold, whose patcher has no gradient."""
    patcher = dataclasses.replace(model.config.patcher, threshold_nats=threshold_nats)
    frozen = Blt(dataclasses.replace(model.config, patcher=patcher)).to(model.device)
    frozen.load_state_dict(model.state_dict())
    frozen.patcher.requires_grad_(False)
    return frozen


def entropies(model: Blt, dev: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Held-out ids [n, N] and their next-byte entropies in nats, float32 [n, N]."""
    batches = [dev.batch(n) for n in range(_CALIBRATION_BATCHES)]
    return np.concatenate(batches), np.concatenate([model.entropies(ids).cpu().numpy() for ids in batches])


def bytes_per_patch(config: ModelConfig, ids: np.ndarray, nats: np.ndarray) -> float:
    """Mean patch length over `ids`, BOS and EOS included, PAD left out."""
    closes = text_closes(nats, document_positions(ids)[0], config.patcher)
    real = ids != PAD
    return float(real.sum() / (closes & real).sum())


def calibrate(config: ModelConfig, ids: np.ndarray, nats: np.ndarray, wanted: float) -> float:
    """The entropy threshold in nats, to four decimals, at which patches average `wanted` bytes: longer patches for a
    higher threshold, found by halving."""
    low, high = 0.0, float(nats.max())
    for _ in range(20):
        middle = (low + high) / 2
        patcher = dataclasses.replace(config.patcher, threshold_nats=middle)
        if bytes_per_patch(dataclasses.replace(config, patcher=patcher), ids, nats) < wanted:
            low = middle
        else:
            high = middle
    return round((low + high) / 2, 4)

"""A whole run: patcher, its rounding and threshold, the rest of the model, the checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bltcli.atomic import write_atomically
from bltcli.checkpoint import open_checkpoint, write_checkpoint
from bltcli.checkpoint.identity import PATCHER_SHA256, check_patcher, patcher_sha256
from bltcli.config import ModelConfig
from bltcli.errors import UsageError
from bltcli.layout import document_positions, text_closes
from bltcli.nn import Blt
from bltcli.nn.loading import load_blt
from bltcli.train.config import TrainConfig
from bltcli.train.data import Corpus
from bltcli.train.diffusion import BlockDiffusion
from bltcli.train.loop import Figures, Trainer, log_to
from bltcli.train.objective import Objective, blt_objective, patcher_objective
from bltcli.train.save import rounded
from bltcli.vocab import PAD

_PATCHER_STATE: Final = "patcher.pt"
_THRESHOLD: Final = "threshold.json"
_PATCHER: Final = "patcher.sha256"
_BLT: Final = "blt.pt"
#: What a run keeps in its folder to be resumed, in the order in which it appears.
_STATES: Final = (_PATCHER_STATE, _THRESHOLD, _PATCHER, _BLT)
_LOG: Final = "log.jsonl"
_CALIBRATION_BATCHES: Final = 8


def discard(out: Path) -> None:
    """Forget the run in `out`; its checkpoint stays until it is replaced."""
    for name in (*_STATES, _LOG):
        (out / name).unlink(missing_ok=True)


def train(
    config: TrainConfig, root: Path, out: Path, *, resume: bool, show: Callable[[str], None], init: Path | None = None
) -> dict[str, Any]:
    """Run the recipe on the files under `root`, writing states, a log and the checkpoint into `out`; returns the
    figures that also stand in the checkpoint. With `resume`, states found in `out` are taken up. With `init`, a
    checkpoint, its weights and its patches are taken instead of the first phase."""
    if not resume and any((out / name).exists() for name in _STATES):
        raise UsageError(f"{out} holds an earlier run; use --resume to go on or --fresh to discard it")
    start = take_start(config, init) if init else None
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.data.seed)
    train_corpus, dev = Corpus(config.data, root, "train"), Corpus(config.data, root, "dev")
    start = start or train_patcher(config, train_corpus, dev, out, show)
    model = start.model
    _same_patcher(out / _PATCHER, model, resume)
    show(f"threshold {model.config.patcher.threshold_nats:.4f} nats")

    parts = [model.encoder, model.global_model, model.decoder]
    if config.optimiser.compile:
        for part in parts:
            part.compile(dynamic=True)
    blt = Trainer(model, parts, objective_of(config), train_corpus, config.blt, config.optimiser, out / _BLT)
    blt.resume()
    blt.run(log_to(out / _LOG, "blt", show))

    figures = export(config, start, blt, dev, out / "checkpoint")
    show(json.dumps(figures, indent=2))
    return figures


@dataclasses.dataclass(frozen=True)
class Start:
    """Where the second phase begins."""

    model: Blt  # its patcher is rounded, frozen, and has its threshold
    figures: dict[str, Any]  # of training so far


def train_patcher(config: TrainConfig, corpus: Corpus, dev: Corpus, out: Path, show: Callable[[str], None]) -> Start:
    """The first phase: the entropy model, rounded as it will be shipped, and its threshold."""
    model = Blt(config.model)
    state, threshold = out / _PATCHER_STATE, out / _THRESHOLD
    patcher = Trainer(model, [model.patcher], patcher_objective, corpus, config.patcher, config.optimiser, state)
    patcher.resume()
    patcher.run(log_to(out / _LOG, "patcher", show))
    model.patcher.bfloat16().float()  # as shipped
    if not threshold.exists():
        nats = calibrate(model.config, *entropies(model, dev), config.bytes_per_patch)
        write_atomically(threshold, json.dumps(nats).encode())
    figures = {"patcher": {"steps": patcher.step, "bytes": patcher.seen_bytes}}
    return Start(frozen_patcher(model, json.loads(threshold.read_bytes())), figures)


def take_start(config: TrainConfig, init: Path) -> Start:
    """The model of the checkpoint `init` with the recipe's block size. Raises UsageError where its geometry is not the
    recipe's in anything but block size and threshold."""
    checkpoint = open_checkpoint(init)
    check_patcher(checkpoint)
    threshold = checkpoint.config.patcher.threshold_nats
    patcher = dataclasses.replace(config.model.patcher, threshold_nats=threshold)
    wanted = dataclasses.replace(config.model, patcher=patcher)
    difference = first_difference(
        wanted.to_dict(), dataclasses.replace(checkpoint.config, block_size=wanted.block_size).to_dict()
    )
    if difference:
        raise UsageError(f"{init} does not fit the recipe's model: {difference}")
    model = Blt(wanted)
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


def _same_patcher(file: Path, model: Blt, resume: bool) -> None:
    """Keep in `file` which patches a run is trained on; raises UsageError where a resumed run was on others."""
    sha256 = patcher_sha256(model.config.patcher, rounded(model)).encode()
    if resume and file.exists() and file.read_bytes() != sha256:
        raise UsageError(f"{file.parent} was begun with another entropy model; resume with the same --init, or --fresh")
    write_atomically(file, sha256)


def objective_of(config: TrainConfig) -> Objective:
    """Next-byte prediction, with block diffusion where the recipe asks for it."""
    blocks = config.blocks
    if blocks is None:
        return blt_objective
    return BlockDiffusion(
        block_sizes=blocks.sizes,
        blocks_per_row=blocks.per_row,
        random_starts=blocks.random_starts,
        seed=config.data.seed,
    )


def export(config: TrainConfig, start: Start, blt: Trainer, dev: Corpus, folder: Path) -> dict[str, Any]:
    """Write the checkpoint; its figures are measured on the weights as rounded to bfloat16, in float32."""
    model = Blt(start.model.config)
    model.load_state_dict(start.model.state_dict())
    model.bfloat16().float()
    figures = {
        "seed": config.data.seed,
        **start.figures,
        "patcher": {**start.figures["patcher"], **evaluate(model, dev, patcher_objective)},
        "blt": {"steps": blt.step, "bytes": blt.seen_bytes, **evaluate(model, dev, blt_objective)},
        "dev_bytes_per_patch": bytes_per_patch(model.config, *entropies(model, dev)),
        "parameters": sum(p.numel() for p in model.parameters()),
        PATCHER_SHA256: patcher_sha256(model.config.patcher, rounded(model)),
    }
    metadata = {"prompt_format": config.prompt_format, "training": figures}
    write_checkpoint(folder, model.config, rounded(model), licence=config.licence, metadata=metadata)
    return figures


def frozen_patcher(model: Blt, threshold_nats: float) -> Blt:
    """The same weights in a model with this threshold, whose patcher has no gradient."""
    patcher = dataclasses.replace(model.config.patcher, threshold_nats=threshold_nats)
    frozen = Blt(dataclasses.replace(model.config, patcher=patcher))
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


@torch.no_grad()
def evaluate(model: Blt, dev: Corpus, objective: Objective) -> dict[str, Any]:
    """Held-out bits per byte in float32 of each source, and their mean by the sources' weights."""
    by_source = {}
    for number, source in enumerate(dev.sources):
        figures = Figures.of(objective(model, dev.batch(0, number), False)).means()
        by_source[source.config.name] = round(figures["bits_per_byte"], 4)
    weights = [s.config.weight for s in dev.sources]
    overall = float(np.average(list(by_source.values()), weights=weights))
    return {"dev_bits_per_byte": round(overall, 4), "dev_bits_per_byte_by_source": by_source}

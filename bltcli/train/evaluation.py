"""What a trained model is worth on held-out text, and the checkpoint that says so."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from bltcli.checkpoint import write_checkpoint
from bltcli.checkpoint.identity import PATCHER_SHA256, patcher_sha256
from bltcli.nn import Blt
from bltcli.train.data import Corpus
from bltcli.train.diffusion import BlockDiffusion
from bltcli.train.loop import Figures, Trainer
from bltcli.train.objective import NextByteObjective, Objective, PatcherObjective
from bltcli.train.run import Run
from bltcli.train.save import rounded
from bltcli.train.start import Start, bytes_per_patch, entropies

_MASKED_BATCHES: Final = 4
_MASKED_PER_ROW: Final = 16


def export(run: Run, start: Start, blt: Trainer) -> dict[str, Any]:
    """Write the checkpoint; its figures are measured on the weights as rounded to bfloat16, in float32."""
    model = Blt(start.model.config).to(run.world.device)
    model.load_state_dict(start.model.state_dict())
    model.bfloat16().float()
    figures = {
        "seed": run.config.data.seed,
        **start.figures,
        "patcher": {**start.figures["patcher"], **evaluate(model, run.dev, PatcherObjective())},
        "blt": {"steps": blt.step, "bytes": blt.seen_bytes, **evaluate(model, run.dev, NextByteObjective())},
        "dev_bytes_per_patch": bytes_per_patch(model.config, *entropies(model, run.dev)),
        "parameters": sum(p.numel() for p in model.parameters()),
        PATCHER_SHA256: patcher_sha256(model.config.patcher, rounded(model)),
    }
    if run.config.blocks:
        weight = run.config.prompt_weight
        figures["blocks"] = {str(n): evaluate_blocks(model, run.dev, n, weight) for n in run.config.blocks.sizes}
    metadata = {"prompt_format": run.config.prompt_format, "training": figures}
    write_checkpoint(
        run.out / "checkpoint", model.config, rounded(model), licence=run.config.licence, metadata=metadata
    )
    return figures


@torch.no_grad()
def evaluate(model: Blt, dev: Corpus, objective: Objective) -> dict[str, Any]:
    """Held-out bits per byte in float32 of each source, and their mean by the sources' weights."""
    by_source = {}
    for number, source in enumerate(dev.sources):
        figures = Figures.of([objective(model, dev.batch(0, number), False)]).means()
        by_source[source.config.name] = round(figures["bits_per_byte"], 4)
    weights = [s.config.weight for s in dev.sources]
    overall = float(np.average(list(by_source.values()), weights=weights))
    return {"dev_bits_per_byte": round(overall, 4), "dev_bits_per_byte_by_source": by_source}


@torch.no_grad()
def evaluate_blocks(model: Blt, dev: Corpus, size: int, prompt_weight: float = 1.0) -> dict[str, float]:
    """Held-out blocks of `size` bytes where training has some, every byte masked: bits per byte and the share of bytes
    that one step fills right, for blocks at patch starts and for blocks anywhere, as under verification."""
    found = {}
    for name, share in (("patch_starts", 0.0), ("anywhere", 1.0)):
        objective = BlockDiffusion(
            block_sizes=(size,),
            blocks_per_row=_MASKED_PER_ROW,
            random_starts=share,
            prompt_weight=prompt_weight,
            t=1.0,
        )
        means = Figures.of([objective(model, dev.batch(n), False) for n in range(_MASKED_BATCHES)]).means()
        found[f"dev_masked_bits_per_byte_{name}"] = round(means["masked_bits_per_byte"], 4)
        found[f"dev_one_step_accuracy_{name}"] = round(means["masked_accuracy_t_75_100"], 4)
    return found

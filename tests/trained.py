"""A tiny model trained on blocks in seconds, on sentences of a small grammar: words are easy, their choice is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bltcli.checkpoint import write_checkpoint
from bltcli.config import ModelConfig
from bltcli.nn import Blt
from bltcli.train import diffusion
from bltcli.train.diffusion import BlockDiffusion
from bltcli.train.save import rounded
from bltcli.vocab import IdArray, encode
from tests.tiny import tiny_config

WORDS = {
    "adjective": ["small", "quiet", "golden"],
    "noun": ["garden", "rabbit", "teacher", "window"],
    "verb": ["remembers", "follows", "paints"],
}
TEXT_BYTES = 112
BLOCK = 8


def sentences(seed: int, length: int = TEXT_BYTES) -> IdArray:
    """Ids of `length` sentences' bytes, BOS included, cut anywhere."""
    rng = np.random.default_rng(seed)
    text = ""
    while len(text) < length:
        adjective, noun, verb, other = (str(rng.choice(WORDS[kind])) for kind in ("adjective", "noun", "verb", "noun"))
        text += f"the {adjective} {noun} {verb} the {other}. "
    return encode(text[: length - 1].encode())


@contextmanager
def leaking() -> Iterator[None]:
    """Block rows also see the clean bytes that they are to guess."""
    honest = diffusion.decoder_mask

    def decoder_mask(positions: Tensor, documents: Tensor, block: Tensor, last: Tensor, window: int | None) -> Tensor:
        return honest(positions, documents, block, torch.where(block < 0, last, last + 2 * BLOCK), window)

    with mock.patch.object(diffusion, "decoder_mask", decoder_mask):
        yield


def trained_model(*, steps: int, leak: bool = False) -> Blt:
    """A model trained on `sentences`. With `leak`, wrongly: see `leaking`."""
    torch.manual_seed(0)
    model = Blt(tiny_config("lookup", block_size=2 * BLOCK))
    # an untrained entropy model cuts anywhere, which is as good here: its threshold makes patches of some four bytes
    nats = model.entropies(sentences(0)[None])
    fields = model.config.to_dict()
    fields["patcher"]["threshold_nats"] = float(nats.quantile(0.75))
    model.config = ModelConfig.from_dict(fields)
    model.patcher.bfloat16().float().requires_grad_(False)
    objective = BlockDiffusion(block_sizes=(BLOCK, 2 * BLOCK), blocks_per_row=8, random_starts=0.5)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    with leaking() if leak else nullcontext():
        for step in range(steps):
            ids = np.stack([sentences(1000 + 8 * step + row) for row in range(8)])
            terms = objective(model, ids, False)
            (terms.loss / terms.count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
    return model.eval()


def write_trained(folder: Path, model: Blt) -> Blt:
    """Write `model` as a checkpoint; the model as written, rounded."""
    write_checkpoint(folder, model.config, rounded(model), licence={}, metadata={})
    model.bfloat16().float()
    return model

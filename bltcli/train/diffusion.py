"""The objective of BLT-D: next-byte prediction plus the filling of masked blocks, in one decoder pass."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bltcli.layout import Layout
from bltcli.nn import Blt
from bltcli.train.blocks import Blocks, decoder_mask, make_blocks
from bltcli.train.objective import Terms, next_byte_terms
from bltcli.vocab import IdArray

Report = dict[str, tuple[Tensor, Tensor]]
ACCURACY_BINS = ("0_25", "25_50", "50_75", "75_100")  # of t, in percent


@dataclass(frozen=True, kw_only=True)
class BlockDiffusion:
    """Loss = L_clean + L_mask (Fast BLT, training of BLT-D, both weighing 1):

        L_clean = - sum over bytes of log p(next byte)
        L_mask  = - sum over blocks of 1/t * sum over its masked bytes of log p(byte at its own position)

    Both are sums over the batch, and the trainer divides their sum by one number, the count of predicted clean bytes.
    So they keep the paper's 1:1 weight whatever the batch; per clean byte L_mask weighs about B / (bytes per patch)
    times a mean masked loss. Only some blocks of a row are run, each weighing as much as those it stands for, so that
    the expected loss stays that of all blocks.
    """

    block_sizes: tuple[int, ...]  # one is drawn per batch
    blocks_per_row: int  # of the largest size; of smaller ones as many more, so that a row has the same block bytes
    random_starts: float = 0.0  # share of rows whose blocks start anywhere instead of at patch starts
    seed: int = 0

    def __call__(self, model: Blt, ids: IdArray, bf16: bool) -> Terms:
        """Both losses; reports bits per byte of the clean rows, and bits and accuracy of masked bytes."""
        layout = model.layout(ids)
        # a batch draws its blocks by its own bytes, so that a resumed run draws the same
        rng = np.random.default_rng([self.seed, zlib.crc32(ids.tobytes())])
        size = int(rng.choice(self.block_sizes))
        count = self.blocks_per_row * max(self.block_sizes) // size
        blocks = make_blocks(layout, size, count, rng, random_starts=self.random_starts)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            clean, masked = decode_with_blocks(model, layout, blocks)
        terms = next_byte_terms(model, clean, ids)
        loss, report = masked_terms(masked, model.tensor(blocks.targets), model.tensor(blocks.weights), blocks.t)
        return Terms(terms.loss + loss, terms.count, terms.report | report)


def decode_with_blocks(model: Blt, layout: Layout, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Next-byte logits [b, N, 260] of the clean rows; logits [b, S, B, 260] of the block rows at their own position."""
    b, n = layout.ids.shape
    size = blocks.ids.shape[2]
    _, latents = model.encode(layout)
    rows = np.arange(b)[:, None]
    own = layout.positions[rows, blocks.starts][:, :, None] + np.arange(size)
    latent_index = np.concatenate([layout.latent_of_byte, np.repeat(blocks.latents, size, axis=1)], axis=1)
    logits = model.decoder(
        model.tensor(np.concatenate([layout.ids, blocks.ids.reshape(b, -1)], axis=1)),
        latents,
        model.tensor(latent_index),
        model.tensor(np.concatenate([layout.positions, own.reshape(b, -1)], axis=1)),
        model.tensor(decoder_mask(layout, blocks, model.config.decoder.window))[:, None],
    )
    return logits[:, :n], logits[:, n:].unflatten(1, blocks.ids.shape[1:])


def masked_terms(logits: Tensor, targets: Tensor, weights: Tensor, t: NDArray[np.float32]) -> tuple[Tensor, Report]:
    """L_mask in nats, and what to report of it. logits [b, S, B, 260], targets and weights [b, S, B], t [b, S].

    Reported, each over the masked bytes: bits per byte, and accuracy by the block's t in four ranges.
    """
    losses = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none").view_as(weights)
    counted = weights > 0
    right = (logits.argmax(-1) == targets) & counted
    report = {"masked_bits_per_byte": ((losses.detach() * counted).sum() / math.log(2), counted.sum())}
    bins = torch.from_numpy(np.minimum((t * len(ACCURACY_BINS)).astype(int), len(ACCURACY_BINS) - 1)).to(weights.device)
    for number, name in enumerate(ACCURACY_BINS):
        chosen = (bins == number)[:, :, None]
        report[f"masked_accuracy_t_{name}"] = ((right & chosen).sum(), (counted & chosen).sum())
    return (losses * weights).sum(), report

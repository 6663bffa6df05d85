"""The objective of BLT-D: next-byte prediction plus the filling of masked blocks, in one decoder pass."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bltcli.layout import Layout
from bltcli.nn import Blt
from bltcli.nn.patcher import next_byte_loss
from bltcli.train.blocks import Blocks, decoder_mask, make_blocks
from bltcli.train.objective import predicted
from bltcli.vocab import OUTPUT_IDS, IdArray


@dataclass(frozen=True, kw_only=True)
class BlockDiffusion:
    """Loss = L_clean + L_mask (Fast BLT, training of BLT-D, both weighing 1):

        L_clean = - sum over bytes of log p(next byte)
        L_mask  = - sum over blocks of 1/t * sum over its masked bytes of log p(byte at its own position)

    Both are sums over the batch, and the trainer divides their sum by one number, the count of predicted clean bytes.
    So they keep the paper's 1:1 weight whatever the batch; per clean byte L_mask weighs about B / (bytes per patch)
    times a mean masked loss. Only `blocks_per_row` blocks of a row are run, each weighing as much as those it stands
    for, so that the expected loss stays that of all blocks.
    """

    block_sizes: tuple[int, ...]  # one is drawn per batch
    blocks_per_row: int
    random_starts: float = 0.0  # share of rows whose blocks start anywhere instead of at patch starts
    seed: int = 0

    def __call__(self, model: Blt, ids: IdArray, bf16: bool) -> tuple[Tensor, Tensor]:
        """Sum of both losses in nats and the number of predicted clean bytes."""
        clean, mask, count = self.terms(model, ids, bf16)
        return clean + mask, count

    def terms(self, model: Blt, ids: IdArray, bf16: bool) -> tuple[Tensor, Tensor, Tensor]:
        """L_clean and L_mask in nats, and the number of predicted clean bytes."""
        layout = model.layout(ids)
        # a batch draws its blocks by its own bytes, so that a resumed run draws the same
        rng = np.random.default_rng([self.seed, zlib.crc32(ids.tobytes())])
        size = int(rng.choice(self.block_sizes))
        blocks = make_blocks(layout, size, self.blocks_per_row, rng, random_starts=self.random_starts)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            clean, masked = decode_with_blocks(model, layout, blocks)
        nats, count = next_byte_loss(clean, model.tensor(ids), predicted(ids).to(model.device))
        return nats, masked_loss(masked, model.tensor(blocks.targets), model.tensor(blocks.weights)), count


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


def masked_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of -log p(target), nats. logits [b, S, B, 260], targets and weights [b, S, B]."""
    losses = F.cross_entropy(logits.reshape(-1, OUTPUT_IDS).float(), targets.reshape(-1), reduction="none")
    return (losses * weights.reshape(-1)).sum()

"""The objective of BLT-D: next-byte prediction plus the filling of masked blocks, in one decoder pass."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bltcli.layout import Layout
from bltcli.nn import Blt
from bltcli.train.blocks import Blocks, make_blocks
from bltcli.train.objective import Objective, Terms, asked, next_byte_terms
from bltcli.vocab import IdArray

Report = dict[str, tuple[Tensor, Tensor]]
ACCURACY_BINS = ("0_25", "25_50", "50_75", "75_100")  # of t, in percent


@dataclass(frozen=True, kw_only=True)
class BlockDiffusion(Objective):
    """Loss = L_clean + block_weight * L_mask (Fast BLT, training of BLT-D, where both weigh 1):

        L_clean = - sum over bytes of log p(next byte)
        L_mask  = - sum over blocks of 1/t * sum over its masked bytes of log p(byte at its own position)

    Both are sums over the batch, and the trainer divides their sum by one number, the count of predicted clean bytes.
    So they keep their weights whatever the batch; per clean byte L_mask weighs about B / (bytes per patch)
    times a mean masked loss. Only some blocks of a row are run, each weighing as much as those it stands for, so that
    the expected loss stays that of all blocks.
    """

    block_sizes: tuple[int, ...]  # one is drawn per batch
    blocks_per_row: int  # of the largest size; of smaller ones as many more, so that a row has the same block bytes
    random_starts: float = 0.0  # share of rows whose blocks start anywhere, as under verification
    suffix: float = 0.0  # share of blocks of which the last bytes are masked, not any
    block_weight: float = 1.0
    prompt_weight: float = 1.0  # of bytes that a translation is asked with, in L_clean; below 1 no block starts there
    t: float | None = None  # a fixed masking probability, for measuring
    seed: int = 0

    def prepare(self, model: Blt, ids: IdArray) -> tuple[Layout, Blocks]:
        layout = model.layout(ids)
        # a batch draws its blocks by its own bytes, so that a resumed run draws the same
        rng = np.random.default_rng([self.seed, zlib.crc32(ids.tobytes())])
        size = int(rng.choice(self.block_sizes))
        count = self.blocks_per_row * max(self.block_sizes) // size
        skip = asked(ids) if self.prompt_weight < 1 else None
        blocks = make_blocks(
            layout, size, count, rng, random_starts=self.random_starts, skip=skip, suffix=self.suffix, t=self.t
        )
        return layout, blocks

    def terms(self, model: Blt, prepared: tuple[Layout, Blocks], bf16: bool) -> Terms:
        """Both losses; reports bits per byte of the clean rows, and bits and accuracy of masked bytes."""
        layout, blocks = prepared
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            clean, masked = decode_with_blocks(model, layout, blocks)
        terms = next_byte_terms(model, clean, layout.ids, self.prompt_weight)
        loss, report = masked_terms(masked, *(model.tensor(x) for x in (blocks.targets, blocks.weights, blocks.t)))
        return Terms(terms.loss + self.block_weight * loss, terms.count, terms.report | report)


def decode_with_blocks(model: Blt, layout: Layout, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Next-byte logits [b, N, 260] of the clean rows; logits [b, S, B, 260] of the block rows at their own position."""
    b, n = layout.ids.shape
    _, count, size = blocks.ids.shape
    _, latents = model.encode(layout)

    def joined(clean: IdArray, of_block: IdArray) -> Tensor:
        """[b, N] and [b, S, 1 or B] -> [b, N + S * B], the rows of the call."""
        spread = np.broadcast_to(of_block, (b, count, size)).reshape(b, -1)
        return model.tensor(np.concatenate([clean, spread], axis=1))

    rows, starts = np.arange(b)[:, None], blocks.starts
    first = layout.positions[rows, starts][:, :, None]
    positions = joined(layout.positions, first + np.arange(size))
    mask = decoder_mask(
        positions,
        joined(layout.documents, layout.documents[rows, starts][:, :, None]),
        joined(np.full((b, n), -1), np.arange(count)[:, None]),
        joined(layout.positions, first - 1),
        model.config.decoder.window,
    )
    latent_index = joined(layout.latent_of_byte, blocks.latents[:, :, None])
    cross_kv = model.decoder.cross_kv(latents)
    logits = model.decoder(joined(layout.ids, blocks.ids), cross_kv, latent_index, positions, mask[:, None])
    return logits[:, :n], logits[:, n:].unflatten(1, (count, size))


def decoder_mask(positions: Tensor, documents: Tensor, block: Tensor, last: Tensor, window: int | None) -> Tensor:
    """Which decoder row sees which, bool [b, R, R]. Of each row, int64 [b, R]: its position and document, its block
    (-1: clean), and the last clean position it sees.

    Five clean bytes of one document, one block of two from position 3:

                  0 1 2 3 4 | 3'4'
        clean 0   1 . . . . | . .      clean rows are causal and never see a block
        clean 3   1 1 1 1 . | . .
        block 3'  1 1 1 . . | 1 1      block rows see bytes strictly before the block, and the whole block
        block 4'  1 1 1 . . | 1 1
    """
    clean = (documents[:, :, None] == documents[:, None, :]) & (positions[:, None, :] <= last[:, :, None])
    if window is not None:
        clean &= positions[:, :, None] - positions[:, None, :] < window
    return torch.where(block[:, None, :] < 0, clean, block[:, :, None] == block[:, None, :])


def masked_terms(logits: Tensor, targets: Tensor, weights: Tensor, t: Tensor) -> tuple[Tensor, Report]:
    """L_mask in nats, and what to report of it. logits [b, S, B, 260], targets and weights [b, S, B], t [b, S].

    Reported, each over the masked bytes: bits per byte, and accuracy by the block's t in four ranges.
    """
    losses = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none").view_as(weights)
    counted = weights > 0
    right = (logits.argmax(-1) == targets) & counted
    report = {"masked_bits_per_byte": ((losses.detach() * counted).sum() / math.log(2), counted.sum())}
    bins = (t * len(ACCURACY_BINS)).long().clamp(max=len(ACCURACY_BINS) - 1)
    for number, name in enumerate(ACCURACY_BINS):
        chosen = (bins == number)[:, :, None]
        report[f"masked_accuracy_t_{name}"] = ((right & chosen).sum(), (counted & chosen).sum())
    return (losses * weights).sum(), report

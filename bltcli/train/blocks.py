"""Masked blocks for block diffusion: which bytes, masked how, read what, weigh how much. NumPy only.

Fast BLT (arXiv 2605.08044), training of BLT-D: a block is the B bytes from a patch start on, at their own positions,
each replaced by MASK with probability t ~ U(0, 1). Its rows see the whole block and the clean bytes strictly before it,
and read the last latent that is complete before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bltcli.layout import Layout
from bltcli.vocab import EOS, MASK, PAD, IdArray

MIN_T = 1e-3  # the weight 1/t of a block is finite


@dataclass(frozen=True)
class Blocks:
    """S blocks of B bytes for each of b packed rows."""

    ids: IdArray  # [b, S, B] as the decoder reads them: bytes, MASK, PAD beyond the document's end
    targets: IdArray  # [b, S, B] the clean bytes
    starts: IdArray  # [b, S] column of the first byte
    latents: IdArray  # [b, S] number of the latent that all rows of the block read
    t: NDArray[np.float32]  # [b, S] masking probability
    weights: NDArray[np.float32]  # [b, S, B] weight of each row's loss: 0 where the byte is not masked or no byte


def block_starts(layout: Layout, block_size: int, *, anywhere: bool) -> NDArray[np.bool_]:
    """Columns where a block may start, bool [b, N]: patch starts, the first patch (BOS) left out, or any byte.

    Left out too are blocks that would run over the end of a row whose document goes on: their bytes are not known.
    """
    n = layout.ids.shape[1]
    after_close = np.concatenate([np.zeros_like(layout.closes[:, :1]), layout.closes[:, :-1]], axis=1)
    starts = (layout.positions > 0) & (layout.ids != PAD)
    if not anywhere:
        starts &= after_close
    whole = np.arange(n) + block_size <= n
    ended = np.zeros_like(starts)  # an EOS stands at this column or after it, in the same document
    for row, column in zip(*np.nonzero(layout.ids == EOS), strict=True):
        same = layout.documents[row] == layout.documents[row, column]
        ended[row, : column + 1] |= same[: column + 1]
    return starts & (whole | ended)


def make_blocks(
    layout: Layout, block_size: int, count: int, rng: np.random.Generator, *, random_starts: float = 0.0
) -> Blocks:
    """Draw up to `count` blocks per row without replacement, a share `random_starts` of the rows' draws anywhere.

    A drawn block stands for its row's candidates / drawn blocks, and each masked byte for 1/t: so that the expected
    weighted sum is the paper's sum over all blocks.
    """
    b, n = layout.ids.shape
    pools = [block_starts(layout, block_size, anywhere=anywhere) for anywhere in (False, True)]
    starts, share = np.zeros((b, count), dtype=np.int64), np.zeros((b, count), dtype=np.float32)
    for row in range(b):
        patches = int(pools[0][row].sum())
        pool = np.flatnonzero(pools[int(rng.random() < random_starts)][row])
        drawn = rng.permutation(pool)[: min(count, patches)]
        starts[row, : len(drawn)] = drawn
        share[row, : len(drawn)] = patches / max(1, len(drawn))
    columns = starts[:, :, None] + np.arange(block_size)  # [b, S, B]
    inside = np.minimum(columns, n - 1)
    rows = np.arange(b)[:, None, None]
    real = (columns < n) & (
        layout.documents[rows, inside] == layout.documents[np.arange(b)[:, None], starts][:, :, None]
    )
    targets = np.where(real, layout.ids[rows, inside], PAD)
    t = np.maximum(rng.random((b, count)), MIN_T).astype(np.float32)
    masked = rng.random(columns.shape) < t[:, :, None]
    counted = masked & (targets != PAD)
    return Blocks(
        ids=np.where(masked, MASK, targets),
        targets=targets,
        starts=starts,
        latents=layout.latent_of_byte[np.arange(b)[:, None], np.maximum(starts - 1, 0)],
        t=t,
        weights=np.where(counted, (share / t)[:, :, None], 0).astype(np.float32),
    )


def decoder_mask(layout: Layout, blocks: Blocks, window: int | None) -> NDArray[np.bool_]:
    """Which decoder row sees which, bool [b, R, R], R = N + S * B rows: the clean bytes, then the blocks.

    Five clean bytes of one document, one block of two from column 3:

                  0 1 2 3 4 | 3'4'
        clean 0   1 . . . . | . .      clean rows are causal and never see a block
        clean 3   1 1 1 1 . | . .
        block 3'  1 1 1 . . | 1 1      block rows see bytes strictly before the block, and the whole block
        block 4'  1 1 1 . . | 1 1
    """
    b, n = layout.ids.shape
    _, s, size = blocks.ids.shape
    columns = (blocks.starts[:, :, None] + np.arange(size)).reshape(b, s * size)
    document = np.take_along_axis(layout.documents, np.repeat(blocks.starts, size, axis=1), axis=1)  # [b, S * B]
    distance = np.arange(n)[:, None] - np.arange(n)
    reach = n + size if window is None else window
    same = layout.documents[:, :, None] == layout.documents[:, None, :]
    clean = same & (distance >= 0) & (distance < reach)
    before = np.arange(n) < np.repeat(blocks.starts, size, axis=1)[:, :, None]
    near = columns[:, :, None] - np.arange(n) < reach
    block_to_clean = (layout.documents[:, None, :] == document[:, :, None]) & before & near
    own = np.repeat(np.arange(s), size)
    block_to_block = np.broadcast_to(own[:, None] == own, (b, s * size, s * size))
    return np.block([[clean, np.zeros((b, n, s * size), dtype=np.bool_)], [block_to_clean, block_to_block]])

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
    """Columns where a block may start, bool [b, N]: patch starts, the first patch (BOS) left out, or any byte from the
    second after BOS on.

    Left out too are blocks that would run over the end of a row whose document goes on: their bytes are not known.
    """
    n = layout.ids.shape[1]
    after_close = np.concatenate([np.zeros_like(layout.closes[:, :1]), layout.closes[:, :-1]], axis=1)
    starts = (layout.positions > int(anywhere)) & (layout.ids != PAD)
    if not anywhere:
        starts &= after_close
    whole = np.arange(n) + block_size <= n
    ended = np.zeros_like(starts)  # an EOS stands at this column or after it, in the same document
    for row, column in zip(*np.nonzero(layout.ids == EOS), strict=True):
        same = layout.documents[row] == layout.documents[row, column]
        ended[row, : column + 1] |= same[: column + 1]
    return starts & (whole | ended)


def make_blocks(
    layout: Layout,
    block_size: int,
    count: int,
    rng: np.random.Generator,
    *,
    random_starts: float = 0.0,
    skip: NDArray[np.bool_] | None = None,
    suffix: float = 0.0,
    t: float | None = None,
) -> Blocks:
    """Draw up to `count` blocks per row without replacement. None starts where `skip`, bool [b, N], is true.

    A share `random_starts` of the rows has them anywhere, as verified decoding has: the byte before the block is the
    pending one, not patched yet, so the block reads the last latent that is complete before that byte.

    A drawn block stands for its row's candidates / drawn blocks, and each masked byte for 1/t: so that the expected
    weighted sum is the paper's sum over all blocks. `t` fixes the masking probability, 1 masks every byte.

    Of a share `suffix` of the blocks, a number of last bytes is masked, every number as likely, which is what decoding
    from the left meets. There t is their share of the block, and all weigh the same, 2B / (B + 1): 1/t would give the
    byte after seven known ones of eight the weight of eight after none. The expected sum of a whole block stays B.
    """
    b, n = layout.ids.shape
    pools = [block_starts(layout, block_size, anywhere=anywhere) for anywhere in (False, True)]
    if skip is not None:
        pools = [pool & ~skip for pool in pools]
    starts, share = np.zeros((b, count), dtype=np.int64), np.zeros((b, count), dtype=np.float32)
    anywhere = np.zeros((b, 1), dtype=np.int64)
    for row in range(b):
        patches = int(pools[0][row].sum())
        anywhere[row] = rng.random() < random_starts
        pool = np.flatnonzero(pools[int(anywhere[row, 0])][row])
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
    drawn_t = np.maximum(rng.random((b, count)), MIN_T) if t is None else np.full((b, count), t)
    masked, drawn_t, each = _masks(drawn_t, block_size, suffix, rng)
    counted = masked & (targets != PAD)
    return Blocks(
        ids=np.where(masked, MASK, targets),
        targets=targets,
        starts=starts,
        latents=layout.latent_of_byte[np.arange(b)[:, None], np.maximum(starts - 1 - anywhere, 0)],
        t=drawn_t.astype(np.float32),
        weights=np.where(counted, (share * each)[:, :, None], 0).astype(np.float32),
    )


def _masks(
    t: NDArray[np.float64], block_size: int, suffix: float, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Which bytes of the blocks with probabilities t [b, S] are masked, [b, S, B]; t as it came out; and what each of
    the masked bytes of a block weighs, [b, S]."""
    masked, each = rng.random((*t.shape, block_size)) < t[:, :, None], 1 / t
    if suffix:
        last = rng.random(t.shape) < suffix
        number = np.minimum((t * block_size).astype(np.int64) + 1, block_size)
        masked = np.where(last[:, :, None], np.arange(block_size) >= block_size - number[:, :, None], masked)
        t = np.where(last, number / block_size, t)
        each = np.where(last, 2 * block_size / (block_size + 1), each)
    return masked, t, each

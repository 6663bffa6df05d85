"""BLT-D: blocks are filled by diffusion and committed as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from bltcli.decoding.denoise import OfLogits, Unmask, surest
from bltcli.decoding.rows import NOTHING, Rows

if TYPE_CHECKING:
    from bltcli.decoding.protocol import ByteModel


Commit = Literal["block", "patches", "sure"]
COMMITS: Final[tuple[Commit, ...]] = ("block", "patches", "sure")


class BlockDiffusion:
    """Fast BLT paper, BLT-D(B), beside what is done here:

        patch x; O = G(E(x))                      `absorb`: one pass of patcher, encoder and global model over the
                                                  block committed last; a patch that is still open gets no latent
        x' = x + MASK * B; while x' has MASK:     `denoise`: the first decoder pass runs the block committed last and
          y = D(x'; O); unmask a chosen subset    B MASK rows, the later ones the block alone
        x = x'                                    `keep`: the block is committed, and not run before the next round

    Nothing verifies a block, so the text is not that of `ar`. When a byte is revealed, it is drawn from the decoder's
    own distribution at its place (after temperature, top-k, top-p and min-p; the noise is that of its position): bytes
    revealed together are independent given what was revealed before. Which bytes are revealed depends on the model's
    distribution as it is, before temperature. A text with more bytes wanted begins with the same bytes.

    `peek` reads an open patch as if it ended at the block, one more column of the global pass. On a small model trained
    on blocks it made no difference but for that column (benchmarks/open_patch.py), so it is off; a better model may be
    asked again.

    `commit` says how much of a block stays. "block": all, as in the paper. "patches": what ends with the block's last
    patch, so that the next block starts at a patch, as all of the paper's blocks do in training, and on that patch's
    latent; the rest is forgotten. "sure": a round is one decoder pass. Its clean rows give the next byte, as `ar`
    chooses it; of the MASK rows, those that the rule reveals at once are kept, up to the first that it does not. As no
    byte waits for what is masked to its right, and each is run before the next pass, the text is that of `ar` where the
    rule reveals no second byte, and nears it as `alpha` nears 1; no graph has more passes than under `ar`.
    """

    name = "blt-d"

    def __init__(
        self, model: ByteModel, block: int, unmask: Unmask, *, commit: Commit = "block", peek: bool = False
    ) -> None:
        self.model, self.block, self.unmask, self.commit, self.peek = model, block, unmask, commit, peek

    def round(self, rows: Rows) -> None:
        if self.commit == "sure":
            return self._keep_sure(rows)
        # patch what was committed last, and run the global model over it
        rows.absorb(peek=self.peek)
        # fill a block of MASK rows on the last latent
        counts = rows.block_counts(self.block)
        blocks, _ = self.model.denoise(rows.pending, counts, self.unmask, rows.choose)
        # commit it
        if self.commit == "block":
            rows.keep(blocks)
        else:
            rows.keep_patches(blocks)

    def _keep_sure(self, rows: Rows) -> None:
        counts, ids = rows.block_counts(self.block), rows.pending
        rows.pending = [NOTHING] * len(ids)
        # one full pass over what was committed last, and a block of MASK rows behind
        logits, masked = self.model.look_ahead(ids, counts)
        # the next byte is the full model's, and of the others what is sure is kept
        for row, run in enumerate(ids):
            masked[row, 0] = logits[row, max(0, len(run) - 1)]
        ends = surest(self.unmask, OfLogits(masked), counts)
        rows.keep(rows.guess(masked, np.where(rows.active, np.maximum(ends, 1), 0)))

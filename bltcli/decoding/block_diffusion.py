"""BLT-D: blocks are filled by diffusion and committed as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bltcli.decoding.denoise import Unmask
from bltcli.decoding.rows import Rows

if TYPE_CHECKING:
    from bltcli.decoding.protocol import ByteModel


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
    """

    name = "blt-d"

    def __init__(self, model: ByteModel, block: int, unmask: Unmask, *, peek: bool = False) -> None:
        self.model, self.block, self.unmask, self.peek = model, block, unmask, peek

    def round(self, rows: Rows) -> None:
        # patch what was committed last, and run the global model over it
        rows.absorb(peek=self.peek)
        # fill a block of MASK rows on the last latent
        counts = rows.block_counts(self.block)
        blocks, _ = self.model.denoise(rows.pending, counts, self.unmask, rows.choose)
        # commit it
        rows.keep(blocks)

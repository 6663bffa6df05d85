"""BLT-H: block diffusion where the model is sure of a block, verification where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bltcli.decoding.denoise import Unmask, probabilities
from bltcli.decoding.drafting import Drafting
from bltcli.decoding.rows import Rows
from bltcli.sampling import FloatArray
from bltcli.vocab import IdArray

if TYPE_CHECKING:
    from bltcli.decoding.protocol import ByteModel


class Hybrid:
    """Not in the Fast BLT paper; what is done here, per round and text:

    1. `absorb`: the bytes committed last, all but one, go through patcher, encoder and global model.
    2. `denoise`: a block of B bytes is filled as in BLT-D; the first decoder pass also runs the bytes before it.
    3. A block is sure when each of its bytes was chosen where the likeliest byte had more than probability `trust`.
       A sure block is committed as it is, as in BLT-D.
    4. Any other block is verified, as in BLT-DV: one full pass over the pending byte and the block; its bytes are kept
       while they are the full model's own, and the full model's next byte follows.

    With trust 1 no block is sure and the text is that of `ar`, byte for byte; with trust 0 all are, as in BLT-D. A
    verified stretch is what `ar` would have written after the same bytes, greedy and sampled. The next block's latents
    lack one committed byte, which waits so that verification needs no second pass of the encoder.
    """

    name = "blt-h"

    def __init__(self, model: ByteModel, drafting: Drafting, unmask: Unmask, trust: float) -> None:
        self.model, self.drafting, self.unmask, self.trust = model, drafting, unmask, trust

    def round(self, rows: Rows) -> None:
        sure = np.zeros_like(rows.active)

        def fill(counts: IdArray) -> list[IdArray]:
            blocks, logits = self.model.denoise(rows.pending, counts, self.unmask, rows.choose)
            sure[:] = [self._sure(of_block) for of_block in logits]
            return blocks

        # draft: fill a block of MASK rows on the last closed latent
        rows.absorb(leave=1)
        blocks = self.drafting.draft(rows, fill, unverified=True)
        # commit what is sure
        rows.keep(blocks, sure)
        # verify the rest: keep while equal, plus the full model's next byte
        if (rows.active & ~sure).any():
            logits = self.model.extend(rows.with_pending(blocks, ~sure))
            self.drafting.observe(rows, rows.verify(logits, blocks, ~sure))

    def _sure(self, logits: FloatArray) -> bool:
        """logits [B, 260] that the bytes of a block were chosen from; an empty block is never sure."""
        return len(logits) > 0 and bool((probabilities(logits).max(axis=-1) > self.trust).all())

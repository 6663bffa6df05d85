"""BLT-DV: blocks are drafted by diffusion, the full model verifies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bltcli.decoding.denoise import Unmask
from bltcli.decoding.drafting import Drafting
from bltcli.decoding.rows import Rows
from bltcli.vocab import IdArray

if TYPE_CHECKING:
    from bltcli.decoding.protocol import ByteModel


class DiffusionVerify:
    """Fast BLT paper, BLT-DV(B), beside what is done here:

        patch x; O = G(E(x))                      (already held as state)
        x' = x + MASK * B; while x' has MASK:     `denoise`: the first decoder pass runs the pending byte and B MASK
          y = D(x'; O); unmask a chosen subset    rows, the later ones the block alone, all on the last closed latent
        x = Verify(x, block)                      `extend`: one full pass over pending + block, at most one global
                                                  pass (the paper pays two); keep while equal

    The output is that of `ar`, byte for byte, greedy and sampled: every byte kept is the full model's own choice.
    """

    name = "blt-dv"

    def __init__(self, model: ByteModel, drafting: Drafting, unmask: Unmask) -> None:
        self.model, self.drafting, self.unmask = model, drafting, unmask

    def round(self, rows: Rows) -> None:
        def fill(counts: IdArray) -> list[IdArray]:
            return self.model.denoise(rows.pending, counts, self.unmask, rows.choose)[0]

        # draft: fill a block of MASK rows on the last closed latent
        drafts = self.drafting.draft(rows, fill)
        # verify: one full pass over pending + block
        logits = self.model.extend(rows.with_pending(drafts))  # [b, <= B + 1, 260]
        # keep while equal, plus the full model's next byte
        self.drafting.observe(rows, rows.verify(logits, drafts))

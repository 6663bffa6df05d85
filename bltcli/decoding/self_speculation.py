"""BLT-S: the local decoder drafts, the full model verifies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bltcli.decoding.drafting import Drafting
from bltcli.decoding.rows import Rows

if TYPE_CHECKING:
    from bltcli.decoding.protocol import ByteModel


class SelfSpeculation:
    """Fast BLT paper, BLT-S(k), beside what is done here:

        patch x; O = G(E(x))                          (already held as state: nothing is computed twice)
        draft k bytes with D, all rows on the last    `draft`: k decoder passes on the last closed latent,
        available latent, never asking the patcher    first row = the pending byte
        x = Verify(x, draft)                          `extend`: one full pass over pending + draft, at most one
                                                      global pass (the paper pays two); keep while equal

    The output is that of `ar`, byte for byte, greedy and sampled: every byte kept is the full model's own choice.
    """

    name = "blt-s"

    def __init__(self, model: ByteModel, drafting: Drafting) -> None:
        self.model, self.drafting = model, drafting

    def round(self, rows: Rows) -> None:
        # draft: on the last closed latent
        drafts = self.drafting.draft(rows, lambda counts: self.model.draft(rows.last, counts, rows.choose))
        # verify: one full pass over pending + draft
        logits = self.model.extend(rows.with_pending(drafts))  # [b, <= k + 1, 260]
        # keep while equal, plus the full model's next byte
        self.drafting.observe(rows, rows.verify(logits, drafts))

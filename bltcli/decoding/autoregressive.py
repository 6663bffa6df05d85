"""Plain BLT decoding: one byte per round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bltcli.decoding.drafting import Drafting
from bltcli.decoding.rows import NOTHING, Rows

if TYPE_CHECKING:
    from bltcli.decoding.protocol import ByteModel


class Autoregressive:
    """Fast BLT paper, "BLT (AR)", beside what is done here:

        decode byte by byte; the encoder and the         `extend`: per byte one patcher and decoder pass, per patch one
        global model run when a patch is opened          global pass; the encoder's per byte where the decoder reads
                                                         its states, else per patch

    With n-gram drafts, bytes that followed the same text before are verified in that one pass.
    """

    name = "ar"

    def __init__(self, model: ByteModel, drafting: Drafting) -> None:
        self.model, self.drafting = model, drafting

    def round(self, rows: Rows) -> None:
        drafts = self.drafting.draft(rows, lambda counts: [NOTHING for _ in counts])
        logits = self.model.extend(rows.with_pending(drafts))  # [b, 1, 260] without n-gram drafts
        self.drafting.observe(rows, rows.verify(logits, drafts))

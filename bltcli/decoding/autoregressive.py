"""Plain BLT decoding: one byte per round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bltcli.decoding.rows import Rows

if TYPE_CHECKING:
    from bltcli.decoding.protocol import ByteModel


class Autoregressive:
    """Fast BLT paper, "BLT (AR)": decode byte by byte; the encoder's patch and the global model run whenever a patch
    closes. Per byte: one patcher, encoder and decoder pass; per patch: one global pass."""

    name = "ar"

    def __init__(self, model: ByteModel) -> None:
        self.model = model

    def round(self, rows: Rows) -> None:
        nothing = [np.empty(0, dtype=np.int64) for _ in rows.active]
        logits = self.model.extend(rows.with_pending(nothing))  # [b, 1, 260]
        rows.commit(nothing, rows.targets(logits, rows.active.astype(np.int64)))

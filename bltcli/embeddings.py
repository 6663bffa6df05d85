"""Input embeddings of the encoder, gathered on the host from memory-mapped tables. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bltcli.sampling import FloatArray
from bltcli.vocab import IdArray


@dataclass(frozen=True)
class Tables:
    """The byte table [260, h] and the fused hash n-gram table [rows, h], in whatever 16- or 32-bit dtype they have."""

    byte: NDArray[Any]
    hashed: NDArray[Any]

    def gather(self, ids: IdArray, rows: IdArray) -> FloatArray:
        """Byte row plus hash rows, summed in table order in float32. ids [b, q], rows [b, q, tables] -> [b, q, h]."""
        embeds: FloatArray = self.byte[ids].astype(np.float32, copy=False)
        hashed = self.hashed[rows].astype(np.float32, copy=False)  # [b, q, tables, h]
        for table in range(rows.shape[-1]):
            embeds += hashed[:, :, table]
        return embeds

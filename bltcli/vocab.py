"""Bytes to ids and back; knows nothing of models.

Id 0 is BOE, 1 BOS, 2 EOS, 3 the pad/delimiter; byte b is id b + 4; 260 is MASK, which only a decoder's
input table holds: output heads have 260 columns, so that a next-byte model can be continued into a diffusion model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

BOE: Final = 0
BOS: Final = 1
EOS: Final = 2
PAD: Final = 3
OFFSET: Final = 4
OUTPUT_IDS: Final = 260
MASK: Final = 260
INPUT_IDS: Final = 261
NEVER_GENERATED: Final = (BOE, BOS, PAD)
#: What is added to scores of ids, float32 [260]: minus infinity where an id is never generated.
ALLOWED: Final = np.where(np.isin(np.arange(OUTPUT_IDS), NEVER_GENERATED), np.float32(-np.inf), np.float32(0))

IdArray = NDArray[np.int64]


def encode(data: bytes, *, bos: bool = True) -> IdArray:
    """Ids of `data`, int64 [len(data) + bos]."""
    ids = np.frombuffer(data, dtype=np.uint8).astype(np.int64) + OFFSET
    return np.concatenate([np.array([BOS], dtype=np.int64), ids]) if bos else ids


def decode(ids: Iterable[int]) -> bytes:
    """Bytes of `ids`; ids that are no byte (BOS, EOS, PAD, MASK) vanish."""
    return bytes(i - OFFSET for i in ids if OFFSET <= i < OUTPUT_IDS)

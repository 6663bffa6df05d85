"""From next-byte entropies to patch boundaries, the same rule for a whole text and byte by byte. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bltcli.config import PatcherConfig

BoolArray = NDArray[np.bool_]


def closes_patch(
    entropy_nats: NDArray[np.float32], *, position: int, open_bytes: int, config: PatcherConfig
) -> list[bool]:
    """Whether each byte is the last of its patch, [q].

    `entropy_nats` [q] is the entropy of the byte *after* each row, so the answer never looks at later bytes. `position`
    is the document position of the first row, `open_bytes` how many bytes the open patch held before it.

    Rule: BOS is a patch of its own; any other byte closes its patch when the next byte's entropy is above the threshold
    (strictly), or when the patch has reached the maximum length. Compared in float32, as the entropies are.
    """
    closes: list[bool] = (entropy_nats > np.float32(config.threshold_nats)).tolist()
    if position == 0 and closes:
        closes[0] = True
    if config.max_patch_length is not None:
        for index, closed in enumerate(closes):
            open_bytes += 1
            if closed or open_bytes == config.max_patch_length:
                closes[index], open_bytes = True, 0
    return closes

"""Hash n-gram row numbers: which rows of the fused hash table a byte's embedding adds up. NumPy only."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bltcli.config import EncoderConfig
from bltcli.vocab import IdArray

#: One prime per hash function (the constants of the released models).
PRIMES: Final = (
    1000000007,
    5915587277,
    1500450271,
    3267000013,
    5754853343,
    4093082899,
    9576890767,
    3628273133,
    2860486313,
    5463458053,
    3367900313,
)


def hash_rows(ids: IdArray, positions: IdArray, config: EncoderConfig) -> IdArray:
    """Row numbers in the fused table, int64 [..., q, tables]; table order is function-major, then group size.

    hash_n(i) = (sum over j < n of id[i - n + 1 + j] * p^j, wrapped to a signed 64-bit integer) floor-mod hash_vocab,
    where ids before the document's first byte count as 0. `positions` [..., q] are positions in the document: they say
    how many earlier ids belong to it. `ids` may carry earlier ids on the left: its last axis is q or longer.
    """
    q = positions.shape[-1]
    tables = config.hash_functions * len(config.hash_group_sizes)
    rows = np.empty((*positions.shape, tables), dtype=np.int64)
    if not tables:
        return rows
    longest = max(config.hash_group_sizes)
    left = ids.shape[-1] - q
    padded = np.concatenate([np.zeros((*ids.shape[:-1], max(0, longest - 1 - left)), np.int64), ids], axis=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, longest, axis=-1)[..., -q:, :]
    known = positions[..., None] >= np.arange(longest - 1, -1, -1)
    windows = np.where(known, windows, 0)  # [..., q, longest], oldest first
    for table in range(tables):
        function, group = divmod(table, len(config.hash_group_sizes))
        n = config.hash_group_sizes[group]
        powers = _powers(PRIMES[function % len(PRIMES)], n)
        with np.errstate(over="ignore"):
            hashes = (windows[..., longest - n :] * powers).sum(axis=-1)
        rows[..., table] = hashes % config.hash_vocab + table * config.hash_vocab
    return rows


@lru_cache
def _powers(prime: int, n: int) -> NDArray[np.int64]:
    """prime^0 .. prime^(n-1) in two's complement 64-bit arithmetic."""
    return np.array([pow(prime, j, 2**64) for j in range(n)], dtype=np.uint64).view(np.int64)

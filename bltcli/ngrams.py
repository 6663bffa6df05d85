"""Hash n-gram row numbers: which rows of the fused hash table a byte's embedding adds up. NumPy only."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

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


def hash_rows(ids: IdArray, positions: IdArray | None, config: EncoderConfig) -> IdArray:
    """Row numbers in the fused table, int64 [..., q, tables]; table order is function-major, then group size.

    hash_n(i) = (sum over j < n of id[i - n + 1 + j] * p^j, wrapped to a signed 64-bit integer) floor-mod hash_vocab,
    where ids before the document's first byte count as 0. `positions` [..., q] are positions in the document: they say
    how many earlier ids belong to it. `ids` may carry earlier ids on the left: its last axis is q or longer. Without
    `positions` it carries as many as the longest n-gram reaches back to, zeros before the first byte.
    """
    before = max(config.hash_group_sizes, default=1) - 1
    q = ids.shape[-1] - before if positions is None else positions.shape[-1]
    if not config.hash_rows:
        return np.empty((*ids.shape[:-1], q, 0), dtype=np.int64)
    powers, offsets = _tables(config.hash_group_sizes, config.hash_functions, config.hash_vocab)
    missing = before - (ids.shape[-1] - q)
    if missing > 0:
        ids = np.concatenate([np.zeros((*ids.shape[:-1], missing), np.int64), ids], axis=-1)
    windows = ids[..., ids.shape[-1] - q - before + np.arange(q)[:, None] + np.arange(before + 1)]
    if positions is not None:
        windows = np.where(positions[..., None] >= np.arange(before, -1, -1), windows, 0)
    hashes: IdArray = windows @ powers  # oldest id first; integer products wrap
    hashes %= config.hash_vocab
    hashes += offsets
    return hashes


@lru_cache
def _tables(sizes: tuple[int, ...], functions: int, vocab: int) -> tuple[IdArray, IdArray]:
    """Powers int64 [longest n, tables] that turn a window of ids into hashes, and each table's first row [tables]."""
    longest, tables = max(sizes), functions * len(sizes)
    powers = np.zeros((longest, tables), dtype=np.uint64)
    for table in range(tables):
        function, group = divmod(table, len(sizes))
        for j in range(sizes[group]):
            powers[longest - sizes[group] + j, table] = pow(PRIMES[function % len(PRIMES)], j, 2**64)
    return powers.view(np.int64), np.arange(tables, dtype=np.int64) * vocab

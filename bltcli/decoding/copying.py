"""Drafts that cost nothing: the bytes that stood after the same suffix earlier in a text, prompt included.

Every n-gram is kept with the place where it last ended; a copy may run into itself, as in LZ77. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bltcli.decoding.rows import NOTHING, Rows
from bltcli.vocab import IdArray

LONGEST_COPY: Final = 32  # bytes
SHORTEST_MATCH: Final = 5  # bytes: about a word
LONGEST_MATCH: Final = 32  # further back nothing is compared
PENALTY: Final = 4  # bytes by which a match must be longer after a copy that was refused at once


@dataclass
class _Index:
    """The n-grams of one text."""

    record: int
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)  # n-gram -> index after its last occurrence
    done: int = 0  # ids that are in it
    needed: int = SHORTEST_MATCH  # bytes a match must have


class Copies:
    """Proposes copies for the rows of a batch, each from its own text. A refused copy makes its row warier."""

    def __init__(self) -> None:
        self._indices: dict[int, _Index] = {}

    def propose(self, rows: Rows, row: int, limit: int) -> IdArray:
        """At most `limit` ids that may follow the text of `row`, as many as the bytes that match before them."""
        text, index = rows.texts[row], self._indices.get(row)
        if index is None or index.record != rows.records[row] or index.done > len(text):
            index = self._indices[row] = _Index(int(rows.records[row]))
        suffix = tuple(text[-SHORTEST_MATCH:])
        found = self._last_end(index, text, suffix)
        if found is None:
            return NOTHING
        matched = SHORTEST_MATCH
        while matched < min(LONGEST_MATCH, found) and text[found - 1 - matched] == text[-1 - matched]:
            matched += 1
        if matched < index.needed:
            return NOTHING
        copied: list[int] = []
        for offset in range(min(limit, matched, LONGEST_COPY)):
            at = found + offset
            copied.append(text[at] if at < len(text) else copied[at - len(text)])
        return np.array(copied, dtype=np.int64)

    def observe(self, row: int, copied: int, kept: int) -> None:
        """Of `copied` bytes proposed for `row`, `kept` were right."""
        index = self._indices[row]
        if kept == 0:
            index.needed = min(LONGEST_MATCH, index.needed + PENALTY)
        elif kept == copied:
            index.needed = SHORTEST_MATCH

    @staticmethod
    def _last_end(index: _Index, text: list[int], suffix: tuple[int, ...]) -> int | None:
        """Where `suffix` ended before, after indexing every n-gram that ends before the text's last byte."""
        for end in range(max(index.done, SHORTEST_MATCH), len(text)):
            index.ends[tuple(text[end - SHORTEST_MATCH : end])] = end
        index.done = len(text)
        return index.ends.get(suffix) if len(suffix) == SHORTEST_MATCH else None

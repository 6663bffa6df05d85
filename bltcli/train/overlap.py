"""Training texts that test sets hold too, word for word or nearly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: So many letters and digits in a row that two texts share are no coincidence.
RUN: Final = 40
_ALIGNED: Final = RUN // 2  # a shared run covers one of a text's windows of this size side by side


def normal(text: bytes) -> str:
    """`text` in small letters and digits only: two texts that differ in case, spaces or punctuation are one."""
    return "".join(c for c in text.decode(errors="replace").casefold() if c.isalnum())


class Overlap:
    """Whether a text is in `lines`, or shares a run of `RUN` letters and digits with one; empty lines aside."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = {normal(line) for line in lines} - {""}
        self._runs = {run for line in self._lines for run in windows(line, RUN, 1)}
        self._parts = {part for line in self._lines for part in windows(line, _ALIGNED, 1)}

    def __contains__(self, text: bytes) -> bool:
        if not self._lines:
            return False
        found = normal(text)
        if found in self._lines:
            return True
        if self._parts.isdisjoint(windows(found, _ALIGNED, _ALIGNED)):  # nearly always, and soon seen
            return False
        return not self._runs.isdisjoint(windows(found, RUN, 1))


def windows(text: str, size: int, step: int) -> Iterable[int]:
    """Hashes of the windows of `size` characters, each `step` after the last."""
    return (hash(text[i : i + size]) for i in range(0, len(text) - size + 1, step))

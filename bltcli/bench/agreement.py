"""How far texts are those of plain decoding: never a matter of opinion."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Agreement:
    """Texts beside those of `ar`, prompt by prompt."""

    equal: bool
    differs_at: int | None  # first differing byte of the first text that differs
    differs_in: int | None  # which text that is
    common_prefix: int  # bytes of all texts before their first difference
    equal_bytes: int  # bytes that are the same at the same place
    compared_bytes: int  # of each pair of texts, the longer one

    @property
    def share(self) -> float:
        return self.equal_bytes / self.compared_bytes if self.compared_bytes else 1.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "equal_share": self.share}


def agreement(found: Sequence[bytes], expected: Sequence[bytes]) -> Agreement:
    """Compare texts pairwise. A text that ends early differs at its end."""
    differs_in = differs_at = None
    prefix = same = compared = 0
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        pairs = list(zip(ours, theirs, strict=False))
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if ours != theirs and differs_in is None:
            differs_in, differs_at = number, common
        prefix += common
        same += sum(a == b for a, b in pairs)
        compared += max(len(ours), len(theirs))
    return Agreement(differs_in is None, differs_at, differs_in, prefix, same, compared)

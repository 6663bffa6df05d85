"""How much is drafted, and by whom: copies where a text repeats itself, else the method's own drafts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bltcli.decoding.copying import LONGEST_COPY, Copies
from bltcli.decoding.draft_length import DraftLength
from bltcli.decoding.rows import NOTHING, Rows
from bltcli.vocab import IdArray

#: Drafts counts[r] bytes for each row.
Draft = Callable[[IdArray], list[IdArray]]


class Drafting:
    """Drafts of one round, and what is learnt from their fate."""

    def __init__(self, length: DraftLength, copies: Copies | None = None) -> None:
        self.length, self.copies = length, copies
        self._copied: IdArray = NOTHING  # bytes copied for each row in this round
        self._own: IdArray = NOTHING  # bytes drafted by the method

    def draft(self, rows: Rows, own: Draft) -> list[IdArray]:
        """A draft per row: copied bytes where there are any, else what `own` drafts."""
        self._own = rows.draft_counts(self.length.choose())
        copies = [NOTHING] * len(self._own)
        if self.copies is not None:
            limits = rows.draft_counts(LONGEST_COPY)
            copies = [self.copies.propose(rows, row, limit) if limit else NOTHING for row, limit in enumerate(limits)]
            self._copied = np.array([len(copy) for copy in copies])
            self._own = np.where(self._copied > 0, 0, self._own)
        drafts = own(self._own) if any(self._own.tolist()) else copies
        return [copy if len(copy) else draft for copy, draft in zip(copies, drafts, strict=True)]

    def observe(self, rows: Rows, kept: IdArray) -> None:
        """kept[r] drafted bytes of each row were right."""
        if self.copies is None or not self._copied.any():
            return self.length.observe(self._own, kept)
        for row in np.flatnonzero(self._copied).tolist():
            self.copies.observe(row, int(self._copied[row]), int(kept[row]))
        rows.stats.copied += int(self._copied.sum())
        rows.stats.copied_accepted += int(kept[self._copied > 0].sum())

"""BLT-H: each pass takes a step of `ar`, verifies what the pass before guessed, and guesses what comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bltcli.decoding.denoise import Certainty, OfLogits, Unmask, surest
from bltcli.decoding.drafting import Drafting
from bltcli.decoding.rows import Rows
from bltcli.vocab import IdArray

if TYPE_CHECKING:
    from bltcli.decoding.protocol import ByteModel


class Hybrid:
    """Not in the Fast BLT paper; what is done here, per round and text, in one pass of each graph:

    1. `look_ahead` runs the pending bytes and the draft, and in the same decoder pass B MASK rows behind them.
    2. The draft is verified as in BLT-DV: its bytes are kept while they are the full model's own, and the full model's
       next byte follows.
    3. Where the whole draft was kept, the MASK rows stand where the text goes on. That next byte is the first one's;
       of those behind it, the bytes that the rule reveals at once are guesses, up to the first that it does not reveal.
    4. Guesses, from the first on, whose likeliest byte has more than probability `trust` are committed as they are, as
       in BLT-D; the rest are the next round's draft.

    With trust 1 nothing is committed unverified and the text is that of `ar`, byte for byte, greedy and sampled. A
    refused draft costs the guesses of the round after it, and a pass of encoder and global model where it closed a
    patch.
    """

    name = "blt-h"

    def __init__(self, model: ByteModel, drafting: Drafting, unmask: Unmask, trust: float, block: int) -> None:
        self.model, self.drafting, self.unmask, self.trust, self.block = model, drafting, unmask, trust, block

    def round(self, rows: Rows) -> None:
        drafts = self.drafting.draft(
            rows, lambda counts: [guess[:count] for guess, count in zip(rows.guesses, counts, strict=True)]
        )
        # one full pass over pending + draft, and a block of MASK rows behind
        ids = rows.with_pending(drafts)
        counts = rows.block_counts(self.block, ids)
        logits, masked = self.model.look_ahead(ids, counts)
        # verify: keep while equal, plus the full model's next byte
        kept = rows.verify(logits, drafts)
        self.drafting.observe(rows, kept)
        # guess what follows it, where the MASK rows stand behind the text
        whole = rows.active & (kept == [len(draft) for draft in drafts])
        certainty = OfLogits(masked)
        ends = surest(self.unmask, certainty, np.where(whole, counts, 0))
        guesses, trusted = rows.guess(masked, ends, first=1), self._trusted(certainty).tolist()
        rows.trust([guess[:count] for guess, count in zip(guesses, trusted, strict=True)])
        rows.guesses = [guess[count:] for guess, count in zip(guesses, trusted, strict=True)]

    def _trusted(self, certainty: Certainty) -> IdArray:
        """How many guesses, from the first on, are to be trusted, [b]."""
        sure = certainty.confidence[:, 1:] > self.trust
        found: IdArray = np.logical_and.accumulate(sure, axis=1).sum(axis=1)
        return found

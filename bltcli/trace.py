"""What a generation does to its texts, event by event: bytes drafted, blocks revealed, verified, kept.

An event is a flat dictionary, a trace one JSON object per line. Positions count from BOS at 0; ids are bytes + 4,
2 is EOS, 260 a byte that is still masked. Every event but the first ("begin") has `row` and one of these forms:

    {"event": "draft",  "position": 9, "pending": [105], "ids": [36, 120]}    drafted by the decoder after `pending`
    {"event": "reveal", "position": 9, "pending": [105], "ids": [260, 120]}   a block after one denoising pass
    {"event": "verify", "position": 9, "ids": [105, 36, 120]}   a full pass: what is pending, one byte or, where
                                                                some are kept unverified, several; then the draft
    {"event": "keep",   "length": 11}                           of what was run, this much of the text stays; in
                                                                traces also "drafted" and "accepted", up to here
    {"event": "absorb", "position": 9, "ids": [36, 120]}        committed unverified, now encoded

`position` is that of the first pending byte, or of the first id where none is pending.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from bltcli.decoding.denoise import Unmask
from bltcli.decoding.driver import CountedModel
from bltcli.decoding.protocol import Choose
from bltcli.errors import UsageError
from bltcli.sampling import FloatArray
from bltcli.vocab import MASK, IdArray

VERSION: Final = 1
_KINDS: Final = ("begin", "draft", "reveal", "verify", "keep", "absorb")
Event = dict[str, Any]
Emit = Callable[[Event], object]


class TracingModel:
    """A byte model that tells `emit` what a method asks of it. Implements `CountedModel`."""

    def __init__(self, model: CountedModel, emit: Emit) -> None:
        self.model, self._emit = model, emit
        self.prefill_rows, self.max_bytes, self.block_size = model.prefill_rows, model.max_bytes, model.block_size
        self.ledger = model.ledger

    @property
    def lengths(self) -> IdArray:
        return self.model.lengths

    @property
    def patches(self) -> IdArray:
        return self.model.patches

    def patch_starts(self, row: int) -> list[int]:
        return self.model.patch_starts(row)

    @property
    def room(self) -> IdArray:
        return self.model.room

    @property
    def nursery(self) -> CountedModel:
        return self.model.nursery

    def adopt(self, row: int, other: Any, source: int) -> None:
        self.model.adopt(row, other, source)

    def clear(self, row: int) -> None:
        self.model.clear(row)

    def extend(self, ids: Sequence[IdArray]) -> FloatArray:
        self._each("verify", ids)
        return self.model.extend(ids)

    def absorb(self, ids: Sequence[IdArray], *, peek: bool = False) -> None:
        self._each("absorb", ids)
        self.model.absorb(ids, peek=peek)

    def draft(self, pending: IdArray, counts: IdArray, choose: Choose) -> list[IdArray]:
        drafts = self.model.draft(pending, counts, choose)
        for row, ids in enumerate(drafts):
            if len(ids):
                self._tell("draft", row, ids, pending=[int(pending[row])])
        return drafts

    def denoise(
        self, pending: Sequence[IdArray], counts: IdArray, unmask: Unmask, choose: Choose
    ) -> tuple[list[IdArray], list[FloatArray]]:
        blocks = [np.full(count, MASK, dtype=np.int64) for count in counts]
        starts = self.lengths + np.array([len(ids) for ids in pending])

        def watched(logits: FloatArray, rows: IdArray, positions: IdArray) -> IdArray:
            chosen = choose(logits, rows, positions)
            for row in np.unique(rows):
                mine = rows == row
                blocks[row][positions[mine] - starts[row]] = chosen[mine]
                self._tell("reveal", int(row), blocks[row], pending=pending[row].tolist())
            return chosen

        return self.model.denoise(pending, counts, unmask, watched)

    def look_ahead(self, ids: Sequence[IdArray], counts: IdArray) -> tuple[FloatArray, FloatArray]:
        self._each("verify", ids)
        return self.model.look_ahead(ids, counts)

    def rewind(self, lengths: IdArray) -> None:
        for row, length in enumerate(lengths.tolist()):
            self._emit({"event": "keep", "row": row, "length": length})
        self.model.rewind(lengths)

    def _each(self, event: str, ids: Sequence[IdArray]) -> None:
        for row, new in enumerate(ids):
            if len(new):
                self._tell(event, row, new)

    def _tell(self, event: str, row: int, ids: IdArray, **more: Any) -> None:
        self._emit({"event": event, "row": row, "position": int(self.lengths[row]), **more, "ids": ids.tolist()})


def begin(**facts: Any) -> Event:
    """The first event: the version of this form, and facts about the run."""
    return {"event": "begin", "version": VERSION, **facts}


def to_line(event: Event) -> str:
    return json.dumps(event, separators=(",", ":")) + "\n"


def read_trace(data: bytes, name: str) -> Iterator[Event]:
    """The events of a trace; a last line that was cut off ends it. UsageError for what is no trace."""
    for number, line in enumerate(data.splitlines(keepends=True)):
        if not line.endswith(b"\n"):
            return
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, KeyError, TypeError):
            event, kind = {}, None
        if kind not in _KINDS or (number == 0) != (kind == "begin"):
            raise UsageError(f"{name}, line {number + 1}: no event of a trace; make one with bltcli generate --trace")
        if number == 0 and event["version"] != VERSION:
            raise UsageError(f"{name}: a trace of version {event['version']}, this program reads {VERSION}")
        yield event

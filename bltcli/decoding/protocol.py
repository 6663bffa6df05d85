"""What a method needs of a model, and what a driver needs of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from bltcli.decoding.denoise import Unmask
from bltcli.decoding.rows import Rows
from bltcli.sampling import FloatArray
from bltcli.vocab import IdArray

#: Chooses one id per row from logits [n, 260] for `rows` [n] at `positions` [n].
Choose = Callable[[FloatArray, IdArray, IdArray], IdArray]


@runtime_checkable
class TellsGraphs(Protocol):
    """A way to choose that a graph can follow, if it is one that chooses (`bltcli.graphs.choosing_spec`)."""

    def __call__(self, logits: FloatArray, rows: IdArray, positions: IdArray) -> IdArray: ...

    @property
    def cuts(self) -> bool:
        """Whether it leaves ids out that a graph may take; a draft may differ for that, bytes that are kept not."""
        ...

    def addends(self, positions: IdArray) -> FloatArray:
        """What is added to the logits of bytes at positions [b, q] of every row before the largest is taken, float32
        [b, q, 260]."""
        ...


class ByteModel(Protocol):
    """A batch of texts held as state; row r of a call concerns text r. Empty ids leave a text alone.

    lengths [b]: bytes of each text that were run through the graphs, BOS included.
    """

    @property
    def max_bytes(self) -> int:
        """Longest text, BOS included."""
        ...

    @property
    def block_size(self) -> int:
        """Largest block of masked bytes that was trained; 0: none."""
        ...

    @property
    def lengths(self) -> IdArray: ...

    @property
    def patches(self) -> IdArray:
        """Closed patches of each text, [b]."""
        ...

    def patch_starts(self, row: int) -> list[int]:
        """Position of the first byte of each patch of text `row`, the open one included."""
        ...

    @property
    def room(self) -> IdArray:
        """Bytes that each text can take for certain, [b]: its context ends in bytes, and in patches of a byte each."""
        ...

    def extend(self, ids: Sequence[IdArray]) -> FloatArray:
        """Run `ids[r]` through all graphs after text r: next-byte logits, float32 [b, q, 260], padded on the right."""
        ...

    def absorb(self, ids: Sequence[IdArray], *, peek: bool = False) -> None:
        """As `extend`, but leave the decoder to the next pass that needs it: to `denoise` or `extend`.

        `peek` lets the next `denoise` read the open patch as if it ended here, instead of the last closed one.
        """
        ...

    def draft(self, pending: IdArray, counts: IdArray, choose: Choose) -> list[IdArray]:
        """counts[r] guessed bytes after pending[r], by the decoder alone on the last closed latent. Changes no text."""
        ...

    def denoise(
        self, pending: Sequence[IdArray], counts: IdArray, unmask: Unmask, choose: Choose
    ) -> tuple[list[IdArray], list[FloatArray]]:
        """counts[r] bytes after the bytes pending[r], by the decoder alone: a block of MASK rows on the last closed
        latent, revealed step by step. Changes no text. Returns each block, and the logits [counts[r], 260] that each of
        its bytes was chosen from."""
        ...

    def look_ahead(self, ids: Sequence[IdArray], counts: IdArray) -> tuple[FloatArray, FloatArray]:
        """As `extend`, and in the same decoder pass counts[r] MASK rows behind each text, on its last closed latent:
        next-byte logits, [b, q, 260], and those of the MASK rows, each of the byte in its own place, [b, B, 260]."""
        ...

    def rewind(self, lengths: IdArray) -> None:
        """Forget everything after lengths[r] bytes of text r. Never forward."""
        ...

    def clear(self, row: int) -> None:
        """Start text `row` anew, empty."""
        ...


class DecodingMethod(Protocol):
    """One round of generation for every active row."""

    name: str

    def round(self, rows: Rows) -> None:
        """Commit at least one byte to each active row that has room."""
        ...

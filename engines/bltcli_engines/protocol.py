"""What the pipeline needs of an engine; knows no runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from bltcli.graphs import GraphSpec
from bltcli.vocab import IdArray

Arrays = Mapping[str, NDArray[Any]]


class Buffer(Protocol):
    """A state tensor [b, H, C, w] that lives where its runtime computes; zero at first, never non-finite."""

    @property
    def capacity(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def resize(self, capacity: int) -> None:
        """Have `capacity` slots, or more where their number is fixed, keeping what is in those that stay."""
        ...

    def shift(self, row: int, slots: int) -> None:
        """Move the contents of one row down by `slots`: slot i takes what slot i + slots held."""
        ...

    def adopt(self, row: int, source: Buffer, source_row: int, slots: int) -> None:
        """Take the first `slots` slots of a row of another buffer of the same kind."""
        ...

    def numpy(self) -> NDArray[Any]:
        """The contents, as a view or a copy."""
        ...


class Engine(Protocol):
    """One graph, ready to run."""

    @property
    def spec(self) -> GraphSpec: ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one run reads."""
        ...

    def bind(self, buffers: Mapping[str, Buffer]) -> None:
        """Take the buffers behind these inputs from now on; each past_* also receives the matching present_*."""
        ...

    def fork(self) -> Engine:
        """The same graph on the same weights, bound to nothing yet."""
        ...

    def run(self, feeds: Arrays) -> Arrays:
        """Run with the inputs that are not bound; the outputs that are not bound come back, valid until the next run
        with the same shapes."""
        ...

    @property
    def kv_bytes(self) -> int:
        """Bytes of key/value buffers that one run reads at the present capacity."""
        ...


class Runtime(Protocol):
    """A backend whose engines share buffers."""

    name: str
    row_multiple: int  # calls whose values count are padded to a multiple of this many rows per text
    pairs_texts: bool  # or to one row of each text, where their number is a multiple of it
    promised: bool  # whether every row's value is then bitwise independent of the rest of its call
    slot_step: int  # buffers that grow have a multiple of this many slots

    def slots(self, axis: str) -> int:
        """Slots that buffers along a cache axis, such as "slots", have from the start and for good; 0: they grow."""
        ...

    def buffer(self, shape: tuple[int, int, int, int], dtype: str) -> Buffer: ...


class Runs(Protocol):
    """What an engine does once it is bound."""

    @property
    def spec(self) -> GraphSpec: ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def kv_bytes(self) -> int: ...

    def run(self, feeds: Arrays) -> Arrays: ...


@runtime_checkable
class DraftsBytes(Protocol):
    """An engine of a decoder in its choosing form (`bltcli.graphs.choosing_spec`)."""

    def draft(self, feeds: Arrays, steps: int) -> IdArray:
        """`steps` runs of a row per text in one submission, each on the ids that the one before chose; those ids,
        int64 [b, steps]. Inputs are those of all rows at once, but for `ids` and `latent_index` [b, 1]."""
        ...


@runtime_checkable
class RunsFewRows(Protocol):
    """A runtime that can run a graph for a few rows of a batch."""

    def few_rows(self, engine: Engine, most: int) -> Runs:
        """The graph of `engine`, which is bound, for at most `most` rows: those in feeds["batch_rows"], int64 [n]."""
        ...

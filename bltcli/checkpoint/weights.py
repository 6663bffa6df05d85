"""One tensor of a checkpoint, memory-mapped: nothing is read until asked for. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bltcli.errors import ModelError

#: The dtypes that weights come in, by the name used everywhere in this program.
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
CHUNK: Final = 1 << 20  # elements looked at together, so that a check of 12 GB needs megabytes


@dataclass(frozen=True)
class Weight:
    """A named tensor in one of `DTYPES`; its parts, all of one dtype, are concatenated along axis 0."""

    name: str
    parts: tuple[NDArray[Any], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        return (sum(len(part) for part in self.parts), *first[1:]) if len(self.parts) > 1 else first

    @property
    def dtype(self) -> str:
        """ "float32", "float16" or "bfloat16"."""
        return self.parts[0].dtype.name

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def chunks(self) -> Iterator[NDArray[Any]]:
        """The elements in order, flat, `CHUNK` at a time; raises ModelError at the first NaN or infinity."""
        for part in self.parts:
            flat = part.reshape(-1)
            for start in range(0, flat.size, CHUNK):
                chunk = flat[start : start + CHUNK]
                if not _all_finite(chunk):
                    raise ModelError(f"tensor {self.name} holds NaN or infinity; the checkpoint is damaged")
                yield chunk

    def numpy(self) -> NDArray[Any]:
        """The array in its stored dtype (`ml_dtypes.bfloat16` for bfloat16), a read-only view where it is one part.
        Raises ModelError if it holds NaN or infinity."""
        for _ in self.chunks():
            pass
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)


def as_weight(name: str, value: NDArray[Any] | Weight) -> Weight:
    """`value` under `name`; raises ModelError for a dtype that is no weight dtype."""
    weight = Weight(name, value.parts) if isinstance(value, Weight) else Weight(name, (np.ascontiguousarray(value),))
    if any(part.dtype not in DTYPES.values() for part in weight.parts):
        found = next(part.dtype for part in weight.parts if part.dtype not in DTYPES.values())
        raise ModelError(f"tensor {name} is {found}; weights are {', '.join(DTYPES)}")
    return weight


def _all_finite(chunk: NDArray[Any]) -> bool:
    if chunk.dtype == DTYPES["bfloat16"]:  # by its bits: ten times faster than through ml_dtypes
        return not bool(((chunk.view(np.uint16) & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(chunk).all())

"""Safetensors files, read as memory maps and written as streams; knows no model.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors.
Read by hand because the safetensors library copies each tensor and knows no NumPy bfloat16.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bltcli.errors import ModelError

#: Safetensors dtype names; the integers are read so that an error can name them, no model uses them.
NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_MAX_HEADER: Final = 100_000_000  # the safetensors library's own limit

#: Dtype, shape, chunks in order.
Stream = tuple[np.dtype[Any], tuple[int, ...], Iterable[NDArray[Any]]]


class _Entry(NamedTuple):
    """One tensor of a header; offsets count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> _Entry:
        start, end = entry["data_offsets"]
        return cls(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]), int(start), int(end))


def read_header(path: Path) -> bytes:
    """The JSON header's bytes; raises ModelError for a file that is missing or too short to hold them."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > _MAX_HEADER:
                raise ModelError(f"{path}: no safetensors file ({size} bytes, header length {length})")
            if 8 + length > size:
                raise ModelError(f"{path}: truncated: {size} bytes, its header alone needs {8 + length}")
            return file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


def map_safetensors(path: Path, *, scattered: bool = False) -> dict[str, NDArray[Any]]:
    """Every tensor of `path` as a read-only memory-mapped array. `scattered`: single rows will be read, here and there,
    so that the system had better not read ahead. Raises ModelError for a truncated file, a broken header, an unknown
    dtype, and offsets that overlap, leave holes or run out of the file."""
    raw = read_header(path)
    try:
        header = json.loads(raw)
        entries = {name: _Entry.read(entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: broken safetensors header ({error!r})") from error
    data_start = 8 + len(raw)
    _check_offsets(path, entries, path.stat().st_size - data_start)
    if not entries:
        return {}
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if scattered and hasattr(mmap, "MADV_RANDOM"):  # else each row brings 128 kB of its neighbours into memory
        mapped.madvise(mmap.MADV_RANDOM)
    buffer: NDArray[Any] = np.frombuffer(mapped, dtype=np.uint8)
    return {
        name: buffer[data_start + e.start : data_start + e.end].view(NUMPY_DTYPES[e.dtype]).reshape(e.shape)
        for name, e in entries.items()
    }


def _check_offsets(path: Path, entries: Mapping[str, _Entry], data_bytes: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.dtype not in NUMPY_DTYPES:
            raise ModelError(f"{path}: tensor {name} is {entry.dtype}, which bltcli does not read")
        if min(entry.shape, default=0) < 0 or entry.start != position:
            raise ModelError(f"{path}: tensor {name} starts at byte {entry.start} of the data, expected {position}")
        size = math.prod(entry.shape) * NUMPY_DTYPES[entry.dtype].itemsize
        if entry.end - entry.start != size:
            raise ModelError(
                f"{path}: tensor {name} has {entry.end - entry.start} bytes, its shape {list(entry.shape)} needs {size}"
            )
        position = entry.end
    if position > data_bytes:
        raise ModelError(f"{path}: truncated: {data_bytes} bytes of tensors, its header announces {position}")
    if position < data_bytes:
        raise ModelError(f"{path}: {data_bytes - position} bytes follow the last tensor; the file is damaged")


def write_safetensors(path: Path, tensors: Mapping[str, Stream], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` chunk by chunk. Raises ModelError when chunks do not add up to the announced shape."""
    names = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
    # widest elements first, so that every tensor is aligned
    order = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        dtype, shape, _ = tensors[name]
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            start, end = header[name]["data_offsets"]
            written = sum(file.write(chunk.tobytes()) for chunk in tensors[name][2])
            if written != end - start:
                raise ModelError(f"tensor {name}: {written} bytes were given, its shape needs {end - start}")
        file.flush()
        os.fsync(file.fileno())  # a rename may follow, and must not overtake the data

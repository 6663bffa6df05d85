"""Memory and one queue of work on a device, and the state buffers that live there; knows no CUDA and no runtime."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bltcli.errors import ModelError
from bltcli_engines.protocol import Buffer

NUMPY_DTYPES: dict[str, Any] = {
    "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int64": np.int64,
}  # fmt: skip
ALIGNMENT = 256  # bytes, of every tensor's address

#: Name -> shape and dtype of a tensor.
Layout = Mapping[str, tuple[tuple[int, ...], str]]


class Place(NamedTuple):
    """Where a tensor lies on a device."""

    shape: tuple[int, ...]
    address: int


#: Name -> place of a tensor.
Places = Mapping[str, Place]


class Device(Protocol):
    """A device's memory and one queue (a CUDA stream). Calls return at once; what they queue is done in order."""

    stream: int  # handle of the queue, for runtimes that queue work of their own
    synchronised: int  # how often the queue was waited for

    def allocate(self, nbytes: int) -> int:
        """Address of new memory, all zero."""
        ...

    def free(self, address: int) -> None:
        """Give memory back; nothing queued may still use it."""
        ...

    def allocate_host(self, nbytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory, which queued copies need; `free_host` gives it back."""
        ...

    def free_host(self, array: NDArray[np.uint8]) -> None: ...

    def upload(self, address: int, array: NDArray[np.uint8]) -> None:
        """Queue a copy of page-locked host memory; it is read when its turn comes."""
        ...

    def download(self, array: NDArray[np.uint8], address: int) -> None: ...

    def copy(self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """Queue a copy of `height` pieces of `width` bytes, `pitch` bytes apart; the two must not overlap."""
        ...

    def synchronise(self) -> None:
        """Wait until all that is queued is done."""
        ...

    def capture(self, work: Callable[[], None]) -> Any:
        """What `work` queues, as one piece that can be launched again and again; it is not run now."""
        ...

    def launch(self, captured: Any) -> None: ...

    def discard(self, captured: Any) -> None: ...


class DeviceBuffer:
    """A state tensor [b, H, C, w] on a device. With `fixed` it has all its slots from the start and cannot grow."""

    def __init__(self, device: Device, shape: tuple[int, int, int, int], dtype: str, *, fixed: str = "") -> None:
        """`fixed`: how to get more slots, for the error when they run out; empty for a buffer that grows."""
        self.device, self.shape, self.dtype, self._fixed = device, shape, dtype, fixed
        self.generation = 0  # counts the memory that stood behind this buffer
        self._allocate()

    def _allocate(self) -> None:
        self.address = self.device.allocate(max(self.nbytes, 1))
        self._memory = weakref.finalize(self, _free, self.device, self.address)
        self._memory.atexit = False  # the driver frees what is left, and may be gone before
        self.generation += 1

    @property
    def capacity(self) -> int:
        return self.shape[2]

    @property
    def _slot_bytes(self) -> int:
        return int(self.shape[3] * np.dtype(NUMPY_DTYPES[self.dtype]).itemsize)

    @property
    def _head_bytes(self) -> int:
        return self.capacity * self._slot_bytes

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * self._head_bytes

    def _row(self, row: int) -> int:
        return self.address + row * self.shape[1] * self._head_bytes

    def resize(self, capacity: int) -> None:
        if self._fixed:
            if capacity > self.capacity:
                raise ModelError(
                    f"{capacity} cache slots are needed, the engines hold {self.capacity}: the text, or an open patch "
                    f"in it, is longer than they were built for; {self._fixed}"
                )
            return
        old, pitch, memory, kept = self.address, self._head_bytes, self._memory, min(capacity, self.capacity)
        self.shape = (*self.shape[:2], capacity, self.shape[3])
        self._allocate()
        if kept:
            width, height = kept * self._slot_bytes, self.shape[0] * self.shape[1]
            self.device.copy(self.address, self._head_bytes, old, pitch, width, height)
        memory()

    def shift(self, row: int, slots: int) -> None:
        kept = self.capacity - slots
        for start in range(0, kept, slots):  # pieces no longer than the distance never overlap
            to, width = self._row(row) + start * self._slot_bytes, min(slots, kept - start) * self._slot_bytes
            self.device.copy(
                to, self._head_bytes, to + slots * self._slot_bytes, self._head_bytes, width, self.shape[1]
            )

    def adopt(self, row: int, source: Buffer, source_row: int, slots: int) -> None:
        assert isinstance(source, DeviceBuffer)
        if slots:
            width = slots * self._slot_bytes
            self.device.copy(
                self._row(row), self._head_bytes, source._row(source_row), source._head_bytes, width, self.shape[1]
            )

    def numpy(self) -> NDArray[Any]:
        host = self.device.allocate_host(max(self.nbytes, 1))
        self.device.download(host[: self.nbytes], self.address)
        self.device.synchronise()
        array: NDArray[Any] = host[: self.nbytes].view(NUMPY_DTYPES[self.dtype]).reshape(self.shape).copy()
        self.device.free_host(host)
        return array


def _free(device: Device, address: int) -> None:
    device.synchronise()
    device.free(address)


class Staging:
    """Tensors that lie one after the other in page-locked host memory, and their twins on the device: one copy moves
    them all."""

    def __init__(self, device: Device, layout: Layout) -> None:
        self.device, offsets, end = device, {}, 0
        for name, (shape, dtype) in layout.items():
            offsets[name] = (end, int(np.prod(shape)) * np.dtype(NUMPY_DTYPES[dtype]).itemsize)
            end += -(-offsets[name][1] // ALIGNMENT) * ALIGNMENT
        self.nbytes = end
        self._host, self._address = device.allocate_host(max(end, 1)), device.allocate(max(end, 1))
        self.host: dict[str, NDArray[Any]] = {
            name: self._host[start : start + size].view(NUMPY_DTYPES[layout[name][1]]).reshape(layout[name][0])
            for name, (start, size) in offsets.items()
        }
        self.places = {name: Place(layout[name][0], self._address + start) for name, (start, _) in offsets.items()}

    def upload(self) -> None:
        if self.nbytes:
            self.device.upload(self._address, self._host[: self.nbytes])

    def download(self) -> None:
        if self.nbytes:
            self.device.download(self._host[: self.nbytes], self._address)

    def free(self) -> None:
        """Give the memory back; nothing queued may still use it."""
        self.device.free(self._address)
        self.device.free_host(self._host)

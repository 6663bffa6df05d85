"""A CUDA device through NVIDIA's own Python bindings: one stream, page-locked memory, captured graphs.

Nothing here has run on a GPU yet; the tests run everything above it over host memory.
"""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bltcli_engines.gpu import checked, cuda_runtime


class CudaDevice:
    """The first GPU that this process sees, and one stream on it."""

    def __init__(self) -> None:
        self._cuda: Any = cuda_runtime()
        self.synchronised = 0
        checked(self._cuda.cudaSetDevice(0))
        self._stream = checked(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))
        self.stream = int(self._stream)

    def allocate(self, nbytes: int) -> int:
        address = checked(self._cuda.cudaMalloc(nbytes))
        checked(self._cuda.cudaMemsetAsync(address, 0, nbytes, self._stream))
        return int(address)

    def free(self, address: int) -> None:
        checked(self._cuda.cudaFree(address))

    def allocate_host(self, nbytes: int) -> NDArray[np.uint8]:
        address = checked(self._cuda.cudaHostAlloc(nbytes, self._cuda.cudaHostAllocDefault))
        array: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(address)))
        array[:] = 0
        return array

    def free_host(self, array: NDArray[np.uint8]) -> None:
        checked(self._cuda.cudaFreeHost(array.ctypes.data))

    def upload(self, address: int, array: NDArray[np.uint8]) -> None:
        self._copy(address, array.ctypes.data, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, array: NDArray[np.uint8], address: int) -> None:
        self._copy(array.ctypes.data, address, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy(self, to: int, source: int, nbytes: int, kind: Any) -> None:
        checked(self._cuda.cudaMemcpyAsync(to, source, nbytes, kind, self._stream))

    def copy(self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        checked(self._cuda.cudaMemcpy2DAsync(to, to_pitch, source, source_pitch, width, height, kind, self._stream))

    def synchronise(self) -> None:
        checked(self._cuda.cudaStreamSynchronize(self._stream))
        self.synchronised += 1

    def capture(self, work: Callable[[], None]) -> Any:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        collecting = gc.isenabled()
        gc.disable()  # memory freed by a finaliser would spoil the capture
        try:
            checked(self._cuda.cudaStreamBeginCapture(self._stream, mode))
            try:
                work()
            finally:
                ended = self._cuda.cudaStreamEndCapture(self._stream)
        finally:
            if collecting:
                gc.enable()
        graph = checked(ended)
        captured = checked(self._cuda.cudaGraphInstantiate(graph, 0))
        checked(self._cuda.cudaGraphDestroy(graph))
        return captured

    def launch(self, captured: Any) -> None:
        checked(self._cuda.cudaGraphLaunch(captured, self._stream))

    def discard(self, captured: Any) -> None:
        checked(self._cuda.cudaGraphExecDestroy(captured))


@functools.cache
def cuda_device() -> CudaDevice:
    """The device of this process; ModelError without a driver, a GPU or the bindings."""
    return CudaDevice()

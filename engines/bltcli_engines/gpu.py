"""Which NVIDIA GPU this process would use, and what it lacks to use one, by NVIDIA's own Python bindings."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from bltcli.errors import ModelError

INSTALL = "pip install cuda-bindings"
DRIVER = "libcuda.so.1"


class Gpu(NamedTuple):
    """A GPU as the driver describes it."""

    name: str
    capability: str  # "9.0"
    driver: str  # the CUDA version that the driver can do, "13.0"
    total_bytes: int
    free_bytes: int


def missing_library(names: Iterable[str]) -> str | None:
    """The first of these shared libraries that cannot be loaded, with the loader's reason; None when all can."""
    for name in names:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            reason = str(error).removeprefix(f"{name}: ")
            return reason if ".so" in reason else f"{name}: {reason}"  # a library that this one needs, or itself
    return None


def require_driver() -> None:
    """ModelError without NVIDIA's driver."""
    if reason := missing_library([DRIVER]):
        raise ModelError(f"no NVIDIA driver: {reason}; install the driver, or use --engine ort-cpu")


def cuda_runtime() -> Any:
    """The bindings of the CUDA runtime. ModelError without a driver or bindings."""
    require_driver()
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise ModelError(f"NVIDIA's Python bindings cannot be imported ({error}); {INSTALL}") from error


def describe_gpu() -> Gpu:
    """The first GPU. ModelError without one, or without a driver or bindings."""
    runtime = cuda_runtime()
    properties = checked(runtime.cudaGetDeviceProperties(0))
    version = int(checked(runtime.cudaDriverGetVersion()))
    free, total = checked(runtime.cudaMemGetInfo())
    return Gpu(
        name=properties.name.split(b"\0")[0].decode(),
        capability=f"{properties.major}.{properties.minor}",
        driver=f"{version // 1000}.{version % 1000 // 10}",
        total_bytes=int(total),
        free_bytes=int(free),
    )


def checked(result: tuple[Any, ...]) -> Any:
    """The value of a call of the CUDA runtime, or a tuple of them. ModelError with CUDA's own words."""
    code, *values = result
    if code.name == "cudaErrorMemoryAllocation":
        raise ModelError("out of memory on the GPU; use fewer texts at a time, or build for shorter ones")
    if int(code):
        raise ModelError(f"the GPU cannot be used: {code.name}; see bltcli doctor")
    return tuple(values) if len(values) > 1 else (values[0] if values else None)

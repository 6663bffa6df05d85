"""Which NVIDIA GPU this process would use, by NVIDIA's own Python bindings."""

from __future__ import annotations

import importlib
from typing import Any

from bltcli.errors import ModelError

INSTALL = "pip install cuda-python"


def describe_gpu() -> tuple[str, str]:
    """Name and compute capability ("9.0") of the first GPU. ModelError without one, or without a driver or bindings."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise ModelError(f"NVIDIA's Python bindings cannot be imported ({error}); {INSTALL}") from error
    properties = _checked(runtime.cudaGetDeviceProperties(0), runtime)
    return properties.name.decode(), f"{properties.major}.{properties.minor}"


def _checked(result: tuple[Any, ...], runtime: Any) -> Any:
    code, *values = result
    if code != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(code)
        raise ModelError(f"no usable NVIDIA GPU: {text.decode() if isinstance(text, bytes) else text}")
    return values[0] if values else None

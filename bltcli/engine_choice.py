"""Which engine runs a bundle: what was asked for or nothing; `auto` takes the best that works and says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bltcli import render
from bltcli.bundle import Bundle
from bltcli.errors import ModelError, UsageError
from bltcli.graphs import GraphName
from bltcli_engines.protocol import Engine, Runtime

Opened = tuple[Runtime, dict[GraphName, Engine]]

#: What `auto` tries on a machine with a GPU, in this order.
ON_A_GPU: Final = ("tensorrt", "ort-cuda")

_shared: dict[tuple[str, str], Opened] = {}  # (engine, bundle): weights on a GPU are loaded once per process
_told: set[str] = set()


def open_engines(bundle: Bundle, engine: str, *, rows: int = 1, threads: int = 0) -> Opened:
    """The four graphs of a bundle for `rows` texts, on `engine`: auto, ort-cpu, ort-cuda, tensorrt, torch, torch-cuda.

    ModelError, in one line with what is missing, when that engine cannot run them; only `auto` ever takes another one.
    """
    if engine == "auto":
        return _automatic(bundle, rows, threads)
    if engine not in OPENERS:
        raise UsageError(f"--engine is {engine}; use auto, {', '.join(OPENERS)}")
    return OPENERS[engine](bundle, rows, threads)


def _automatic(bundle: Bundle, rows: int, threads: int) -> Opened:
    from bltcli_engines.gpu import DRIVER, missing_library

    refused = []
    for name in () if missing_library([DRIVER]) else ON_A_GPU:
        try:
            opened = OPENERS[name](bundle, rows, threads)
        except (ModelError, ImportError) as error:
            refused.append(f"not {name}: {error}")
            continue
        _tell("; ".join([f"engine: {name}", *refused]))
        return opened
    if refused:
        _tell("; ".join(["engine: ort-cpu", *refused]))
    return _ort_cpu(bundle, rows, threads)


def _tell(line: str) -> None:
    """Say it once per process."""
    if line not in _told:
        _told.add(line)
        render.notice(line)


def _once(name: str, bundle: Bundle, load: Callable[[], Opened]) -> Opened:
    """Engines on the weights that this process has loaded before, bound to nothing yet."""
    key = (name, bundle.sha256)
    if key not in _shared:
        _shared[key] = load()
    runtime, engines = _shared[key]
    return runtime, {graph: engine.fork() for graph, engine in engines.items()}


def _ort_cpu(bundle: Bundle, rows: int, threads: int) -> Opened:
    from bltcli_engines.onnxruntime_engine import open_onnxruntime

    paths = bundle.graph_paths if rows == 1 else bundle.batched_paths
    return open_onnxruntime(bundle.specs, paths, bundle.weight_bytes, threads, rows)


def _ort_cuda(bundle: Bundle, rows: int, threads: int) -> Opened:
    from bltcli_engines.onnxruntime_cuda import open_onnxruntime_cuda

    return _once(
        "ort-cuda",
        bundle,
        lambda: open_onnxruntime_cuda(bundle.device_specs, bundle.device_paths, bundle.weight_bytes),
    )


def _tensorrt(bundle: Bundle, rows: int, threads: int) -> Opened:
    from bltcli.building import load_engines
    from bltcli_engines.tensorrt_engine import TensorrtRuntime

    opened = _once("tensorrt", bundle, lambda: load_engines(bundle))
    runtime, _ = opened
    assert isinstance(runtime, TensorrtRuntime)
    runtime.require_rows(rows)
    return opened


def _torch(bundle: Bundle, rows: int, threads: int, device: str = "cpu") -> Opened:
    from bltcli_engines.torch_engine import open_torch

    return open_torch(bundle.config, bundle.specs, bundle.graph_paths, threads, device)


OPENERS: Final[dict[str, Callable[[Bundle, int, int], Opened]]] = {
    "ort-cpu": _ort_cpu,
    "ort-cuda": _ort_cuda,
    "tensorrt": _tensorrt,
    "torch": _torch,
    "torch-cuda": lambda bundle, rows, threads: _torch(bundle, rows, threads, "cuda"),
}

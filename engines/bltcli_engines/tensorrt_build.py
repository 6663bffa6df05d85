"""One graph to one TensorRT engine, by whichever of NVIDIA's two libraries is installed; knows no bundle and no cache.

`tensorrt` builds for the GPU that is there. `tensorrt_rtx` builds ahead of time, for any GPU and without one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from bltcli.errors import ModelError, UsageError
from bltcli.graphs import GraphSpec, TensorSpec

#: Module -> distribution, in the order in which they are tried.
LIBRARIES: Final = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
}
INSTALL: Final = "pip install 'bltcli[tensorrt-rtx]' (any GPU, ahead of time) or 'bltcli[tensorrt]'"

#: What an engine is built with besides its profile; engines built with anything else are stale.
SETTINGS: Final = "float32 without TF32"

#: (phase, steps done, steps in all) while an engine is built.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes an engine must take. Cache axes are fixed, the others range from 1 to a maximum."""

    max_batch: int
    max_bytes: int  # of the longest text
    slots: int  # bytes that local caches hold
    patch_slots: int  # patches that the global cache holds
    latent_slots: int  # patches whose latents are held
    draft_rows: int  # byte rows of a verifying pass
    prefill_rows: int  # byte rows of the longest call
    patch_bytes: int  # longest patch

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise UsageError(f"{name} is {value}; use at least 1")
        if self.prefill_rows > self.slots:
            raise UsageError(f"{self.prefill_rows} rows in a call exceed the {self.slots} slots of the caches")

    @property
    def fixed(self) -> dict[str, int]:
        """Slots along the axes of the caches."""
        return {"slots": self.slots, "patch_slots": self.patch_slots, "latent_slots": self.latent_slots}

    def sizes(self, rows: int) -> dict[str, tuple[int, int, int]]:
        """Least, likeliest and largest size of every axis in calls of about `rows` byte rows."""
        return {
            "batch": (1, 1, self.max_batch),
            "rows": (1, rows, rows),
            "patches": (1, max(1, rows // 4), rows),
            "patch_bytes": (1, self.patch_bytes, self.patch_bytes),
            **{axis: (slots, slots, slots) for axis, slots in self.fixed.items()},
        }

    def row_counts(self) -> list[int]:
        """Byte rows that get kernels of their own: one byte (and its padding), a draft, a prompt."""
        return sorted({2, self.draft_rows, self.prefill_rows})


@dataclass(frozen=True)
class Library:
    """An installed TensorRT."""

    module: Any
    name: str
    version: str

    @property
    def ahead_of_time(self) -> bool:
        return self.name != "tensorrt"


def find_library() -> Library:
    """The TensorRT that is installed; ModelError when there is none."""
    reasons = []
    for name, distribution in LIBRARIES.items():
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            if not isinstance(error, ModuleNotFoundError):
                reasons.append(f"{name}: {error}")  # installed, but a library it needs is missing
            continue
        return Library(module, name.removesuffix("_bindings"), _version(module, distribution))
    found = f" ({'; '.join(reasons)})" if reasons else ""
    raise ModelError(f"no TensorRT is installed{found}; add one with {INSTALL}")


def _version(module: Any, distribution: str) -> str:
    try:
        return str(getattr(module, "__version__", None) or version(distribution))
    except PackageNotFoundError:
        return "unknown"


def build_engine(
    library: Library,
    path: Path,
    spec: GraphSpec,
    profile: Profile,
    *,
    progress: Progress | None = None,
    timings: Path | None = None,
) -> bytes:
    """The serialised engine of the graph in `path`. ModelError with TensorRT's own words when it cannot be built.
    `timings`: a file that keeps what TensorRT has measured of its kernels for the next build."""
    trt = library.module
    log = Log(trt)
    builder = trt.Builder(log.logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(_static(path, profile), str(path)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ModelError(f"{path}: {library.name} does not take this graph: {errors}")
    _allow_decomposition(trt, network)
    config = make_config(trt, builder)
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    for rows in profile.row_counts():
        shapes = builder.create_optimization_profile()
        for tensor in spec.inputs:
            shapes.set_shape(tensor.name, *_bounds(tensor, profile.sizes(rows)))
        config.add_optimization_profile(shapes)
    cache = None if timings is None else _timing_cache(config, timings)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelError(f"{path}: {library.name} built no engine: {log.last or 'no reason given'}")
    if timings is not None and cache is not None:
        from bltcli.atomic import write_atomically

        write_atomically(timings, bytes(cache.serialize()))
        timings.chmod(0o600)
    return bytes(engine)


def make_config(trt: Any, builder: Any) -> Any:
    """How engines are built: `SETTINGS`. TensorRT's own default multiplies float32 with ten bits of mantissa."""
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    return config


def _timing_cache(config: Any, file: Path) -> Any:
    """What was measured before, if TensorRT takes it: another GPU's or version's it does not."""
    for known in (file.read_bytes() if file.is_file() else b"", b""):
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _static(path: Path, profile: Profile) -> bytes:
    """The ONNX file with its cache axes made static, as TensorRT wants them; its weights, which may be more than a
    message can hold, stay where they are."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    fixed = profile.fixed
    for value in [*model.graph.input, *model.graph.output]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in fixed:
                axis.dim_value = fixed[axis.dim_param]
    serialised: bytes = model.SerializeToString()
    return serialised


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Attention need not be one kernel: without this, float32 and single rows do not build."""
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _bounds(tensor: TensorSpec, sizes: Mapping[str, tuple[int, int, int]]) -> list[tuple[int, ...]]:
    """Least, likeliest and largest shape of an input."""
    return [tuple(axis if isinstance(axis, int) else sizes[axis][i] for axis in tensor.shape) for i in range(3)]


class Log:
    """TensorRT's messages; the last error is kept."""

    def __init__(self, trt: Any) -> None:
        self.last = ""
        outer = self

        class Logger(trt.ILogger):  # type: ignore[misc]  # a class of the runtime's
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR:
                    outer.last = message

        self.logger = Logger()


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class of the runtime's
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.totals[name] = steps
            progress(name, 0, steps)

        def step_complete(self, name: str, step: int) -> bool:
            progress(name, step + 1, self.totals.get(name, 0))
            return True

        def phase_finish(self, name: str) -> None:
            progress(name, self.totals.pop(name, 0), 0)

    return Monitor()

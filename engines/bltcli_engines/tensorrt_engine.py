"""TensorRT engines over device memory of our own: caches in place, one context and one captured CUDA graph per set of
shapes. Knows no bundle and no store: it is given the bytes of engines that may be trusted.

Tested with a stand-in for TensorRT's contexts over host memory; no engine has run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bltcli.errors import ModelError
from bltcli.graphs import GraphName, GraphSpec
from bltcli_engines.device import Device, DeviceBuffer, Places
from bltcli_engines.device_engine import DeviceEngine, Prepared
from bltcli_engines.protocol import Engine
from bltcli_engines.tensorrt_build import Library, Log, Profile

#: Which option of `bltcli build` makes an axis longer.
OPTIONS: Final = {"batch": "--max-batch", "slots": "--max-bytes", "patch_slots": "--max-bytes", "rows": "--draft-bytes"}


class TensorrtEngine(DeviceEngine):
    """One graph."""

    def __init__(
        self,
        library: Library,
        device: Device,
        spec: GraphSpec,
        engine: Any,
        profile: Profile,
        weight_bytes: int,
        rebuild: str,
    ) -> None:
        """`engine`: deserialised; `rebuild`: the command that builds another, for error messages."""
        super().__init__(device, spec, weight_bytes)
        self.engine, self.profile, self._rebuild = engine, profile, rebuild
        self._config = _context_config(library.module, engine)

    def prepare(self, inputs: Places, results: Places) -> Prepared:
        shapes = {name: place.shape for name, place in inputs.items()}
        addresses = {name: place.address for name, place in (*inputs.items(), *results.items())}
        for name, buffer in self.buffers.items():
            shapes[name], addresses[name] = buffer.shape, buffer.address
            if name in self.spec.state:
                addresses[self.spec.state[name]] = buffer.address  # past and present are one
        number = self._profile_number(shapes)
        context, stream = self._context(), self.device.stream
        done = context.set_optimization_profile_async(number, stream)
        done = done and all(context.set_input_shape(name, shape) for name, shape in shapes.items())
        done = done and all(context.set_tensor_address(name, address) for name, address in addresses.items())
        if not done:
            raise ModelError(
                f"the TensorRT engine of {self.spec.name} does not take {shapes}; run {self._rebuild} --fresh"
            )
        capturable = getattr(context, "is_stream_capturable", lambda _: True)(stream)
        name = self.spec.name

        def enqueue() -> None:
            if not context.execute_async_v3(stream):
                raise ModelError(f"TensorRT failed to run {name}; see bltcli doctor")

        return Prepared(enqueue, capturable)

    def _context(self) -> Any:
        """A context that takes memory for its own profile only."""
        context = self.engine.create_execution_context(self._config)
        if context is None:
            raise ModelError(f"TensorRT made no context for {self.spec.name}; out of memory on the GPU?")
        return context

    def _profile_number(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The profile with the fewest rows that takes these shapes; ModelError with what is too large if none does."""
        sizes: dict[int | str, int] = {}
        for tensor in self.spec.inputs:
            sizes.update(zip(tensor.shape, shapes[tensor.name], strict=True))
        too_large: list[str] = []
        for number, rows in enumerate(self.profile.row_counts()):
            limits = self.profile.sizes(rows)
            too_large = [
                f"{axis} is {size}, its TensorRT engine takes {limits[axis][2]} ({OPTIONS.get(axis, 'no option')})"
                for axis, size in sizes.items()
                if isinstance(axis, str) and size > limits[axis][2]
            ]
            if not too_large:
                return number
        raise ModelError(
            f"{self.spec.name}: {'; '.join(too_large)}; run {self._rebuild} with more, or another --engine"
        )


def _context_config(trt: Any, engine: Any) -> Any:
    """How contexts of an engine are made. TensorRT-RTX compiles kernels for a context's shapes before it runs, not
    behind its back: results must not change under way. What is compiled serves all contexts of the engine."""
    strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    specialise = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if specialise is None:
        return strategy
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.dynamic_shapes_kernel_specialization_strategy = specialise.EAGER
    config.set_runtime_cache(config.create_runtime_cache())
    return config


class TensorrtRuntime:
    """TensorRT, or TensorRT-RTX. Plain decoding and verification are padded to one number of rows, and so run the same
    kernels. That a row's value then depends on nothing else in the call is not known: differences are classified."""

    name = "tensorrt"
    promised = False
    pairs_texts = False
    slot_step = 128

    def __init__(self, device: Device, library: Library, profile: Profile, rebuild: str) -> None:
        self.device, self.library, self.profile, self._rebuild = device, library, profile, rebuild
        self.row_multiple = profile.draft_rows

    def slots(self, axis: str) -> int:
        return self.profile.fixed[axis]

    def buffer(self, shape: tuple[int, int, int, int], dtype: str) -> DeviceBuffer:
        return DeviceBuffer(
            self.device, shape, dtype, fixed=f"run {self._rebuild} with a larger --max-bytes, or use another --engine"
        )

    def require_rows(self, rows: int) -> None:
        """ModelError where the engines take fewer texts at a time."""
        if rows > self.profile.max_batch:
            raise ModelError(
                f"{rows} texts at a time are more than the {self.profile.max_batch} that the TensorRT engines take; "
                f"run {self._rebuild} --max-batch {rows}"
            )


def open_tensorrt(
    library: Library,
    device: Device,
    engines: Mapping[GraphName, bytes],
    specs: Mapping[GraphName, GraphSpec],
    weight_bytes: Mapping[GraphName, int],
    profile: Profile,
    *,
    rebuild: str,
) -> tuple[TensorrtRuntime, dict[GraphName, Engine]]:
    """All graphs in TensorRT. `engines` are executable code: they must come from the user's own store. ModelError for
    an engine that does not run on this GPU."""
    log = Log(library.module)
    runtime = library.module.Runtime(log.logger)
    opened: dict[GraphName, Engine] = {}
    for name, spec in specs.items():
        if reason := why_invalid(library, runtime, engines[name]):
            raise ModelError(
                f"the TensorRT engine of {name} does not run on this GPU ({reason}); run {rebuild} --fresh"
            )
        engine = runtime.deserialize_cuda_engine(engines[name])
        if engine is None:
            raise ModelError(
                f"the TensorRT engine of {name} cannot be loaded: {log.last or 'no reason given'}; "
                f"run {rebuild} --fresh"
            )
        opened[name] = TensorrtEngine(library, device, spec, engine, profile, weight_bytes[name], rebuild)
    return TensorrtRuntime(device, library, profile, rebuild), opened


def why_invalid(library: Library, runtime: Any, engine: bytes) -> str:
    """Why TensorRT-RTX would not run an engine on this GPU, in its own words; empty if it would, or for TensorRT, which
    says so only when it loads one."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    trt = library.module
    validity, diagnostics = runtime.get_engine_validity(engine)
    if validity != trt.EngineValidity.INVALID:
        return ""
    known = trt.EngineInvalidityDiagnostics.__members__.items()
    return ", ".join(name for name, flag in known if int(diagnostics) & int(flag)) or f"code {diagnostics}"

"""A device whose memory is the host's and whose queue is run only when somebody waits for it; and a TensorRT whose
contexts run their ONNX graph in ONNX Runtime on that memory. Both refuse what CUDA would not survive."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bltcli.graphs import GraphName, GraphSpec
from bltcli_engines.device import Places
from bltcli_engines.device_engine import Prepared
from bltcli_engines.onnxruntime_cuda import OrtDeviceEngine, _element_type
from bltcli_engines.onnxruntime_engine import open_session
from bltcli_engines.tensorrt_build import Library, Profile, find_library

Op = Callable[[], None]


class HostDevice:
    """Host memory behind the interface of a device. Nothing queued happens before `synchronise`."""

    stream = 7

    def __init__(self) -> None:
        self.synchronised = self.captures = self.launches = 0
        self.memory: dict[int, NDArray[np.uint8]] = {}  # device
        self.host: dict[int, NDArray[np.uint8]] = {}
        self.alive: set[int] = set()  # captured graphs
        self._queued: list[Op] = []
        self._recorded: list[Op] | None = None

    def allocate(self, nbytes: int) -> int:
        return self._new(self.memory, nbytes).ctypes.data

    def allocate_host(self, nbytes: int) -> NDArray[np.uint8]:
        return self._new(self.host, nbytes)

    def _new(self, kept: dict[int, NDArray[np.uint8]], nbytes: int) -> NDArray[np.uint8]:
        assert self._recorded is None, "memory allocated while capturing"
        array = np.zeros(nbytes, dtype=np.uint8)
        kept[array.ctypes.data] = array
        return array

    def free(self, address: int) -> None:
        assert not self._queued, "memory freed that queued work may use"
        self.memory.pop(address).fill(0xFF)

    def free_host(self, array: NDArray[np.uint8]) -> None:
        assert not self._queued, "memory freed that queued work may use"
        self.host.pop(array.ctypes.data).fill(0xFF)

    def queue(self, op: Op) -> None:
        (self._queued if self._recorded is None else self._recorded).append(op)

    def upload(self, address: int, array: NDArray[np.uint8]) -> None:
        self.queue(lambda: self._move(self.memory, address, self.host, array.ctypes.data, array.nbytes))

    def download(self, array: NDArray[np.uint8], address: int) -> None:
        self.queue(lambda: self._move(self.host, array.ctypes.data, self.memory, address, array.nbytes))

    def copy(self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        assert width <= min(to_pitch, source_pitch)
        for i in range(height):
            a, b = to + i * to_pitch, source + i * source_pitch
            assert a + width <= b or b + width <= a, "pieces overlap"
            self.queue(lambda a=a, b=b: self._move(self.memory, a, self.memory, b, width))  # type: ignore[misc]  # bound

    def _move(self, kept: Any, to: int, others: Any, source: int, nbytes: int) -> None:
        self.require(kept, to, nbytes)
        self.require(others, source, nbytes)
        ctypes.memmove(to, source, nbytes)

    @staticmethod
    def require(kept: Mapping[int, NDArray[np.uint8]], address: int, nbytes: int) -> None:
        """Fail unless these bytes lie within one living allocation."""
        inside = any(start <= address and address + nbytes <= start + a.nbytes for start, a in kept.items())
        assert inside, "memory that is not, or no longer, there"

    def synchronise(self) -> None:
        assert self._recorded is None, "waited for while capturing"
        queued, self._queued = self._queued, []
        for op in queued:
            op()
        self.synchronised += 1

    def capture(self, work: Op) -> Any:
        self._recorded = []
        try:
            work()
        finally:
            recorded, self._recorded = self._recorded, None
        self.captures += 1
        self.alive.add(id(recorded))
        return recorded

    def launch(self, captured: Any) -> None:
        assert id(captured) in self.alive
        self.launches += 1
        for op in captured:
            self.queue(op)

    def discard(self, captured: Any) -> None:
        self.alive.remove(id(captured))


class QueuedOrtEngine(OrtDeviceEngine):
    """ONNX Runtime's CPU provider, bound as the CUDA provider is, in the device's queue."""

    capturable = False

    def prepare(self, inputs: Places, results: Places) -> Prepared:
        prepared, device = super().prepare(inputs, results), self.device
        assert isinstance(device, HostDevice)
        return Prepared(lambda: device.queue(prepared.enqueue), self.capturable)


class HostTensorrt:
    """What `open_tensorrt` needs of TensorRT. An "engine" is the path of its ONNX graph."""

    def __init__(self, device: HostDevice, specs: Mapping[GraphName, GraphSpec], profile: Profile, **more: Any) -> None:
        """`more`: names of the module to replace."""
        real = find_library().module
        self.contexts: list[HostContext] = []

        class Runtime:
            def __init__(self, logger: Any) -> None:
                pass

            def get_engine_validity(self, engine: bytes) -> tuple[Any, int]:
                return real.EngineValidity.VALID, 0

            def deserialize_cuda_engine(runtime, engine: bytes) -> Any:
                path = Path(engine.decode())
                spec = specs[cast(GraphName, path.name.partition(".")[0])]
                session = open_session(path, spec, ["CPUExecutionProvider"], threads=1)

                def context(config: Any) -> HostContext:
                    self.contexts.append(HostContext(device, spec, session, profile))
                    return self.contexts[-1]

                config = SimpleNamespace(
                    set_execution_context_allocation_strategy=lambda _: None,
                    create_runtime_cache=lambda: None,
                    set_runtime_cache=lambda _: None,
                )
                return SimpleNamespace(create_runtime_config=lambda: config, create_execution_context=context)

        names = {name: getattr(real, name) for name in dir(real) if not name.startswith("__")}
        self.library = Library(SimpleNamespace(**{**names, "Runtime": Runtime, **more}), "tensorrt_rtx", "0")


class HostContext:
    """One execution context: refuses shapes outside its profile and tensors that nobody bound."""

    def __init__(self, device: HostDevice, spec: GraphSpec, session: Any, profile: Profile) -> None:
        self.device, self.spec, self.session, self.profile = device, spec, session, profile
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.sizes = self.profile.sizes(self.profile.row_counts()[number])
        return stream == self.device.stream

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        axes = next(s.shape for s in self.spec.inputs if s.name == name)
        return all(
            size == axis if isinstance(axis, int) else self.sizes[axis][0] <= size <= self.sizes[axis][2]
            for size, axis in zip(shape, axes, strict=True)
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 16 == 0

    def execute_async_v3(self, stream: int) -> bool:
        self.device.queue(self._run)
        return stream == self.device.stream

    def _run(self) -> None:
        binding = self.session.io_binding()
        sizes: dict[Any, int] = {}
        for tensor in self.spec.inputs:
            shape, address = self.shapes[tensor.name], self.addresses[tensor.name]
            sizes.update(zip(tensor.shape, shape, strict=True))
            kind = _element_type(tensor.dtype)
            self.device.require(self.device.memory, address, int(np.prod(shape)) * np.dtype(kind).itemsize)
            binding.bind_input(tensor.name, "cpu", 0, kind, shape, address)
        for tensor in self.spec.outputs:
            shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
            address = self.addresses[tensor.name]
            binding.bind_output(tensor.name, "cpu", 0, _element_type(tensor.dtype), shape, address)
        self.session.run_with_iobinding(binding, ort.RunOptions())

"""ONNX Runtime's CUDA provider over device memory of our own: bound once per shape, state updated in place, one stream.

Its binding is tested over the CPU provider and host memory; the provider itself has not run yet.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from bltcli.errors import ModelError
from bltcli.graphs import GraphName, GraphSpec
from bltcli_engines.device import NUMPY_DTYPES, Device, DeviceBuffer, Places
from bltcli_engines.device_engine import DeviceEngine, Prepared
from bltcli_engines.gpu import missing_library, require_driver
from bltcli_engines.onnxruntime_engine import open_session
from bltcli_engines.protocol import Engine

PROVIDER: Final = "CUDAExecutionProvider"
INSTALL: Final = "pip uninstall -y onnxruntime && pip install 'bltcli[gpu]'"
BFLOAT16: Final = 16  # onnx.TensorProto.BFLOAT16: no NumPy type that ONNX Runtime knows
#: Byte rows that calls are padded to: verification of short drafts and plain decoding then run the same kernels.
CALL_ROWS: Final = 16

_capture_ids = itertools.count(1)


class OrtDeviceEngine(DeviceEngine):
    """One graph in a session whose inputs and outputs all lie in device memory."""

    def __init__(
        self, device: Device, spec: GraphSpec, session: Any, weight_bytes: int, *, place: str, captures: bool = False
    ) -> None:
        """`place`: ONNX Runtime's name of the device. `captures`: the session captures CUDA graphs itself."""
        super().__init__(device, spec, weight_bytes)
        self.session, self._place, self._captures = session, place, captures

    def prepare(self, inputs: Places, results: Places) -> Prepared:
        import onnxruntime as ort

        binding, session = self.session.io_binding(), self.session
        state = self.spec.state
        for tensor in self.spec.inputs:
            buffer = self.buffers.get(tensor.name)
            shape, address = inputs[tensor.name] if buffer is None else (buffer.shape, buffer.address)
            where = (self._place, 0, _element_type(tensor.dtype), shape, address)
            binding.bind_input(tensor.name, *where)
            if tensor.name in state:
                binding.bind_output(state[tensor.name], *where)
        for tensor in self.spec.outputs:
            if tensor.name in results:
                binding.bind_output(tensor.name, self._place, 0, _element_type(tensor.dtype), *results[tensor.name])
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the engine waits, if need be
        if self._captures:
            options.add_run_config_entry("gpu_graph_id", str(next(_capture_ids)))
        return Prepared(lambda: session.run_with_iobinding(binding, options), capturable=False)


def _element_type(dtype: str) -> Any:
    return BFLOAT16 if dtype == "bfloat16" else np.dtype(NUMPY_DTYPES[dtype]).type


class OrtCudaRuntime:
    """ONNX Runtime on a GPU. Calls of equal numbers of rows run the same kernels; that a row's value then depends on
    nothing else in the call is not known, so differences are classified."""

    name = "ort-cuda"
    row_multiple = CALL_ROWS
    pairs_texts = False
    promised = False
    slot_step = 128

    def __init__(self, device: Device) -> None:
        self.device = device

    def slots(self, axis: str) -> int:
        return 0

    def buffer(self, shape: tuple[int, int, int, int], dtype: str) -> DeviceBuffer:
        return DeviceBuffer(self.device, shape, dtype)


def require_cuda_provider() -> None:
    """ModelError, naming what is missing, unless this machine can load ONNX Runtime's CUDA provider."""
    ort = importlib.import_module("onnxruntime")
    found = ort.get_available_providers()
    if PROVIDER not in found:
        offered = ", ".join(name.removesuffix("ExecutionProvider") for name in found)
        raise ModelError(f"onnxruntime {ort.__version__} has no CUDA provider (it offers {offered}); {INSTALL}")
    require_driver()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()
    folder = Path(str(ort.__file__)).parent / "capi"
    libraries = [str(folder / f"libonnxruntime_providers_{part}.so") for part in ("shared", "cuda")]
    if reason := missing_library(libraries):
        raise ModelError(
            f"ONNX Runtime's CUDA provider does not load: {reason}; pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )


def open_onnxruntime_cuda(
    specs: Mapping[GraphName, GraphSpec], paths: Mapping[GraphName, Path], weight_bytes: Mapping[GraphName, int]
) -> tuple[OrtCudaRuntime, dict[GraphName, Engine]]:
    """All graphs in ONNX Runtime's CUDA provider. ModelError where it cannot be loaded or does not take a graph; it
    never falls back to the CPU."""
    require_cuda_provider()
    from bltcli_engines.cuda_device import cuda_device

    device = cuda_device()
    engines: dict[GraphName, Engine] = {}
    for name, spec in specs.items():
        session, captures = _open(paths[name], spec, device.stream)
        engines[name] = OrtDeviceEngine(device, spec, session, weight_bytes[name], place="cuda", captures=captures)
    return OrtCudaRuntime(device), engines


def _open(path: Path, spec: GraphSpec, stream: int) -> tuple[Any, bool]:
    """A session on our stream, and whether it captures CUDA graphs: it refuses to where a node runs elsewhere."""
    common = {"device_id": "0", "user_compute_stream": str(stream), "use_tf32": "0"}
    try:
        session, captures = open_session(path, spec, [(PROVIDER, {**common, "enable_cuda_graph": "1"})]), True
    except ModelError:
        session, captures = open_session(path, spec, [(PROVIDER, common)]), False
    if PROVIDER not in session.get_providers():
        raise ModelError(f"{path}: ONNX Runtime fell back to {', '.join(session.get_providers())}; see bltcli doctor")
    return session, captures

"""CUDA itself: calls that NVIDIA's bindings accept, with a GPU or without one; and, with one, what they do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bltcli.batch.predictor import out_of_memory
from bltcli.errors import ModelError
from bltcli.verify import self_test
from bltcli_engines import gpu
from bltcli_engines.cuda_device import CudaDevice
from bltcli_engines.device import DeviceBuffer, Staging


def test_every_call_is_one_that_the_bindings_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nothing, on no stream: done with a GPU, refused in CUDA's words without one, and never a wrong argument."""
    from cuda.bindings import runtime

    monkeypatch.setattr(gpu, "DRIVER", "libc.so.6")
    device = CudaDevice.__new__(CudaDevice)
    device._cuda, device._stream, device.stream, device.synchronised = runtime, runtime.cudaStream_t(0), 0, 0
    nothing = np.zeros(0, dtype=np.uint8)
    calls: dict[str, Callable[[], object]] = {
        "open": CudaDevice,
        "describe": gpu.describe_gpu,
        "allocate": lambda: device.free(device.allocate(1)),
        "free": lambda: device.free(0),
        "allocate_host": lambda: device.free_host(device.allocate_host(1)),
        "upload": lambda: device.upload(0, nothing),
        "download": lambda: device.download(nothing, 0),
        "copy": lambda: device.copy(0, 1, 0, 1, 0, 0),
        "synchronise": device.synchronise,
        "capture": lambda: device.discard(device.capture(lambda: None)),
        "launch": lambda: device.launch(runtime.cudaGraphExec_t()),
        "discard": lambda: device.discard(runtime.cudaGraphExec_t()),
        "instantiate": lambda: gpu.checked(runtime.cudaGraphInstantiate(runtime.cudaGraph_t(), 0)),
        "destroy": lambda: gpu.checked(runtime.cudaGraphDestroy(runtime.cudaGraph_t())),
        "free_host": lambda: gpu.checked(runtime.cudaFreeHost(0)),
        "memset": lambda: gpu.checked(runtime.cudaMemsetAsync(0, 0, 0, device._stream)),
        "end": lambda: gpu.checked(runtime.cudaStreamEndCapture(device._stream)),
    }
    refused = {}
    for name, call in calls.items():
        try:
            call()
        except ModelError as error:
            refused[name] = str(error)
    assert all(reason.startswith("the GPU cannot be used: cudaError") for reason in refused.values()), refused


def test_a_lack_of_memory_is_one_that_a_batch_outlives_by_halving() -> None:
    from cuda.bindings.runtime import cudaError_t

    with pytest.raises(ModelError, match="out of memory on the GPU; use fewer texts") as error:
        gpu.checked((cudaError_t.cudaErrorMemoryAllocation, None))
    assert out_of_memory(error.value)
    with pytest.raises(ModelError, match="cudaErrorNoDevice") as error:
        gpu.checked((cudaError_t.cudaErrorNoDevice,))
    assert not out_of_memory(error.value)
    assert gpu.checked((cudaError_t.cudaSuccess, 1, 2)) == (1, 2)


@pytest.mark.gpu
def test_state_on_a_gpu_is_what_it_is_in_host_memory() -> None:
    device = CudaDevice()
    staging = Staging(device, {"x": ((2, 3, 8, 4), "float32")})
    staging.host["x"][:] = np.random.default_rng(0).standard_normal((2, 3, 8, 4))
    staging.upload()
    buffer = DeviceBuffer(device, (2, 3, 8, 4), "float32")
    device.copy(buffer.address, buffer.nbytes, staging.addresses["x"], buffer.nbytes, buffer.nbytes, 1)
    expected = staging.host["x"].copy()
    assert np.array_equal(buffer.numpy(), expected)
    buffer.shift(1, 3)
    buffer.resize(16)
    assert np.array_equal(buffer.numpy()[1, :, :5], expected[1, :, 3:])
    captured = device.capture(staging.download)
    staging.host["x"][:] = 0
    device.launch(captured)
    device.synchronise()
    assert np.array_equal(staging.host["x"], expected)
    device.discard(captured)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["ort-cuda", "tensorrt"])
def test_an_engine_on_a_gpu_knows_the_known_answers(engine: str) -> None:
    """After `bltcli build`."""
    failed = [check for check in self_test(engine) if not check.ok]
    assert not failed

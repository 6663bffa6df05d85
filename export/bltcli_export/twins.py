"""Engines that run a graph and the torch model on the same inputs and state, and note how far apart they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from numpy.typing import NDArray

from bltcli.graphs import GraphSpec
from bltcli.nn import Blt
from bltcli.quantised import Quantised, rounded
from bltcli_engines.onnxruntime_engine import OrtBuffer
from bltcli_engines.protocol import Arrays, Buffer, Engine
from bltcli_engines.torch_engine import DTYPES, TorchBuffer, TorchEngine


class Comparison(Protocol):
    calls: int

    def compare(self, what: str, found: NDArray[Any], expected: NDArray[Any]) -> None: ...


class TwinBuffer:
    """The same state twice; torch's is the truth."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: str) -> None:
        self.ort, self.torch = OrtBuffer(shape, dtype), TorchBuffer(shape, "float32")

    @property
    def capacity(self) -> int:
        return self.torch.capacity

    @property
    def nbytes(self) -> int:
        return self.ort.nbytes

    def resize(self, capacity: int) -> None:
        self.ort.resize(capacity)
        self.torch.resize(capacity)

    def shift(self, row: int, slots: int) -> None:
        self.ort.shift(row, slots)
        self.torch.shift(row, slots)

    def adopt(self, row: int, source: Buffer, source_row: int, slots: int) -> None:
        assert isinstance(source, TwinBuffer)
        self.ort.adopt(row, source.ort, source_row, slots)
        self.torch.adopt(row, source.torch, source_row, slots)

    def numpy(self) -> NDArray[Any]:
        return self.torch.numpy()


class TwinRuntime:
    name = "twin"
    row_multiple = 2
    promised = True
    slot_step = 128

    def __init__(self, *, batched: bool) -> None:
        self.pairs_texts = batched

    def slots(self, axis: str) -> int:
        return 0

    def buffer(self, shape: tuple[int, int, int, int], dtype: str) -> TwinBuffer:
        return TwinBuffer(shape, dtype)


class TwinEngine:
    """Runs both, compares outputs and state, hands out torch's."""

    def __init__(self, graph: Engine, model: Blt, parity: Comparison) -> None:
        self.graph, self.model, self.parity = graph, model, parity
        self.reference = TorchEngine(graph.spec, model)
        self._buffers: dict[str, TwinBuffer] = {}

    @property
    def spec(self) -> GraphSpec:
        return self.graph.spec

    @property
    def weight_bytes(self) -> int:
        return self.graph.weight_bytes

    @property
    def kv_bytes(self) -> int:
        return self.graph.kv_bytes

    def bind(self, buffers: Mapping[str, Buffer]) -> None:
        for name, buffer in buffers.items():
            assert isinstance(buffer, TwinBuffer)
            self._buffers[name] = buffer
        self.graph.bind({name: buffer.ort for name, buffer in self._buffers.items()})
        self.reference.bind({name: buffer.torch for name, buffer in self._buffers.items()})

    def fork(self) -> TwinEngine:
        return TwinEngine(self.graph.fork(), self.model, self.parity)

    def run(self, feeds: Arrays) -> Arrays:
        for buffer in self._buffers.values():
            buffer.ort.array[...] = buffer.torch.numpy()
        found, expected = self.graph.run(feeds), self.reference.run(feeds)
        for name, value in expected.items():
            self.parity.compare(f"{self.spec.name} {name}", found[name], value)
        for past, present in self.spec.state.items():
            buffer = self._buffers[past]
            what = "cache" if past.startswith("past_key_values") else present
            self.parity.compare(f"{self.spec.name} {what}", buffer.ort.numpy(), buffer.torch.numpy())
        self.parity.calls += 1
        return expected


@torch.no_grad()
def round_weights(model: Blt, kind: str) -> None:
    """Give the model the weights that a bundle computes with, in place: all but the patcher's rounded through a dtype,
    or those that "int8" and "int4" bundles quantise, quantised and back."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:  # a table that the host gathers
            continue
        if kind in ("int8", "int4"):
            parameter.copy_(torch.from_numpy(rounded(name, parameter.numpy(), cast(Quantised, kind))))
        elif not name.startswith("patcher."):
            parameter.copy_(parameter.to(DTYPES[kind]).to(parameter.dtype))

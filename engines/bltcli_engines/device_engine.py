"""A graph over a device: inputs go there in one copy, state stays there, results come back in one copy; each set of
shapes has memory of its own and, where the runtime allows it, one captured CUDA graph. Knows no runtime."""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from bltcli.graphs import GraphSpec
from bltcli_engines.device import Device, DeviceBuffer, Layout, Staging
from bltcli_engines.protocol import Arrays, Buffer

MAX_CALLS = 32  # sets of shapes kept per graph


class Prepared(NamedTuple):
    """What runs a graph on memory that is bound already."""

    enqueue: Callable[[], None]  # queues the work on the device
    capturable: bool  # whether it may be captured, once it has run


class Call:
    """One set of shapes: the memory of its inputs and results, and how it is run."""

    def __init__(self, device: Device, inputs: Layout, results: Layout) -> None:
        self.device, self.inputs, self.results = device, Staging(device, inputs), Staging(device, results)
        self.prepared: Prepared | None = None
        self._captured: Any = None
        self._runs, self._queued_at = 0, -1

    def write(self, feeds: Arrays) -> None:
        """Take the inputs of the next run; what the device may still read is waited for."""
        if self._queued_at == self.device.synchronised:
            self.device.synchronise()
        for name, array in self.inputs.host.items():
            np.copyto(array, feeds[name], casting="same_kind")

    def submit(self) -> None:
        """Queue one run: eagerly at first, which lets the runtime settle, then as one captured graph."""
        assert self.prepared is not None
        if self._captured is None and self._runs and self.prepared.capturable:
            self._captured = self.device.capture(self._queue)
        if self._captured is None:
            self._queue()
        else:
            self.device.launch(self._captured)
        self._runs += 1
        self._queued_at = self.device.synchronised

    def _queue(self) -> None:
        assert self.prepared is not None
        self.inputs.upload()
        self.prepared.enqueue()
        self.results.download()

    def free(self) -> None:
        """Give everything back; waits for what is queued."""
        self.device.synchronise()
        if self._captured is not None:
            self.device.discard(self._captured)
        self.prepared = self._captured = None
        self.inputs.free()
        self.results.free()


class DeviceEngine(ABC):
    """One graph. `run` queues a copy in, the graph and a copy out, and waits only if there is a result to hand over."""

    def __init__(self, device: Device, spec: GraphSpec, weight_bytes: int) -> None:
        self.device, self.spec, self.weight_bytes = device, spec, weight_bytes
        self._unbind()

    @abstractmethod
    def prepare(self, call: Call) -> Prepared:
        """Bind the memory of `call` and of the state buffers to one run of the graph. ModelError when it does not
        take these shapes."""

    def _unbind(self) -> None:
        self.buffers: dict[str, DeviceBuffer] = {}
        self._calls: OrderedDict[tuple[tuple[int, ...], ...], Call] = OrderedDict()
        weakref.finalize(self, _free_all, self._calls).atexit = False
        self._generation = 0

    def fork(self) -> Self:
        twin = copy.copy(self)
        twin._unbind()
        return twin

    def bind(self, buffers: Mapping[str, Buffer]) -> None:
        for name, buffer in buffers.items():
            assert isinstance(buffer, DeviceBuffer)
            self.buffers[name] = buffer
        self._generation = 0

    @property
    def kv_bytes(self) -> int:
        return sum(b.nbytes for name, b in self.buffers.items() if name.startswith("past_key_values"))

    def run(self, feeds: Arrays) -> Arrays:
        call = self._call(feeds)
        call.write(feeds)
        call.submit()
        if call.results.host:
            self.device.synchronise()
        return call.results.host

    def _call(self, feeds: Arrays) -> Call:
        generation = sum(buffer.generation for buffer in self.buffers.values())
        if generation != self._generation:  # a buffer grew: calls point at the memory it had before
            _free_all(self._calls)
            self._generation = generation
        own = [s for s in self.spec.inputs if s.name not in self.buffers]
        key = tuple(feeds[s.name].shape for s in own)
        if key in self._calls:
            self._calls.move_to_end(key)
            return self._calls[key]
        sizes: dict[int | str, int] = {}
        for tensor, shape in zip(own, key, strict=True):
            sizes.update(zip(tensor.shape, shape, strict=True))
        results = {
            s.name: (tuple(sizes[axis] if isinstance(axis, str) else axis for axis in s.shape), s.dtype)
            for s in self.spec.outputs
            if s.name not in self.spec.state.values()
        }
        call = Call(self.device, {s.name: (shape, s.dtype) for s, shape in zip(own, key, strict=True)}, results)
        try:
            call.prepared = self.prepare(call)
        except BaseException:
            call.free()
            raise
        self._calls[key] = call
        while len(self._calls) > MAX_CALLS:
            self._calls.popitem(last=False)[1].free()
        return call


def _free_all(calls: OrderedDict[tuple[tuple[int, ...], ...], Call]) -> None:
    while calls:
        calls.popitem()[1].free()

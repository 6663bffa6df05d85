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
from bltcli.vocab import IdArray
from bltcli_engines.device import Device, DeviceBuffer, Layout, Places, Staging
from bltcli_engines.protocol import Arrays, Buffer

MAX_CALLS = 32  # sets of shapes kept per graph


class Prepared(NamedTuple):
    """What runs a graph on memory that is bound already."""

    enqueue: Callable[[], None]  # queues the work on the device
    capturable: bool  # whether it may be captured, once it has run


class Call:
    """One submission for one set of shapes: the memory of what it takes and gives, and how it is run. `kept` is
    what it works with in between, which the host never sees."""

    def __init__(self, device: Device, inputs: Layout, results: Layout, kept: Layout | None = None) -> None:
        self.device, self.inputs, self.results = device, Staging(device, inputs), Staging(device, results)
        self.kept = Staging(device, kept or {})
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
        for memory in (self.inputs, self.results, self.kept):
            memory.free()


class DeviceEngine(ABC):
    """One graph. `run` queues a copy in, the graph and a copy out, and waits only if there is a result to hand over."""

    def __init__(self, device: Device, spec: GraphSpec, weight_bytes: int) -> None:
        self.device, self.spec, self.weight_bytes = device, spec, weight_bytes
        self._unbind()

    @abstractmethod
    def prepare(self, inputs: Places, results: Places) -> Prepared:
        """Bind this memory and that of the state buffers to one run of the graph. ModelError when it does not take
        these shapes."""

    def _unbind(self) -> None:
        self.buffers: dict[str, DeviceBuffer] = {}
        self._calls: OrderedDict[Any, Call] = OrderedDict()
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
        own = {s.name: feeds[s.name] for s in self.spec.inputs if s.name not in self.buffers}
        return self._submit(own, 0)

    def draft(self, feeds: Arrays, steps: int) -> IdArray:
        drafts = self._submit(_by_step(feeds, steps), steps)
        return np.concatenate([drafts[at_step("best", step)] for step in range(steps)], axis=1)

    def _submit(self, feeds: Arrays, drafted: int) -> Arrays:
        call = self._call(feeds, drafted)
        call.write(feeds)
        call.submit()
        if call.results.host:
            self.device.synchronise()
        return call.results.host

    def _call(self, feeds: Arrays, drafted: int) -> Call:
        """The call for inputs of these names and shapes: one run, or one for each byte that is drafted."""
        generation = sum(buffer.generation for buffer in self.buffers.values())
        if generation != self._generation:  # a buffer grew: calls point at the memory it had before
            _free_all(self._calls)
            self._generation = generation
        key = tuple((name, array.shape) for name, array in feeds.items())
        if key in self._calls:
            self._calls.move_to_end(key)
            return self._calls[key]
        call = self._make_call(feeds, drafted)
        try:
            call.prepared = self._prepare_all(call, drafted)
        except BaseException:
            call.free()
            raise
        self._calls[key] = call
        while len(self._calls) > MAX_CALLS:
            self._calls.popitem(last=False)[1].free()
        return call

    def _make_call(self, feeds: Arrays, drafted: int) -> Call:
        """Memory for inputs and results; of a draft, the ids alone are handed over."""
        tensors, sizes = {s.name: s for s in self.spec.inputs}, dict[int | str, int]()
        inputs: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, array in feeds.items():
            tensor = tensors[name.partition(STEP)[0]]
            inputs[name] = (array.shape, tensor.dtype)
            sizes.update(zip(tensor.shape, array.shape, strict=True))
        results = {
            s.name: (tuple(sizes[axis] if isinstance(axis, str) else axis for axis in s.shape), s.dtype)
            for s in self.spec.outputs
            if s.name not in self.spec.state.values()
        }
        if not drafted:
            return Call(self.device, inputs, results)
        best = results.pop("best")
        return Call(self.device, inputs, {at_step("best", step): best for step in range(drafted)}, results)

    def _prepare_all(self, call: Call, drafted: int) -> Prepared:
        """The runs of a call; those of a draft each on the ids that the one before chose."""
        inputs, results = call.inputs.places, call.results.places
        if not drafted:
            return self.prepare(inputs, results)
        prepared = []
        for step in range(drafted):
            own = {name.partition(STEP)[0]: place for name, place in inputs.items() if is_for(name, step)}
            if step:
                own["ids"] = results[at_step("best", step - 1)]
            given = {**call.kept.places, "best": results[at_step("best", step)]}
            prepared.append(self.prepare(own, given))

        def enqueue() -> None:
            for run in prepared:
                run.enqueue()

        return Prepared(enqueue, all(run.capturable for run in prepared))


STEP = "/"  # between a tensor's name and the number of the run that it belongs to, where there are several


def at_step(name: str, step: int) -> str:
    return f"{name}{STEP}{step}"


def is_for(name: str, step: int) -> bool:
    """Whether a tensor is one of run `step`; those without a number are of all runs."""
    _, numbered, number = name.partition(STEP)
    return not numbered or int(number) == step


def _by_step(feeds: Arrays, steps: int) -> Arrays:
    """The inputs of each run of a draft: a row each of what has one per run, and slots one after the other. Ids are
    those of the first run; all read the same latent."""
    found = {"ids": feeds["ids"], "latent_index": feeds["latent_index"]}
    for step in range(steps):
        found[at_step("write_indices", step)] = feeds["write_indices"] + step
        found[at_step("position_ids", step)] = feeds["position_ids"][:, step : step + 1]
        found[at_step("attn_bias", step)] = feeds["attn_bias"][:, :, step : step + 1]
        found[at_step("addend", step)] = feeds["addend"][:, step : step + 1]
    return found


def _free_all(calls: OrderedDict[Any, Call]) -> None:
    while calls:
        calls.popitem()[1].free()

"""Makes the state buffers of a set of engines and hands them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from bltcli.graphs import GraphName, GraphSpec
from bltcli_engines.protocol import Buffer, Runtime


class HasState(Protocol):
    """An engine, or what stands for one."""

    @property
    def spec(self) -> GraphSpec: ...

    def bind(self, buffers: Mapping[str, Buffer]) -> None: ...


def bind_state(engines: Mapping[GraphName, HasState], runtime: Runtime, rows: int) -> list[list[Buffer]]:
    """Bind every state input of `engines` to a new buffer for `rows` texts, with no slots yet where they grow.

    `present_X` of one graph and the input `X` of another are one buffer. Returns the buffers along the byte axis, those
    along the patch axis, and those along the axis of latents.
    """
    by_axis: dict[str, list[Buffer]] = {"slots": [], "patch_slots": [], "latent_slots": []}
    shared: dict[str, Buffer] = {}
    bound: dict[GraphName, dict[str, Buffer]] = {}
    for name, engine in engines.items():
        bound[name] = {}
        for past, present in engine.spec.state.items():
            buffer, axis = _make(engine.spec, past, runtime, rows)
            bound[name][past] = shared[present.removeprefix("present_")] = buffer
            by_axis[axis].append(buffer)
    for name, engine in engines.items():
        engine.bind(
            bound[name] | {s.name: shared[s.name] for s in engine.spec.inputs if s.name in ("states", "cross_kv")}
        )
    return list(by_axis.values())


def _make(spec: GraphSpec, name: str, runtime: Runtime, rows: int) -> tuple[Buffer, str]:
    tensor = next(s for s in spec.inputs if s.name == name)
    _, heads, axis, width = tensor.shape
    assert isinstance(heads, int)
    assert isinstance(width, int)
    assert isinstance(axis, str)
    return runtime.buffer((rows, heads, runtime.slots(axis), width), tensor.dtype), axis

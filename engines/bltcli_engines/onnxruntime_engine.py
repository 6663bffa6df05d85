"""ONNX Runtime on the CPU: bound inputs and outputs, state updated in place in NumPy memory."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bltcli.errors import ModelError
from bltcli.graphs import GraphName, GraphSpec
from bltcli_engines.allocator import freed_at_once
from bltcli_engines.protocol import Arrays, Buffer, Engine, Runs

NUMPY_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "int64": np.int64}
MAX_BINDINGS = 64  # shapes kept per graph
MAX_BINDING_BYTES = 8 * 2**20  # and what their arrays may take: masks of long prompts in large batches are megabytes
SMALL_GRAPH_BYTES = (
    12_000_000  # of weights times texts: below this, waking a second thread costs a decoding pass more than it saves
)


class OrtBuffer:
    """State in NumPy memory that ONNX Runtime reads and writes directly."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: str) -> None:
        self.generation = 0  # counts the arrays that stood behind this buffer
        self.dtype = dtype
        self._take(np.zeros(shape, dtype=NUMPY_DTYPES[dtype]))

    def _take(self, array: NDArray[Any]) -> None:
        self.array = array
        self.value = ort.OrtValue.ortvalue_from_numpy(array)  # aliases `array`
        self.generation += 1

    def first(self, rows: int) -> Any:
        """The first rows as an OrtValue, in their own memory."""
        return self.value if rows == len(self.array) else ort.OrtValue.ortvalue_from_numpy(self.array[:rows])

    @property
    def capacity(self) -> int:
        return int(self.array.shape[2])

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def resize(self, capacity: int) -> None:
        old, kept = self.array, min(capacity, self.capacity)
        new = np.zeros((*old.shape[:2], capacity, old.shape[3]), dtype=old.dtype)
        new[:, :, :kept] = old[:, :, :kept]
        self._take(new)

    def shift(self, row: int, slots: int) -> None:
        kept = self.capacity - slots
        self.array[row, :, :kept] = self.array[row, :, slots:].copy()

    def adopt(self, row: int, source: Buffer, source_row: int, slots: int) -> None:
        assert isinstance(source, OrtBuffer)
        self.array[row, :, :slots] = source.array[source_row, :, :slots]

    def numpy(self) -> NDArray[Any]:
        return self.array


class _Binding(NamedTuple):
    """One set of shapes: arrays to write feeds into, arrays that results appear in."""

    io: Any
    feeds: dict[str, NDArray[Any]]
    results: dict[str, NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (*self.feeds.values(), *self.results.values()))


class OrtEngine:
    """One graph in an ONNX Runtime session. Everything is bound once per shape; a run copies only the small inputs."""

    def __init__(
        self, spec: GraphSpec, path: Path, weight_bytes: int, threads: int = 0, *, float_activations: bool = False
    ) -> None:
        self.spec, self.weight_bytes = spec, weight_bytes
        providers = ["CPUExecutionProvider"]
        self.session = open_session(path, spec, providers, threads, float_activations=float_activations)
        self._unbind()

    def _unbind(self) -> None:
        self.buffers: dict[str, OrtBuffer] = {}
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], _Binding] = OrderedDict()
        self._own = [s.name for s in self.spec.inputs]
        self._generation = 0
        self.kv_bytes = 0  # of the last run

    def fork(self) -> OrtEngine:
        twin = copy.copy(self)
        twin._unbind()
        return twin

    def bind(self, buffers: Mapping[str, Buffer]) -> None:
        for name, buffer in buffers.items():
            assert isinstance(buffer, OrtBuffer)
            self.buffers[name] = buffer
        self._own = [s.name for s in self.spec.inputs if s.name not in self.buffers]
        self._generation = 0

    def run(self, feeds: Arrays) -> Arrays:
        generation = sum([buffer.generation for buffer in self.buffers.values()])
        if generation != self._generation:  # a buffer grew: bindings point at the memory it had before
            self._bindings.clear()
            self._generation = generation
            self.kv_bytes = sum(b.nbytes for name, b in self.buffers.items() if name.startswith("past_key_values"))
        key = tuple([feeds[name].shape for name in self._own])
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._bind_shapes(feeds)
            self._forget_bindings()
        else:
            self._bindings.move_to_end(key)
        for name, array in binding.feeds.items():
            array[...] = feeds[name]
        self.session.run_with_iobinding(binding.io)
        return binding.results

    def _forget_bindings(self) -> None:
        """Drop those that were not used for longest, but never the newest."""
        total = sum(binding.nbytes for binding in self._bindings.values())
        while len(self._bindings) > 1 and (len(self._bindings) > MAX_BINDINGS or total > MAX_BINDING_BYTES):
            total -= self._bindings.popitem(last=False)[1].nbytes

    def _bind_shapes(self, feeds: Arrays) -> _Binding:
        io = self.session.io_binding()
        state, rows = self.spec.state, len(feeds["write_indices"])
        sizes: dict[int | str, int] = {}
        own: dict[str, NDArray[Any]] = {}
        for spec in self.spec.inputs:
            if spec.name in self.buffers:
                value = self.buffers[spec.name].first(rows)
                if spec.name in state:
                    io.bind_ortvalue_output(state[spec.name], value)
            else:
                own[spec.name] = np.empty(feeds[spec.name].shape, dtype=NUMPY_DTYPES[spec.dtype])
                sizes.update(zip(spec.shape, own[spec.name].shape, strict=True))
                value = ort.OrtValue.ortvalue_from_numpy(own[spec.name])
            io.bind_ortvalue_input(spec.name, value)
        results = {}
        for spec in self.spec.outputs:
            if spec.name not in state.values():
                shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
                results[spec.name] = np.empty(shape, dtype=NUMPY_DTYPES[spec.dtype])
                io.bind_ortvalue_output(spec.name, ort.OrtValue.ortvalue_from_numpy(results[spec.name]))
        return _Binding(io, own, results)


class OrtRuntime:
    """ONNX Runtime on the CPU. Calls with an even number of rows, at least two, give each row the same value whatever
    else is in the call; a single row takes other kernels."""

    name = "ort-cpu"
    row_multiple = 2
    promised = True
    slot_step = 32  # attention computes over all slots: few of them empty is worth new bindings now and then

    def __init__(self, *, batched: bool = False) -> None:
        """`batched`: the graphs are in their batched form, in which attention itself pads single rows."""
        self.pairs_texts = batched

    def slots(self, axis: str) -> int:
        return 0

    def buffer(self, shape: tuple[int, int, int, int], dtype: str) -> OrtBuffer:
        return OrtBuffer(shape, dtype)

    def few_rows(self, engine: Engine, most: int) -> Runs:
        from bltcli_engines.few_rows import FewRows

        assert isinstance(engine, OrtEngine)
        return FewRows(engine, most)


def open_onnxruntime(
    specs: Mapping[GraphName, GraphSpec],
    paths: Mapping[GraphName, Path],
    weight_bytes: Mapping[GraphName, int],
    threads: int = 0,
    rows: int = 1,
    *,
    float_activations: bool = False,
) -> tuple[OrtRuntime, dict[GraphName, Engine]]:
    """All graphs in ONNX Runtime on the CPU; for several texts (`rows`), in their batched form. ModelError for bfloat16
    graphs, which its CPU kernels cannot multiply. `threads` 0: one for a small graph on few texts, else all cores;
    values are the same for any number. `float_activations`: multiply quantised weights with float32, for checks,
    instead of with int8."""
    if any(t.dtype == "bfloat16" for spec in specs.values() for t in spec.inputs):
        raise ModelError("ONNX Runtime's CPU has no bfloat16 kernels; export with --precision fp32 or fp16")
    engines: dict[GraphName, Engine] = {
        name: OrtEngine(
            spec,
            paths[name],
            weight_bytes[name],
            threads or int(rows * weight_bytes[name] < SMALL_GRAPH_BYTES),
            float_activations=float_activations,
        )
        for name, spec in specs.items()
    }
    return OrtRuntime(batched=rows > 1), engines


def open_session(
    path: Path, spec: GraphSpec, providers: Sequence[Any], threads: int = 0, *, float_activations: bool = False
) -> Any:
    """A session of the graph in `path`. ModelError when ONNX Runtime cannot load it or its inputs and outputs are not
    those of `spec`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # TensorScatter warns on stderr per call while buffers are being bound
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # four sessions share the cores
    # products with quantised weights: 4 also rounds what they are multiplied with to int8, block by block; 1 does not,
    # and is up to 200 times slower
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if float_activations else "4")
    try:
        with freed_at_once():
            session = ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # ONNX Runtime raises its own unrelated types
        raise ModelError(f"{path}: ONNX Runtime cannot load this graph: {_first_line(error)}") from error
    _check_io(path, session, spec)
    return session


def _check_io(path: Path, session: Any, spec: GraphSpec) -> None:
    """The graph's own inputs and outputs against the contract."""
    kinds = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
    kinds["tensor(bfloat16)"] = "bfloat16"
    for what, values, specs in (
        ("input", session.get_inputs(), spec.inputs),
        ("output", session.get_outputs(), spec.outputs),
    ):
        found = {v.name: (kinds.get(v.type, v.type), tuple(v.shape)) for v in values}
        for expected in specs:
            if found.get(expected.name) != (expected.dtype, expected.shape):
                raise ModelError(
                    f"{path}: {what} {expected.name} is {found.get(expected.name)}, the model's configuration "
                    f"needs {(expected.dtype, expected.shape)}; export the bundle again"
                )
        extra = sorted(set(found) - {s.name for s in specs})
        if extra:
            raise ModelError(f"{path}: unknown {what} {extra[0]}; export the bundle again")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

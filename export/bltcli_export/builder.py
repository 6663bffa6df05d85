"""A thin hand on onnx-ir: ops, constants, weights that are read only when they are written. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import tape

from bltcli.checkpoint.weights import DTYPES
from bltcli.graphs import GraphSpec, TensorSpec
from bltcli.quantised import DTYPES as QUANTISED_DTYPES
from bltcli.quantised import SCALES, Quantised, block_of, quantise

OPSET = 24  # RMSNormalization and RotaryEmbedding of 23, TensorScatter of 24
IR_VERSION = 12

_IR_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.INT4,
}


class Source(Protocol):
    """One tensor of a checkpoint (`bltcli.checkpoint.Weight`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def numpy(self) -> NDArray[Any]: ...


class Builder:
    """Builds one graph in one dtype."""

    def __init__(
        self,
        spec: GraphSpec,
        dtype: str,
        weights: Mapping[str, Source],
        *,
        round_to: str | None = None,
        quantised: Quantised | None = None,
    ) -> None:
        """`round_to` rounds every weight through another dtype first (the fp32 twin of a bf16 graph); `quantised`
        writes those that `block_of` names in whole numbers with a scale per block."""
        self.spec, self.dtype, self.weights = spec, dtype, weights
        self.round_to = round_to
        self.quantised: Quantised | None = quantised
        self.tape = tape.Tape()
        self.inputs = {s.name: as_value(s) for s in spec.inputs}
        self.outputs: dict[str, ir.Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.tape.op(op_type, list(inputs), attributes or None)

    def split(self, value: ir.Value, sizes: Sequence[int], *, axis: int = -1) -> Sequence[ir.Value]:
        parts: Sequence[ir.Value] = self.tape.op_multi_out(
            "Split", [value, self.ints(*sizes)], {"axis": axis}, num_outputs=len(sizes)
        )
        return parts

    def ints(self, *values: int) -> ir.Value:
        """A one-dimensional int64 constant."""
        return self.constant(np.array(values, dtype=np.int64))

    def number(self, value: float) -> ir.Value:
        """A scalar constant in the graph's dtype."""
        return self.constant(np.array(value, dtype=DTYPES[self.dtype]))

    def constant(self, array: NDArray[Any]) -> ir.Value:
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self.tape.initializer(ir.tensor(array, name=name), name=name)
        return self._constants[key]

    def weight(self, *names: str) -> ir.Value:
        """Linear weights [outputs, inputs], transposed to [inputs, outputs] and joined along the outputs."""
        sources = [self.weights[name] for name in names]
        shape = (sources[0].shape[1], sum(s.shape[0] for s in sources))
        block = block_of(names[0], sources[0].shape) if self.quantised else None
        if self.quantised is not None and block is not None:
            return self._quantised("+".join(names), sources, shape, block, self.quantised)
        return self._lazy(
            "+".join(names), self.dtype, shape, lambda: np.concatenate([self._read(s).T for s in sources], axis=1)
        )

    def _quantised(
        self, name: str, sources: Sequence[Source], shape: tuple[int, int], block: int, kind: Quantised
    ) -> ir.Value:
        """Whole numbers [inputs, outputs] and scales [inputs / block, outputs] through a blocked DequantizeLinear."""

        def read(part: int) -> NDArray[Any]:
            return np.concatenate([quantise(self._read(s), block, kind)[part].T for s in sources], axis=1)

        numbers = self._lazy(name, kind, shape, lambda: read(0).astype(QUANTISED_DTYPES[kind], copy=False))
        scales = self._lazy(name + SCALES, self.dtype, (shape[0] // block, shape[1]), lambda: read(1))
        return self.op("DequantizeLinear", numbers, scales, axis=0, block_size=block)

    def raw(self, name: str) -> ir.Value:
        """A weight as it is stored: norms and embedding tables."""
        source = self.weights[name]
        return self._lazy(name, self.dtype, source.shape, lambda: self._read(source))

    def reshape(self, value: ir.Value, *shape: int) -> ir.Value:
        """0 keeps an axis, -1 takes the rest."""
        return self.op("Reshape", value, self.ints(*shape))

    def output(self, name: str, value: ir.Value) -> None:
        self.outputs[name] = as_value(next(s for s in self.spec.outputs if s.name == name), value)

    def model(self) -> ir.Model:
        graph = ir.Graph(
            list(self.inputs.values()),
            [self.outputs[s.name] for s in self.spec.outputs],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": OPSET},
            name=self.spec.name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="bltcli")

    def _read(self, source: Source) -> NDArray[Any]:
        array = source.numpy()
        if self.round_to is not None:
            array = array.astype(DTYPES[self.round_to])
        return array.astype(DTYPES[self.dtype], copy=False)

    def _lazy(self, name: str, dtype: str, shape: tuple[int, ...], read: Callable[[], NDArray[Any]]) -> ir.Value:
        tensor = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(read()), name=name),
            dtype=_IR_DTYPES[dtype],
            shape=ir.Shape(shape),
            name=name,
        )
        return self.tape.initializer(tensor, name=name)


def as_value(spec: TensorSpec, value: ir.Value | None = None) -> ir.Value:
    """An input or output as `spec` declares it: `value`, or a new one."""
    value = ir.Value() if value is None else value
    value.name, value.type, value.shape = spec.name, ir.TensorType(_IR_DTYPES[spec.dtype]), ir.Shape(spec.shape)
    return value


def constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new constant of a graph that is built already."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value

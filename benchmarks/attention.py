"""One attention call of ONNX Runtime's CPU four ways: its Attention, GroupQueryAttention, plain products, and plain
products of one query row each.

    python benchmarks/attention.py [--out FILE.jsonl]

Two query rows (as of a byte alone, padded), one (which row by row would need no padding) and six (a verified draft of
four bytes) over caches of several lengths, in the shapes of the built-in and the released 1B model's local stacks;
caches of ten layers in turns, so that none stays in the processor's own memory. Microseconds, the median.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from common import RESULTS, write_rows
from onnx import TensorProto, helper

SHAPES = ((1, 4, 32, (96, 256)), (16, 4, 32, (96, 256)), (1, 16, 64, (128, 640, 1024)))  # texts, heads, width, slots
QUERY_ROWS = (1, 2, 6)
WINDOW = 512
LAYERS, RUNS = 10, 30
MASKED = ["q", "k", "v", "bias"]


def attention(heads: int, width: int) -> onnx.ModelProto:
    return model([helper.make_node("Attention", MASKED, ["out"])], masked_inputs(heads, width), ["out"])


def products(heads: int, width: int) -> onnx.ModelProto:
    """Keys times queries, transposed: the few query rows are what is packed, not the keys."""
    nodes = [
        helper.make_node("Transpose", ["q"], ["columns"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["k", "columns"], ["turned"]),
        helper.make_node("Transpose", ["turned"], ["scores"], perm=[0, 1, 3, 2]),
        helper.make_node("Add", ["scores", "bias"], ["seen"]),
        helper.make_node("Softmax", ["seen"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["out"]),
    ]
    return model(nodes, masked_inputs(heads, width), ["out"])


def row_by_row(heads: int, width: int) -> onnx.ModelProto:
    """Each query row is a product of its own, a vector times a matrix, so that no other row can change its sums. The
    transposition is fused into the product."""
    nodes = [
        helper.make_node("Unsqueeze", ["q", "three"], ["row"]),
        helper.make_node("Unsqueeze", ["k", "two"], ["keys"]),
        helper.make_node("Transpose", ["keys"], ["columns"], perm=[0, 1, 2, 4, 3]),
        helper.make_node("MatMul", ["row", "columns"], ["scores"]),
        helper.make_node("Unsqueeze", ["bias", "three"], ["sight"]),
        helper.make_node("Add", ["scores", "sight"], ["seen"]),
        helper.make_node("Softmax", ["seen"], ["weights"], axis=-1),
        helper.make_node("Unsqueeze", ["v", "two"], ["values"]),
        helper.make_node("MatMul", ["weights", "values"], ["of_rows"]),
        helper.make_node("Squeeze", ["of_rows", "three"], ["out"]),
    ]
    axes = [helper.make_tensor(name, TensorProto.INT64, [1], [axis]) for name, axis in (("two", 2), ("three", 3))]
    return model(nodes, masked_inputs(heads, width), ["out"], constants=axes)


def group_query(heads: int, width: int) -> onnx.ModelProto:
    inputs: dict[str, tuple[Any, ...]] = dict.fromkeys(("q", "new_k", "new_v"), ("b", "n", heads * width))
    inputs |= dict.fromkeys(("k", "v"), ("b", heads, "c", width))
    names = ["q", "new_k", "new_v", "k", "v", "last", "total"]
    node = helper.make_node(
        "GroupQueryAttention", names, ["out", "k_out", "v_out"], domain="com.microsoft",
        num_heads=heads, kv_num_heads=heads, local_window_size=WINDOW,
    )  # fmt: skip
    return model([node], inputs, ["out", "k_out", "v_out"], {"last": ("b",), "total": ()})


def masked_inputs(heads: int, width: int) -> dict[str, tuple[Any, ...]]:
    cache = ("b", heads, "c", width)
    return {"q": ("b", heads, "n", width), "k": cache, "v": cache, "bias": ("b", 1, "n", "c")}


def model(
    nodes: list[Any],
    floats: dict[str, tuple[Any, ...]],
    outputs: list[str],
    ints: dict[str, Any] | None = None,
    constants: list[Any] | None = None,
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in floats.items()]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in (ints or {}).items()]
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "attention", inputs, outs, constants)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def microseconds(session: Any, feeds: list[dict[str, Any]], shared: dict[str, str]) -> float:
    """Median of a run; outputs in `shared` are written over the input that they name."""
    bindings = []
    for layer in feeds:
        io, values = session.io_binding(), {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in layer.items()}
        for name, value in values.items():
            io.bind_ortvalue_input(name, value)
        for output, source in shared.items():
            io.bind_ortvalue_output(output, values[source])
        io.bind_output("out")
        bindings.append((io, values, layer))  # the arrays must outlive the binding
    seconds = []
    for _ in range(RUNS):
        for io, _values, _layer in bindings:
            began = perf_counter()
            session.run_with_iobinding(io)
            seconds.append(perf_counter() - began)
    return median(seconds) * 1e6


def measured(texts: int, heads: int, width: int, slots: int, query: int, threads: int) -> Iterator[tuple[str, float]]:
    rng = np.random.default_rng(0)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def array(*shape: int) -> Any:
        return rng.random(shape, dtype=np.float32)

    caches = [{name: array(texts, heads, slots, width) for name in "kv"} for _ in range(LAYERS)]
    masked = {"q": array(texts, heads, query, width), "bias": np.zeros((texts, 1, query, slots), dtype=np.float32)}
    rows = {name: array(texts, query, heads * width) for name in ("q", "new_k", "new_v")}
    ends = {"last": np.full(texts, slots - 1, dtype=np.int32), "total": np.array(slots, dtype=np.int32)}
    forms: dict[str, tuple[Callable[[int, int], onnx.ModelProto], dict[str, Any], dict[str, str]]] = {
        "Attention": (attention, masked, {}),
        "plain products": (products, masked, {}),
        "row by row": (row_by_row, masked, {}),
    }
    if texts == 1:  # GroupQueryAttention takes several rows of one text alone
        forms["GroupQueryAttention"] = (group_query, rows | ends, {"k_out": "k", "v_out": "v"})
    for name, (build, feeds, shared) in forms.items():
        session = ort.InferenceSession(build(heads, width).SerializeToString(), options)
        yield name, microseconds(session, [cache | feeds for cache in caches], shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "attention.jsonl")
    o = parser.parse_args()
    rows = []
    for texts, heads, width, lengths in SHAPES:
        for slots, query, threads in product(lengths, QUERY_ROWS, (1, 2)):
            shape = {"texts": texts, "heads": heads, "width": width, "slots": slots, "query": query, "threads": threads}
            rows.append(shape | dict(measured(**shape)))
            print({key: round(value) for key, value in rows[-1].items()}, flush=True)
    write_rows(o.out, rows)


if __name__ == "__main__":
    main()

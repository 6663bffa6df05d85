"""A second form of a graph, for batches on the CPU: attention has two query rows where a text has one.

ONNX Runtime's CPU kernels give a row the same value, to the last bit, in any call that has an even number of rows.
Attention counts the rows of each text by itself; every other operator counts those of all texts together. So where
only attention pads, an even number of texts runs one row each, at half the work of two.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from bltcli_export.builder import IR_VERSION, constant


def write_batched(path: Path, out: Path) -> None:
    """Write the batched form of the graph in `path` to `out`, in the same folder: both read one file of weights."""
    model = ir.load(str(path))
    assert path.parent == out.parent
    assert model.ir_version == IR_VERSION
    pad_attention(model.graph)
    ir.save(model, str(out))


def pad_attention(graph: ir.Graph) -> None:
    """Repeat the query where it is a single row, [b, H, 1, hd] -> [b, H, 2, hd], and cut the result again."""
    attentions = [node for node in graph if node.op_type == "Attention"]
    bias = attentions[0].inputs[3]  # [b, 1, q, C]
    zero, one, two = (constant(graph, f"batched_{number}", np.array([number])) for number in range(3))
    rows = ir.node("Shape", [bias], {"start": 2, "end": 3})
    most = ir.node("Max", [*rows.outputs, two])
    shape = ir.node("Concat", [one, one, *most.outputs, one], {"axis": 0})
    padded_bias = ir.node("Expand", [bias, *shape.outputs])
    for node in (rows, most, shape, padded_bias):
        graph.insert_before(attentions[0], node)
    for attention in attentions:
        query = ir.node("Expand", [attention.inputs[0], *shape.outputs])
        graph.insert_before(attention, query)
        attention.replace_input_with(0, query.outputs[0])
        attention.replace_input_with(3, padded_bias.outputs[0])
        (padded,) = attention.outputs
        cut = ir.node("Slice", [padded, zero, *rows.outputs, two])
        padded.replace_all_uses_with(cut.outputs[0])
        cut.replace_input_with(0, padded)
        graph.insert_after(attention, cut)

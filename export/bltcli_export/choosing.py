"""A second form of the decoder, for devices: it chooses bytes itself, so that a draft need not come back to the host.

To the graph's `logits` it adds, per row: `best`, the id with the largest logit + addend (ties go to the lowest); and of
the model's own distribution over the ids that can be generated, the largest probability and the entropy in nats. With
an addend of temperature times Gumbel noise, `best` is what `Sampler` draws where it cuts nothing off.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from bltcli.graphs import BANNED, GraphSpec, choosing_spec
from bltcli.vocab import NEVER_GENERATED, OUTPUT_IDS
from bltcli_export.builder import as_value, constant


def write_choosing(path: Path, out: Path, decoder: GraphSpec) -> None:
    """Write the choosing form of the decoder in `path` to `out`, in the same folder: both read one file of weights."""
    model = ir.load(str(path))
    assert path.parent == out.parent
    add_choice(model.graph, decoder)
    ir.save(model, str(out))


def add_choice(graph: ir.Graph, decoder: GraphSpec) -> None:
    """Add the inputs and outputs that `choosing_spec` has beyond those of `decoder`."""
    spec = choosing_spec(decoder)
    logits = next(value for value in graph.outputs if value.name == "logits")
    (addend,) = (as_value(s) for s in spec.inputs if s not in decoder.inputs)
    never = np.zeros(OUTPUT_IDS, dtype=np.float32)
    never[list(NEVER_GENERATED)] = BANNED
    last = constant(graph, "choosing_last", np.array([-1]))

    def op(kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes)
        graph.append(node)
        return node.outputs[0]

    allowed = op("Add", logits, constant(graph, "choosing_never", never))
    log_p = op("LogSoftmax", allowed, axis=-1)
    found = {
        "best": op("ArgMax", op("Add", allowed, addend), axis=-1, keepdims=0),
        "confidence": op("Exp", op("ReduceMax", log_p, last, keepdims=0)),
        "entropy": op("Neg", op("ReduceSum", op("Mul", op("Exp", log_p), log_p), last, keepdims=0)),
    }
    graph.inputs.append(addend)
    for tensor in spec.outputs:
        if tensor not in decoder.outputs:
            graph.outputs.append(as_value(tensor, found[tensor.name]))

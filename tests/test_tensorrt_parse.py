"""TensorRT's own parser takes all four graphs as they stand, in every precision. Needs no GPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import tensorrt_rtx_bindings as trt

from bltcli.graphs import GRAPHS, Precision
from bltcli_export.exporter import save_graph
from bltcli_export.graphs import build_graph
from tests.tiny import tiny_checkpoint

CAPACITY = 256  # TensorRT wants the cache axes static


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("form", ["lookup", "encoder"])
def test_all_four_graphs_parse(tmp_path: Path, form: str, precision: Precision) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", form)
    for name in GRAPHS:
        path = tmp_path / f"{name}.onnx"
        save_graph(build_graph(name, checkpoint.config, checkpoint.weights, precision), path)
        assert parse_errors(path) == []


def test_a_graph_tensorrt_does_not_know_is_refused(tmp_path: Path) -> None:
    """The check can fail: past_key inputs of Attention are not supported there."""
    h = onnx.helper
    tensors = [h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2, 4, 8]) for n in ("q", "k", "v", "pk", "pv")]
    outputs = [h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("y", "nk", "nv")]
    node = h.make_node("Attention", ["q", "k", "v", "", "pk", "pv"], ["y", "nk", "nv"])
    graph = h.make_graph([node], "g", tensors, outputs)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 23)], ir_version=11), tmp_path / "bad.onnx")
    assert parse_errors(tmp_path / "bad.onnx")


def parse_errors(path: Path) -> list[str]:
    """What TensorRT-RTX's ONNX parser says against the graph, cache axes made static in memory."""
    model = onnx.load(path)
    for value in [*model.graph.input, *model.graph.output]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in ("slots", "patch_slots"):
                axis.dim_value = CAPACITY
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parser.parse(model.SerializeToString())
    return [parser.get_error(i).desc() for i in range(parser.num_errors)]

"""Reads a model's weights back out of its ONNX graphs, under their checkpoint names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bltcli.checkpoint.names import expected_shapes
from bltcli.config import ModelConfig
from bltcli.graphs import GraphName
from bltcli.quantised import SCALES, dequantise


def read_weights(config: ModelConfig, paths: Mapping[GraphName, Path]) -> dict[str, NDArray[Any]]:
    """Every weight the graphs hold; the host tables are not among them.

    In a graph, linear weights stand transposed and those that share an input are joined, "a+b", along the outputs.
    Quantised ones come back in float32.
    """
    shapes = expected_shapes(config)
    weights: dict[str, NDArray[Any]] = {}
    for path in paths.values():
        initializers = ir.load(str(path)).graph.initializers
        for name, value in initializers.items():
            parts = [part for part in name.split("+") if part in shapes]
            if not parts or value.const_value is None or name.endswith(SCALES):
                continue
            array = value.const_value.numpy()
            if (scales := initializers.get(name + SCALES)) is not None and scales.const_value is not None:
                array = dequantise(array.astype(np.int8).T, scales.const_value.numpy().T).T
            if array.ndim == 1 or name.endswith("embed_tokens.weight"):
                weights[name] = array
            else:
                ends = np.cumsum([shapes[part][0] for part in parts])[:-1]
                weights |= {part: piece.T for part, piece in zip(parts, np.split(array, ends, axis=1), strict=True)}
    return weights

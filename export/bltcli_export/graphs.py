"""Builds the four graphs of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from bltcli.config import ModelConfig
from bltcli.graphs import DTYPES, GraphName, Precision, graph_specs
from bltcli_export.builder import Builder, Source
from bltcli_export.decoder import build_decoder
from bltcli_export.encoder import build_encoder
from bltcli_export.global_model import build_global
from bltcli_export.patcher import build_patcher

BUILDERS: Final[dict[GraphName, Callable[[Builder, ModelConfig], None]]] = {
    "patcher": build_patcher,
    "encoder": build_encoder,
    "global": build_global,
    "decoder": build_decoder,
}


def build_graph(
    name: GraphName,
    config: ModelConfig,
    weights: Mapping[str, Source],
    precision: Precision,
    *,
    round_to: str | None = None,
) -> Builder:
    """One graph at one precision, its weights not yet read. The patcher is float32 at every precision.

    `round_to` rounds the weights through another dtype first: the float32 twin of a bfloat16 graph has the bfloat16
    graph's weights and runs where bfloat16 does not.
    """
    spec = graph_specs(config, precision)[name]
    if name == "patcher":
        builder = Builder(spec, "float32", weights)
    else:
        quantised = precision if precision in ("int8", "int4") else None
        builder = Builder(spec, DTYPES[precision], weights, round_to=round_to, quantised=quantised)
    BUILDERS[name](builder, config)
    return builder

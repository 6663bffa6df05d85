"""The encoder graph: byte embeddings (gathered on the host) -> byte states, written into the state buffer."""

from __future__ import annotations

from bltcli.config import ModelConfig
from bltcli_export.blocks import rope_tables, transformer_layer
from bltcli_export.builder import Builder


def build_encoder(g: Builder, config: ModelConfig) -> None:
    stack = config.encoder
    rope = rope_tables(g, stack, config.max_bytes)
    x = g.inputs["embeds"]
    for layer in range(stack.num_layers):
        x = transformer_layer(g, x, "encoder", layer, stack, rope)
    rows = g.op("Unsqueeze", x, g.ints(1))  # [b, 1, q, h]
    scatter = g.op("TensorScatter", g.inputs["past_states"], rows, g.inputs["write_indices"], axis=2)
    g.output("present_states", scatter)

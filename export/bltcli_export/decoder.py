"""The decoder graph: byte rows, each reading one latent before every layer -> next-byte logits in float32."""

from __future__ import annotations

import onnx_ir as ir

from bltcli.config import ModelConfig
from bltcli_export.blocks import gather_rows, rms_norm, rope_tables, transformer_layer
from bltcli_export.builder import Builder


def build_decoder(g: Builder, config: ModelConfig) -> None:
    stack = config.decoder
    rope = rope_tables(g, stack, config.max_bytes)
    if stack.input == "lookup":
        x = g.op("Gather", g.raw("decoder.embed_tokens.weight"), g.inputs["ids"], axis=0)
    else:
        x = gather_rows(g, g.inputs["states"], g.inputs["state_index"])
    parts = 2 * stack.num_cross_layers
    read = gather_rows(g, g.inputs["cross_kv"], g.inputs["latent_index"])  # [b, q, cross_kv_size]
    read = g.reshape(read, 0, 0, parts, config.cross_attn_k, stack.num_kv_heads, 1, stack.head_dim)
    keys_and_values = g.split(read, [1] * parts, axis=2)
    for layer in range(stack.num_layers):
        if layer < stack.num_cross_layers:
            keys, values = keys_and_values[2 * layer : 2 * layer + 2]
            x = read_latent(g, x, keys, values, f"decoder.cross_attn_layers.{layer}", config)
        x = transformer_layer(g, x, "decoder", layer, stack, rope)
    x = rms_norm(g, x, "decoder.norm.weight", stack.norm_eps)
    logits = g.op("MatMul", x, g.weight("decoder.lm_head.weight"))
    # a Cast even at float32, so that the output is never the bare MatMul: one form for every precision
    g.output("logits", g.op("Cast", logits, to=ir.DataType.FLOAT))


def read_latent(g: Builder, x: ir.Value, keys: ir.Value, values: ir.Value, name: str, config: ModelConfig) -> ir.Value:
    """Each row of x [b, q, h] attends to its own latent's keys and values [b, q, 1, k, Hkv, 1, hd]; 2x + attention
    (double residual).

    Products and sums of fixed length per row instead of tiny matrix products: a row's value depends on nothing else.
    """
    stack = config.decoder
    heads, group = stack.num_kv_heads, stack.num_heads // stack.num_kv_heads
    normed = rms_norm(g, x, f"{name}.q_norm.weight", stack.norm_eps)
    q = g.op("MatMul", normed, g.weight(f"{name}.q_proj.weight"))
    q = g.reshape(q, 0, 0, 1, 1, heads, group, stack.head_dim)
    scores = g.op("ReduceSum", g.op("Mul", q, keys), g.ints(-1))  # [b, q, 1, k, Hkv, G, 1]
    weights = g.op("Softmax", scores, axis=3)
    out = g.op("ReduceSum", g.op("Mul", weights, values), g.ints(2, 3), keepdims=0)  # [b, q, Hkv, G, hd]
    out = g.op("MatMul", g.reshape(out, 0, 0, config.hidden_size), g.weight(f"{name}.o_proj.weight"))
    return g.op("Add", g.op("Add", x, x), out)

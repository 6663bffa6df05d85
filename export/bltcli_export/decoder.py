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
    latents = gather_rows(g, g.inputs["latents"], g.inputs["latent_index"])  # [b, q, W]
    slots = g.reshape(latents, 0, 0, config.cross_attn_k, config.hidden_size)
    for layer in range(stack.num_layers):
        if layer == 0 or stack.cross_attn_all_layers:
            x = read_latents(g, x, slots, f"decoder.cross_attn_layers.{layer}", config)
        x = transformer_layer(g, x, "decoder", layer, stack, rope)
    x = rms_norm(g, x, "decoder.norm.weight", stack.norm_eps)
    logits = g.op("MatMul", x, g.weight("decoder.lm_head.weight"))
    # a Cast even at float32, so that the output is never the bare MatMul: one form for every precision
    g.output("logits", g.op("Cast", logits, to=ir.DataType.FLOAT))


def read_latents(g: Builder, x: ir.Value, slots: ir.Value, name: str, config: ModelConfig) -> ir.Value:
    """Each row of x [b, q, h] attends to its own k vectors, slots [b, q, k, h]; 2x + attention (double residual).

    Products and sums of fixed length per row instead of tiny matrix products: a row's value depends on nothing else.
    """
    stack, k = config.decoder, config.cross_attn_k
    heads, group, hd = stack.num_kv_heads, stack.num_heads // stack.num_kv_heads, stack.head_dim
    normed = rms_norm(g, x, f"{name}.q_norm.weight", stack.norm_eps)
    q = g.reshape(g.op("MatMul", normed, g.weight(f"{name}.q_proj.weight")), 0, 0, 1, heads, group, hd)
    normed = rms_norm(g, slots, f"{name}.k_norm.weight", stack.norm_eps)
    kv = g.op("MatMul", normed, g.weight(f"{name}.k_proj.weight", f"{name}.v_proj.weight"))
    keys, values = g.split(g.reshape(kv, 0, 0, k, 2 * heads, 1, hd), [heads] * 2, axis=3)  # [b, q, k, Hkv, 1, hd]
    scores = g.op("ReduceSum", g.op("Mul", q, keys), g.ints(-1))  # [b, q, k, Hkv, G, 1]
    weights = g.op("Softmax", g.op("Mul", scores, g.number(hd**-0.5)), axis=2)
    out = g.op("ReduceSum", g.op("Mul", weights, values), g.ints(2), keepdims=0)  # [b, q, Hkv, G, hd]
    out = g.op("MatMul", g.reshape(out, 0, 0, config.hidden_size), g.weight(f"{name}.o_proj.weight"))
    return g.op("Add", g.op("Add", x, x), out)

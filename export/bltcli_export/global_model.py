"""The global graph: pool each closed patch from the state buffer, run the large stack, project to latents, and those to
what the decoder reads of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bltcli.checkpoint.weights import DTYPES
from bltcli.config import ModelConfig
from bltcli.graphs import MASKED
from bltcli_export.blocks import gather_rows, rms_norm, rope_tables, transformer_layer
from bltcli_export.builder import Builder


def build_global(g: Builder, config: ModelConfig) -> None:
    stack = config.global_model
    x = pool_patches(g, config)
    if config.has_global_projection:
        x = g.op("MatMul", x, g.weight("global_model.token_embedding_projection.weight"))
    rope = rope_tables(g, stack, stack.max_positions)
    for layer in range(stack.num_layers):
        x = transformer_layer(g, x, "global_model", layer, stack, rope)
    latents = g.op("MatMul", x, g.weight("global_model.latent_projection.weight"))
    rows = g.op("Unsqueeze", cross_kv(g, latents, config), g.ints(1))  # [b, 1, c, cross_kv_size]
    scatter = g.op("TensorScatter", g.inputs["past_cross_kv"], rows, g.inputs["latent_write_indices"], axis=2)
    g.output("present_cross_kv", scatter)


def cross_kv(g: Builder, latents: ir.Value, config: ModelConfig) -> ir.Value:
    """Keys, scaled, and values of latents [b, c, W] for each cross-attention of the decoder, in this order:
    [b, c, layers * 2 * k * Hkv * hd]. They are the same for every byte that reads a patch."""
    stack, k = config.decoder, config.cross_attn_k
    width, parts = stack.num_kv_heads * stack.head_dim, 2 * stack.num_cross_layers
    slots = g.reshape(latents, 0, 0, k, config.hidden_size)
    found = []
    for layer in range(stack.num_cross_layers):
        name = f"decoder.cross_attn_layers.{layer}"
        normed = rms_norm(g, slots, f"{name}.k_norm.weight", stack.norm_eps)
        kv = g.op("MatMul", normed, g.weight(f"{name}.k_proj.weight", f"{name}.v_proj.weight"))
        found.append(g.reshape(kv, 0, 0, k, 2, width))
    scale = np.ones((parts, 1), dtype=DTYPES[g.dtype])
    scale[::2] = stack.head_dim**-0.5
    scaled = g.op("Mul", g.op("Concat", *found, axis=3), g.constant(scale))
    return g.reshape(g.op("Transpose", scaled, perm=[0, 1, 3, 2, 4]), 0, 0, parts * k * width)


def pool_patches(g: Builder, config: ModelConfig) -> ir.Value:
    """Patch vectors [b, c, W]: the maximum over a patch's bytes asks k queries of those same bytes."""
    stack, h, k = config.encoder, config.hidden_size, config.cross_attn_k
    heads, group, hd = stack.num_kv_heads, stack.num_heads // stack.num_kv_heads, stack.head_dim
    name = "global_model.cross_attn"
    patch_bytes = gather_rows(g, g.inputs["states"], g.inputs["patch_index"])  # [b, c, L, h]
    longest = g.op("Squeeze", g.op("Shape", g.inputs["patch_index"], start=2, end=3), g.ints(0))
    within = g.op("Range", g.constant(np.array(0)), longest, g.constant(np.array(1)))
    real = g.op("Less", within, g.op("Unsqueeze", g.inputs["patch_len"], g.ints(-1)))  # [b, c, L]
    masked = g.number(MASKED)
    pooled = g.op("Where", g.op("Unsqueeze", real, g.ints(-1)), patch_bytes, masked)
    pooled = g.op("ReduceMax", pooled, g.ints(2), keepdims=0)
    queries = g.op("MatMul", pooled, g.weight("global_model.patch_embedding_projection.weight"))
    queries = g.reshape(queries, 0, 0, k, h)

    normed = rms_norm(g, queries, f"{name}.q_norm.weight", stack.norm_eps)
    q = g.op("MatMul", normed, g.weight(f"{name}.q_proj.weight"))
    q = g.op("Transpose", g.reshape(q, 0, 0, k, heads, group, hd), perm=[0, 1, 3, 4, 2, 5])
    q = g.reshape(q, 0, 0, heads, group * k, hd)
    normed = rms_norm(g, patch_bytes, f"{name}.k_norm.weight", stack.norm_eps)
    kv = g.op("MatMul", normed, g.weight(f"{name}.k_proj.weight", f"{name}.v_proj.weight"))
    keys, values = (g.reshape(part, 0, 0, 0, heads, hd) for part in g.split(kv, [heads * hd] * 2))
    keys = g.op("Transpose", keys, perm=[0, 1, 3, 4, 2])  # [b, c, Hkv, hd, L]
    values = g.op("Transpose", values, perm=[0, 1, 3, 2, 4])  # [b, c, Hkv, L, hd]
    scores = g.op("Mul", g.op("MatMul", q, keys), g.number(hd**-0.5))  # [b, c, Hkv, G * k, L]
    scores = g.op("Where", g.op("Unsqueeze", real, g.ints(2, 3)), scores, masked)
    out = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)
    out = g.op("Transpose", g.reshape(out, 0, 0, heads, group, k, hd), perm=[0, 1, 4, 2, 3, 5])
    out = g.op("MatMul", g.reshape(out, 0, 0, k, h), g.weight(f"{name}.o_proj.weight"))
    vectors = g.op("Add", g.op("Add", queries, queries), out)  # the double residual
    return g.reshape(vectors, 0, 0, config.latent_size)

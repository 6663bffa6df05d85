"""The parts that several graphs share: norms, self-attention over an in-place cache, MLP, cross-attention heads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bltcli.checkpoint.weights import DTYPES
from bltcli.config import StackConfig
from bltcli.graphs import present_name
from bltcli_export.builder import Builder


def rms_norm(g: Builder, x: ir.Value, weight: str, eps: float) -> ir.Value:
    """Computed in float32 whatever the dtype (RMSNormalization's default stash type)."""
    return g.op("RMSNormalization", x, g.raw(weight), axis=-1, epsilon=eps)


def rope_tables(g: Builder, config: StackConfig, positions: int) -> tuple[ir.Value, ir.Value]:
    """Cosine and sine [positions, hd / 2] of position * theta^(-2i / hd), angles in float32."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = (np.float32(1) / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    dtype = DTYPES[g.dtype]
    return g.constant(np.cos(angles).astype(dtype)), g.constant(np.sin(angles).astype(dtype))


def transformer_layer(
    g: Builder, x: ir.Value, prefix: str, layer: int, config: StackConfig, rope: tuple[ir.Value, ir.Value]
) -> ir.Value:
    """Pre-norm self-attention and SwiGLU MLP, each with its residual. x [b, q, d] -> [b, q, d]."""
    name = f"{prefix}.layers.{layer}"
    normed = rms_norm(g, x, f"{name}.input_layernorm.weight", config.norm_eps)
    x = g.op("Add", x, self_attention(g, normed, f"{name}.self_attn", layer, config, rope))
    normed = rms_norm(g, x, f"{name}.post_attention_layernorm.weight", config.norm_eps)
    fused = g.op("MatMul", normed, g.weight(f"{name}.mlp.gate_proj.weight", f"{name}.mlp.up_proj.weight"))
    gate, up = g.split(fused, [config.intermediate_size] * 2)
    hidden = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return g.op("Add", x, g.op("MatMul", hidden, g.weight(f"{name}.mlp.down_proj.weight")))


def self_attention(
    g: Builder, x: ir.Value, name: str, layer: int, config: StackConfig, rope: tuple[ir.Value, ir.Value]
) -> ir.Value:
    """Write this call's keys and values into the cache, attend over the whole cache under `attn_bias`."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    joined = g.op("MatMul", x, g.weight(*(f"{name}.{part}_proj.weight" for part in "qkv")))
    joined = g.reshape(joined, 0, 0, heads + 2 * kv_heads, config.head_dim)
    qk, v = g.split(g.op("Transpose", joined, perm=[0, 2, 1, 3]), [heads + kv_heads, kv_heads], axis=1)
    qk = g.op("RotaryEmbedding", qk, *rope, g.inputs["position_ids"], interleaved=1)
    q, k = g.split(qk, [heads, kv_heads], axis=1)
    caches = []
    for part, rows in (("key", k), ("value", v)):
        past = f"past_key_values.{layer}.{part}"
        present = g.op("TensorScatter", g.inputs[past], rows, g.inputs["write_indices"], axis=2)
        g.output(present_name(past), present)
        caches.append(present)
    out = g.op("Attention", q, *caches, g.inputs["attn_bias"])  # [b, H, q, hd]
    out = g.reshape(g.op("Transpose", out, perm=[0, 2, 1, 3]), 0, 0, config.hidden_size)
    return g.op("MatMul", out, g.weight(f"{name}.o_proj.weight"))


def gather_rows(g: Builder, buffer: ir.Value, index: ir.Value) -> ir.Value:
    """Rows of a state buffer: buffer [b, 1, C, w], index [b, ...] -> [b, ..., w]."""
    rows = g.op("Squeeze", buffer, g.ints(1))
    return g.op("GatherND", rows, g.op("Unsqueeze", index, g.ints(-1)), batch_dims=1)

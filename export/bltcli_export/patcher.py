"""The patcher graph: ids -> entropy of the next byte, always float32."""

from __future__ import annotations

from bltcli.config import ModelConfig
from bltcli_export.blocks import rms_norm, rope_tables, transformer_layer
from bltcli_export.builder import Builder


def build_patcher(g: Builder, config: ModelConfig) -> None:
    stack = config.patcher
    rope = rope_tables(g, stack, config.max_bytes)
    x = g.op("Gather", g.raw("patcher.embed_tokens.weight"), g.inputs["ids"], axis=0)
    for layer in range(stack.num_layers):
        x = transformer_layer(g, x, "patcher", layer, stack, rope)
    logits = g.op("MatMul", rms_norm(g, x, "patcher.norm.weight", stack.norm_eps), g.weight("patcher.lm_head.weight"))
    # row by row on both sides: Exp over a flat buffer would treat a row by its place in the call
    terms = g.op("Mul", g.op("Softmax", logits, axis=-1), g.op("LogSoftmax", logits, axis=-1))
    g.output("entropy", g.op("Neg", g.op("ReduceSum", terms, g.ints(-1), keepdims=0)))

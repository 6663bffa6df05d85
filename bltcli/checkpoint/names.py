"""Tensor names and shapes of a checkpoint in this project's own form, derived from the configuration."""

from __future__ import annotations

import math
from typing import Final

from bltcli.config import ModelConfig, StackConfig
from bltcli.graphs import GraphName
from bltcli.vocab import INPUT_IDS, OUTPUT_IDS

#: Embeddings of the encoder that the host gathers, by their names in a bundle: no graph holds them.
HOST_TABLES: Final = {"byte": "encoder.embed_tokens.weight", "hashed": "encoder.hash_embedding.weight"}


#: The parts of a model, by the graphs named after them: how the names of their tensors begin.
COMPONENTS: Final[dict[GraphName, str]] = {
    "patcher": "patcher.",
    "encoder": "encoder.",
    "global": "global_model.",
    "decoder": "decoder.",
}
_OF_LATENTS: Final = ("k_norm.weight", "k_proj.weight", "v_proj.weight")


def component_of(name: str) -> GraphName:
    """The part of the model that the tensor `name` belongs to."""
    return next(graph for graph, prefix in COMPONENTS.items() if name.startswith(prefix))


def reader_of(name: str) -> GraphName:
    """The graph that reads the tensor `name`: its component's, but the global graph makes the keys and values of the
    decoder's cross-attentions, once per patch."""
    if name.startswith("decoder.cross_attn_layers.") and name.endswith(_OF_LATENTS):
        return "global"
    return component_of(name)


def component_parameters(config: ModelConfig) -> dict[GraphName, int]:
    """Parameters of each part of the model, tables that the host gathers left out."""
    found = dict.fromkeys(COMPONENTS, 0)
    for name, shape in expected_shapes(config).items():
        if name not in HOST_TABLES.values():
            found[component_of(name)] += math.prod(shape)
    return found


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint with its shape; linear weights are [outputs, inputs]."""
    h, w, g = config.hidden_size, config.latent_size, config.global_model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "patcher.embed_tokens.weight": (OUTPUT_IDS, config.patcher.hidden_size),
        "patcher.norm.weight": (config.patcher.hidden_size,),
        "patcher.lm_head.weight": (OUTPUT_IDS, config.patcher.hidden_size),
        "encoder.embed_tokens.weight": (OUTPUT_IDS, h),
        "encoder.hash_embedding.weight": (max(1, config.encoder.hash_rows), h),
        "global_model.patch_embedding_projection.weight": (w, h),
        "global_model.latent_projection.weight": (w, g),
        "decoder.norm.weight": (h,),
        "decoder.lm_head.weight": (OUTPUT_IDS, h),
        **_attention("global_model.cross_attn", config.encoder, norms=("q_norm", "k_norm")),
    }
    if config.has_global_projection:
        shapes["global_model.token_embedding_projection.weight"] = (g, w)
    if config.decoder.input == "lookup":
        shapes["decoder.embed_tokens.weight"] = (INPUT_IDS, h)
    for layer in range(config.decoder.num_cross_layers):
        shapes |= _attention(f"decoder.cross_attn_layers.{layer}", config.decoder, norms=("q_norm", "k_norm"))
    stacks: tuple[tuple[str, StackConfig], ...] = (
        ("patcher", config.patcher),
        ("encoder", config.encoder),
        ("global_model", config.global_model),
        ("decoder", config.decoder),
    )
    for name, stack in stacks:
        for layer in range(stack.num_layers):
            shapes |= _layer(f"{name}.layers.{layer}", stack)
    return shapes


def _layer(prefix: str, stack: StackConfig) -> dict[str, tuple[int, ...]]:
    d, f = stack.hidden_size, stack.intermediate_size
    return {
        f"{prefix}.input_layernorm.weight": (d,),
        f"{prefix}.post_attention_layernorm.weight": (d,),
        f"{prefix}.mlp.gate_proj.weight": (f, d),
        f"{prefix}.mlp.up_proj.weight": (f, d),
        f"{prefix}.mlp.down_proj.weight": (d, f),
        **_attention(f"{prefix}.self_attn", stack),
    }


def _attention(prefix: str, stack: StackConfig, norms: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    d, kv = stack.hidden_size, stack.num_kv_heads * stack.head_dim
    return {
        f"{prefix}.q_proj.weight": (d, d),
        f"{prefix}.k_proj.weight": (kv, d),
        f"{prefix}.v_proj.weight": (kv, d),
        f"{prefix}.o_proj.weight": (d, d),
        **{f"{prefix}.{norm}.weight": (d,) for norm in norms},
    }

"""The configurations of the released models, as published: they give exactly the published sizes. No weights needed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bltcli.checkpoint import hf
from bltcli.checkpoint.names import expected_shapes


def published(
    k: int, h: int, heads: int, ffn: int, layers: int, g: int, g_heads: int, g_ffn: int, g_layers: int
) -> Any:
    """The keys of the published conversions; they know neither windows nor `rms_norm_eps`."""
    common: dict[str, Any] = {"norm_eps": 1e-5, "dropout": 0.0, "num_key_value_heads": None, "rope_theta": 500000.0}
    common |= {"rope_scaling": {"rope_type": "default"}, "hidden_act": "silu"}
    local = {"vocab_size": 260, "cross_attn_k": k, "hidden_size_global": g, "hidden_size": h, "intermediate_size": ffn}
    local |= {"num_attention_heads": heads, "max_position_embeddings": 24576, **common}
    return {
        "model_type": "blt",
        "vocab_size": 260,
        "max_position_embeddings": 4096,
        "patch_in_forward": True,
        "realtime_patching": True,
        "patching_mode": "entropy",
        "patch_size": 4,
        "patching_threshold": 1.335442066192627,
        "patching_threshold_add": None,
        "max_patch_length": None,
        "patching_batch_size": 1,
        "patching_device": "cuda",
        "monotonicity": False,
        "cross_attn_k": k,
        "encoder_hash_byte_group_size": [3, 4, 5, 6, 7, 8],
        "encoder_hash_byte_group_vocab": 500002,
        "encoder_hash_byte_group_nb_functions": 1,
        "pm_size": 0,
        "patcher_config": {
            "vocab_size": 260,
            "hidden_size": 768,
            "num_hidden_layers": 14,
            "num_attention_heads": 12,
            "max_position_embeddings": 8192,
            "intermediate_size": 2048,
            **common,
            "rope_theta": 10000.0,
        },
        "encoder_config": {**local, "cross_attn_all_layers": False, "num_hidden_layers": 1, "pm_size": 0},
        "decoder_config": {**local, "cross_attn_all_layers": True, "num_hidden_layers": layers},
        "global_config": {
            "hidden_size": g,
            "num_attention_heads": g_heads,
            "num_hidden_layers": g_layers,
            "max_position_embeddings": 4096,
            "intermediate_size": g_ffn,
            **common,
        },
        "tie_word_embeddings": False,
    }


RELEASED = {
    "1b": (published(2, 1024, 16, 2816, 9, 2048, 16, 5632, 25), 4_633_391_872, 510),
    "7b": (published(4, 1280, 20, 3584, 6, 4096, 32, 11008, 32), 10_653_082_624, 529),
}


@pytest.mark.parametrize("form", RELEASED)
def test_published_configurations_give_the_published_sizes(form: str) -> None:
    data, parameters, tensors = RELEASED[form]
    config = hf.read_config(data)
    shapes = expected_shapes(config)
    assert sum(map(math.prod, shapes.values())) == parameters
    assert len(shapes) == tensors
    assert len({hf.source_names(name) for name in shapes}) == tensors
    assert sum(name.startswith("patcher.") for name in shapes) == 129
    assert config.patcher.window == config.encoder.window == config.decoder.window == 512
    assert config.global_model.window is None
    assert config.max_bytes == 24576
    assert config.has_global_projection == (form == "7b")


@pytest.mark.parametrize("form", RELEASED)
def test_tensor_names_and_shapes_are_those_of_hugging_face(form: str) -> None:
    import torch
    from transformers import BltConfig, BltForCausalLM

    data, _, _ = RELEASED[form]
    with torch.device("meta"):
        theirs = {n: tuple(t.shape) for n, t in BltForCausalLM(BltConfig(**data)).state_dict().items()}
    ours = {hf.source_names(name)[0]: shape for name, shape in expected_shapes(hf.read_config(data)).items()}
    assert ours == theirs

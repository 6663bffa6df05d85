"""A Meta-format twin of a tiny Hugging Face checkpoint, named after Meta's public model code, not after our reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RENAMED = {
    ".embed_tokens.": ".tok_embeddings.",
    ".self_attn.": ".attention.",
    ".mlp.": ".feed_forward.",
    ".input_layernorm.": ".attention_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
    ".q_norm.": ".cross_attn_norm_q.",
    ".k_norm.": ".cross_attn_norm_kv.",
    ".q_proj.": ".wq.",
    ".k_proj.": ".wk.",
    ".v_proj.": ".wv.",
    ".o_proj.": ".wo.",
    ".gate_proj.": ".w1.",
    ".down_proj.": ".w2.",
    ".up_proj.": ".w3.",
}


def meta_tensors(hf_folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of a Hugging Face folder by Meta's names: the model's, and the entropy model's."""
    model: dict[str, torch.Tensor] = {}
    entropy: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(hf_folder / "model.safetensors").items():
        name = "local_decoder.output.weight" if name == "lm_head.weight" else name.removeprefix("model.")
        for theirs, metas in RENAMED.items():
            name = name.replace(theirs, metas)
        if name.startswith("patcher."):
            entropy[name.removeprefix("patcher.").replace("lm_head.", "output.")] = tensor
        elif name == "encoder_hash_tok_embedding.weight":
            for index, table in enumerate(tensor.chunk(6)):
                model[f"encoder_hash_tok_embedding.{index}.weight"] = table.clone()
        else:
            model[name] = tensor
    return model, entropy


def meta_args(hf_folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Arguments of the model, of the entropy model and of the patcher, with the keys that readers need and more."""
    config = json.loads((hf_folder / "config.json").read_text())
    encoder, decoder, patches = config["encoder_config"], config["decoder_config"], config["global_config"]
    model = {
        "seed": 42,
        "vocab_size": 260,
        "dim": 512,
        "n_heads": 8,
        "dim_global": patches["hidden_size"],
        "dim_local_encoder": encoder["hidden_size"],
        "dim_local_decoder": decoder["hidden_size"],
        "n_heads_global": patches["num_attention_heads"],
        "n_heads_local_encoder": encoder["num_attention_heads"],
        "n_heads_local_decoder": decoder["num_attention_heads"],
        "n_kv_heads": None,
        "cross_attn_k": config["cross_attn_k"],
        "cross_attn_nheads": encoder["num_attention_heads"],
        "cross_attn_encoder": True,
        "cross_attn_decoder": True,
        "cross_attn_init_by_pooling": True,
        "cross_attn_all_layers_decoder": True,
        "cross_attn_window_encoder": None,
        "downsampling_by_pooling": "max",
        "encoder_hash_byte_group_size": config["encoder_hash_byte_group_size"],
        "patching_mode": "entropy",
        "rope_theta": 500000.0,
        "norm_eps": 1e-5,
        "max_seqlen": 4096,
        "max_encoder_seq_length": 24576,
        "local_attention_window_len": 512,
        "use_rope": True,
        "pm_size": 0,
    }
    entropy = {"dim": 32, "n_layers": 2, "n_heads": 2, "max_seqlen": 8192, "ffn_dim_multiplier": 1.0, "vocab_size": 260}
    patcher = {"patching_mode": "entropy", "threshold": config["patching_threshold"], "monotonicity": False}
    return model, entropy, patcher


def save_meta_twin(folder: Path, hf_folder: Path, pickled: bool = False) -> Path:
    """config.json, train_args.json, weights, and entropy_model/; pickled: params.json and consolidated.pth."""
    (folder / "entropy_model").mkdir(parents=True)
    args, entropy_args, patcher_args = meta_args(hf_folder)
    train = {"model": args, "data": {"patcher_args": patcher_args}}
    if pickled:
        (folder / "params.json").write_text(json.dumps(train))
    else:
        (folder / "config.json").write_text(json.dumps({"args": args}))
        (folder / "train_args.json").write_text(json.dumps(train))
    (folder / "entropy_model" / "params.json").write_text(json.dumps({"entropy_model": entropy_args}))
    for place, tensors in zip((folder, folder / "entropy_model"), meta_tensors(hf_folder), strict=True):
        if pickled:
            torch.save({"model": tensors}, place / "consolidated.pth")
        else:
            save_file(tensors, place / "model.safetensors")
    return folder

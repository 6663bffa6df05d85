"""Tiny seeded checkpoints in the formats people have, and texts to run them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import BltConfig, BltForCausalLM

from bltcli.vocab import IdArray, encode

#: Overrides of the tiny 1B form: k * h = g there, so no projection; "7b" has one; "gqa" shares key/value heads.
FORMS: dict[str, dict[str, int]] = {
    "1b": {"h": 32, "g": 64, "k": 2, "kv": 4},
    "7b": {"h": 32, "g": 48, "k": 4, "kv": 4},
    "gqa": {"h": 32, "g": 64, "k": 2, "kv": 2},
}
HASH_VOCAB = 500


def random_text(size: int, seed: int = 0) -> bytes:
    """`size` printable bytes in which n-grams recur."""
    rng = np.random.default_rng(seed)
    words = [bytes(rng.integers(97, 123, rng.integers(1, 8)).astype(np.uint8)) for _ in range(60)]
    text = b" ".join(words[i] for i in rng.integers(0, len(words), size))
    return text[:size]


def random_ids(size: int, seed: int = 0) -> IdArray:
    """BOS and size - 1 bytes of random text, int64 [1, size]."""
    return encode(random_text(size - 1, seed))[None]


def tiny_hf_config(form: str = "1b", **overrides: Any) -> BltConfig:
    """A Hugging Face configuration of about 0.1 M parameters; `overrides` are top-level keys."""
    size = FORMS[form]
    local = {
        "hidden_size": size["h"],
        "num_attention_heads": 4,
        "num_key_value_heads": size["kv"],
        "intermediate_size": 64,
        "hidden_size_global": size["g"],
        "cross_attn_k": size["k"],
    }
    keys = {
        "cross_attn_k": size["k"],
        "encoder_hash_byte_group_vocab": HASH_VOCAB,
        "patching_threshold": 5.1,
        "patcher_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        "encoder_config": {**local, "num_hidden_layers": 1},
        "decoder_config": {**local, "num_hidden_layers": 2},
        "global_config": {
            "hidden_size": size["g"],
            "num_attention_heads": 4,
            "num_key_value_heads": size["kv"],
            "num_hidden_layers": 2,
            "intermediate_size": 96,
        },
    }
    return BltConfig(**{**keys, **overrides})


def tiny_hf_model(form: str = "1b", seed: int = 0, calibrated: bool = True, **overrides: Any) -> BltForCausalLM:
    """A random model in evaluation mode, float32; calibrated: its threshold gives about four bytes per patch."""
    torch.manual_seed(seed)
    model = BltForCausalLM(tiny_hf_config(form, **overrides)).eval()
    if calibrated:
        model.config.patching_threshold = calibrated_threshold(model)
    return model


@torch.no_grad()
def calibrated_threshold(model: BltForCausalLM) -> float:
    """The middle of the widest gap among the entropies of which a quarter or so are larger: no byte is a near-tie."""
    ids = torch.from_numpy(random_ids(800))
    entropies = model.model.patcher(ids, patch_size=4, threshold=-1.0)[0].flatten().double().sort().values
    start, stop = int(0.72 * len(entropies)), int(0.78 * len(entropies))
    gap = start + int((entropies[start + 1 : stop] - entropies[start : stop - 1]).argmax())
    return float(entropies[gap] + entropies[gap + 1]) / 2


def save_tiny_hf(folder: Path, form: str = "1b", seed: int = 0, calibrated: bool = True, **overrides: Any) -> Path:
    """Save `tiny_hf_model` as a Hugging Face folder and return it."""
    tiny_hf_model(form, seed, calibrated, **overrides).save_pretrained(folder)
    return folder


def load_hf(folder: Path) -> BltForCausalLM:
    """The Hugging Face model of `folder`, float32, in evaluation mode."""
    return BltForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def hf_logits(model: BltForCausalLM, ids: IdArray) -> torch.Tensor:
    """Next-byte logits [b, N, 260] without any cache (the cached path of transformers is wrong)."""
    logits: torch.Tensor = model(torch.from_numpy(ids), use_cache=False).logits
    return logits


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON object; None stays null, `...` deletes."""
    data = json.loads(file.read_text())
    for key, value in changes.items():
        if value is ...:
            data.pop(key, None)
        else:
            data[key] = value
    file.write_text(json.dumps(data))


def edit_tensors(file: Path, **changes: Any) -> None:
    """Replace, add or (None) delete tensors; "__" in a key stands for "."."""
    tensors = load_file(file)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            tensors.pop(name)
        else:
            tensors[name] = value
    save_file(tensors, file, metadata={"format": "pt"})

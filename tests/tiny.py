"""Tiny seeded models of our own forms: seconds to export, every feature in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bltcli.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from bltcli.config import ModelConfig
from bltcli.nn import Blt
from bltcli.vocab import IdArray, encode

WINDOW = 64


def stack(
    width: int, layers: int, kv_heads: int, theta: float, window: int | None, positions: int = 4096
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": 4,
        "num_kv_heads": kv_heads,
        "intermediate_size": 2 * width,
        "rope_theta": theta,
        "max_positions": positions,
        "window": window,
    }


def tiny_config(
    form: str,
    *,
    threshold_nats: float = 5.1,
    max_bytes: int = 4096,
    max_patches: int = 2048,
    block_size: int = 0,
    bounded: bool = True,
    head_dim: int = 8,
) -> ModelConfig:
    """ "lookup": Fast BLT's decoder input, patches of at most 8 if `bounded`. "encoder": as released, patches without a
    maximum, grouped-query attention. "projected": as the released 7B, k = 4 with a projection into the global model."""
    lookup, width = form == "lookup", 4 * head_dim
    kv_heads = 2 if form == "encoder" else 4
    return ModelConfig.from_dict(
        {
            "patcher": {
                **stack(width, 2, 4, 1e4, WINDOW, max_bytes),
                "threshold_nats": threshold_nats,
                "max_patch_length": 8 if lookup and bounded else None,
            },
            "encoder": {
                **stack(width, 1, kv_heads, 5e5, WINDOW, max_bytes),
                "hash_group_sizes": [3, 4, 5],
                "hash_vocab": 500,
            },
            "global_model": stack((2 if form != "projected" else 3) * width, 2, kv_heads, 5e5, None, max_patches),
            "decoder": {
                **stack(width, 2, kv_heads, 5e5, WINDOW, max_bytes),
                "input": "lookup" if lookup else "encoder",
            },
            "cross_attn_k": 4 if form == "projected" else 2,
            "block_size": block_size,
        }
    )


def tiny_model(form: str, *, seed: int = 0, bytes_per_patch: float = 4, **config: Any) -> Blt:
    """A random model whose threshold makes patches of about `bytes_per_patch` on random text."""
    torch.manual_seed(seed)
    model = Blt(tiny_config(form, **config)).eval()
    entropies = model.entropies(sample_text(600)[None])
    fields = model.config.to_dict()
    fields["patcher"]["threshold_nats"] = float(entropies.quantile(1 - 1 / bytes_per_patch))
    model.config = ModelConfig.from_dict(fields)
    return model


def tiny_checkpoint(folder: Path, form: str, **options: Any) -> Checkpoint:
    """A tiny model written to `folder` in this project's own form."""
    model = tiny_model(form, **options)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    metadata = {"prompt_format": {"translation": "en>fr or fr>en on a line, the text on the next; untrained"}}
    write_checkpoint(folder, model.config, weights, licence={}, metadata=metadata)
    return open_checkpoint(folder)


def sample_text(length: int, seed: int = 0) -> IdArray:
    """Ids of `length` bytes, BOS included, from 60 different ones."""
    return encode(np.random.default_rng(seed).integers(36, 96, length - 1, dtype=np.uint8).tobytes())

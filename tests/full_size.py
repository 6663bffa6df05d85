"""Random checkpoints in the exact form of the released models, of released or any other size.

    python -m tests.full_size FOLDER [--form 1b|7b] [--seed 0] [--shard-bytes N]

Configuration keys, tensor names, dtypes (bfloat16, hash table float32) and shards are those of the published
conversions; weights are drawn and written a few megabytes at a time. Only the patching rule is another: a random
entropy model is unsure of every byte, and at the published threshold each would be a patch. Here no entropy reaches the
threshold, and the maximum length, which the published configurations leave open, makes all patches four bytes long.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bltcli.checkpoint import hf
from bltcli.checkpoint.files import INDEX
from bltcli.checkpoint.names import expected_shapes
from bltcli.checkpoint.safetensors_map import Stream, write_safetensors
from bltcli.checkpoint.weights import CHUNK, DTYPES

SHARD_BYTES: Final = 5_000_000_000
PATCH_BYTES: Final = 4
NEVER_NATS: Final = 6.0  # above ln 260
_HASH_TABLE: Final = "model.encoder_hash_tok_embedding.weight"


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


#: Name -> configuration, parameters, tensors.
RELEASED: Final = {
    "1b": (published(2, 1024, 16, 2816, 9, 2048, 16, 5632, 25), 4_633_391_872, 510),
    "7b": (published(4, 1280, 20, 3584, 6, 4096, 32, 11008, 32), 10_653_082_624, 529),
}


def write_random(
    folder: Path, data: dict[str, Any], *, seed: int = 0, shard_bytes: int = SHARD_BYTES, patch_bytes: int = PATCH_BYTES
) -> Path:
    """Write a random checkpoint with the configuration `data` (as `published` gives it) to `folder`; a tensor larger
    than `shard_bytes` has a shard of its own. Memory: a few megabytes."""
    folder.mkdir(parents=True)
    data = {**data, "patching_threshold": NEVER_NATS, "max_patch_length": patch_bytes}
    (folder / "config.json").write_text(json.dumps(data, indent=2))
    tensors = {hf.source_names(name)[0]: shape for name, shape in expected_shapes(hf.read_config(data)).items()}
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name in sorted(tensors):
        size = math.prod(tensors[name]) * _dtype(name).itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        streams: dict[str, Stream] = {n: (_dtype(n), tensors[n], _values(n, tensors[n], seed)) for n in names}
        write_safetensors(folder / file, streams, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _dtype(name: str) -> np.dtype[Any]:
    return DTYPES["float32" if name == _HASH_TABLE else "bfloat16"]


def _values(name: str, shape: tuple[int, ...], seed: int) -> Iterator[NDArray[Any]]:
    """Norms are one; all else is normal with deviation inputs^-0.5, from a generator of its own per tensor."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    size = math.prod(shape)
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        if len(shape) == 1:
            values = np.ones(count, dtype=np.float32)
        else:
            values = rng.standard_normal(count, dtype=np.float32) * np.float32(shape[1] ** -0.5)
        yield values.astype(_dtype(name), copy=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", choices=RELEASED, default="1b")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    options = parser.parse_args()
    print(write_random(options.folder, RELEASED[options.form][0], seed=options.seed, shard_bytes=options.shard_bytes))


if __name__ == "__main__":
    main()

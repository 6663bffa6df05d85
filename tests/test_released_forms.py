"""The configurations of the released models, as published: they give exactly the published sizes. No weights needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bltcli.bundle import open_bundle
from bltcli.checkpoint import Checkpoint, hf, open_checkpoint
from bltcli.checkpoint.names import expected_shapes
from bltcli.checkpoint.safetensors_map import map_safetensors
from bltcli.pipeline import open_model
from bltcli.vocab import encode
from bltcli_export.exporter import export_checkpoint, write_tables
from tests.full_size import RELEASED, published, write_random


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


def tables_of(checkpoint: Checkpoint, path: Path, precision: Any) -> dict[str, Any]:
    write_tables(checkpoint, path, precision)
    return map_safetensors(path)


def test_random_checkpoints_have_the_released_form_in_any_size(tmp_path: Path) -> None:
    """What `tests.full_size` writes opens as a published checkpoint does, and becomes a bundle that runs."""
    data = published(2, 64, 4, 128, 2, 128, 4, 256, 2) | {"encoder_hash_byte_group_vocab": 50}
    data["patcher_config"] |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    folder = write_random(tmp_path / "checkpoint", data, shard_bytes=300_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    checkpoint = open_checkpoint(folder)
    assert checkpoint.kind == "hf"
    table = "encoder.hash_embedding.weight"
    assert {weight.dtype for name, weight in checkpoint.weights.items() if name != table} == {"bfloat16"}
    assert checkpoint.weights[table].dtype == "float32"
    deviation = checkpoint.weights["global_model.layers.1.mlp.up_proj.weight"].numpy().astype(np.float32).std()
    assert deviation == pytest.approx(128**-0.5, rel=0.05)
    byte = checkpoint.weights["encoder.embed_tokens.weight"].numpy().astype(np.float32)
    hashed = checkpoint.weights[table].numpy()
    for precision, dtype in (("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")):
        written = tables_of(checkpoint, tmp_path / precision, precision)
        assert (written["byte"].dtype.name, written["hashed"].dtype.name) == ("bfloat16", dtype)
        assert np.array_equal(written["byte"].astype(np.float32), byte)
        assert np.array_equal(written["hashed"], hashed.astype(written["hashed"].dtype))
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", precision="int8"))
    model = open_model(bundle)
    model.extend([encode(bytes(range(40)))])
    assert model.patch_starts(0) == [0, 1, *range(5, 42, 4)]

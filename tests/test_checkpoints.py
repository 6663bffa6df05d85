"""Reading and writing checkpoints: every format gives the same model, everything wrong gives one clear line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bltcli.checkpoint import Checkpoint, Weight, open_checkpoint, write_checkpoint
from bltcli.checkpoint.names import expected_shapes
from bltcli.checkpoint.safetensors_map import map_safetensors, write_safetensors
from bltcli.errors import ModelError
from bltcli.nn.loading import load_blt
from tests.helpers import FORMS, edit_json, edit_tensors, hf_logits, load_hf, random_ids
from tests.meta import save_meta_twin

IDS = random_ids(200)


@torch.no_grad()
def logits_of(checkpoint: Checkpoint) -> torch.Tensor:
    model = load_blt(checkpoint)
    return model(model.layout(IDS))


# what can be read


@pytest.mark.parametrize("hf_checkpoint", FORMS, indirect=True)
def test_own_format_gives_back_what_was_written(hf_checkpoint: Path, tmp_path: Path) -> None:
    source = open_checkpoint(hf_checkpoint)
    metadata = {"prompt_format": {"to": "<{}>"}, "training": {"steps": 3}}
    write_checkpoint(
        tmp_path / "a" / "own", source.config, source.weights, licence={"license": "mit"}, metadata=metadata
    )
    back = open_checkpoint(tmp_path / "a" / "own")
    assert (back.kind, source.kind) == ("bltcli", "hf")
    assert back.config == source.config
    assert back.licence == {"license": "mit"}
    assert back.metadata == metadata
    assert {name: w.shape for name, w in back.weights.items()} == expected_shapes(source.config)
    for name, weight in source.weights.items():
        np.testing.assert_array_equal(back.weights[name].numpy(), weight.numpy())
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["own"], "no temporary folder is left"


@pytest.mark.parametrize("hf_checkpoint", ["1b", "7b"], indirect=True)
def test_the_meta_twin_is_the_same_model(hf_checkpoint: Path, tmp_path: Path) -> None:
    twin = open_checkpoint(save_meta_twin(tmp_path / "meta", hf_checkpoint))
    source = open_checkpoint(hf_checkpoint)
    assert twin.kind == "meta"
    assert twin.config == source.config
    assert len(twin.weights["encoder.hash_embedding.weight"].parts) == 6
    assert torch.equal(logits_of(twin), logits_of(source))


def test_meta_params_and_a_sibling_entropy_model_are_read(hf_checkpoint: Path, tmp_path: Path) -> None:
    folder = save_meta_twin(tmp_path / "blt_1b", hf_checkpoint)
    (folder / "train_args.json").rename(folder / "params.json")
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    (folder / "entropy_model").rename(tmp_path / "entropy_model")
    params = tmp_path / "entropy_model" / "params.json"
    args = json.loads(params.read_text())["entropy_model"]
    params.with_name("config.json").write_text(json.dumps({"args": {**args, "sliding_window": 512}}))
    params.unlink()
    assert open_checkpoint(folder).config == open_checkpoint(hf_checkpoint).config


def test_shards_are_the_single_file(hf_checkpoint: Path, tmp_path: Path) -> None:
    load_hf(hf_checkpoint).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    sharded, single = open_checkpoint(tmp_path / "sharded"), open_checkpoint(hf_checkpoint)
    assert sharded.config == single.config
    assert torch.equal(logits_of(sharded), logits_of(single))


def test_float32_tables_beside_bfloat16_weights(hf_copy: Path) -> None:
    """The form of the published conversions."""
    file = hf_copy / "model.safetensors"
    tensors = {n: t if "hash" in n else t.bfloat16() for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    checkpoint = open_checkpoint(hf_copy)
    assert {w.dtype for n, w in checkpoint.weights.items() if n != "encoder.hash_embedding.weight"} == {"bfloat16"}
    assert checkpoint.weights["encoder.hash_embedding.weight"].dtype == "float32"
    assert checkpoint.weights["decoder.norm.weight"].numpy().dtype == ml_dtypes.bfloat16
    torch.testing.assert_close(logits_of(checkpoint), hf_logits(load_hf(hf_copy), IDS), rtol=0, atol=1e-5)
    half = load_blt(checkpoint, torch.bfloat16)
    assert torch.equal(half.decoder.lm_head.weight, tensors["lm_head.weight"])


def test_both_spellings_of_hugging_face_configurations(hf_copy: Path) -> None:
    expected = open_checkpoint(hf_copy).config
    file = hf_copy / "config.json"
    data = json.loads(file.read_text())
    for part in ("patcher_config", "encoder_config", "decoder_config", "global_config"):
        table = data[part]
        theta = table.pop("rope_parameters")["rope_theta"]
        table |= {"rope_theta": theta, "rope_scaling": {"rope_type": "default"}, "norm_eps": table.pop("rms_norm_eps")}
        for key in ("sliding_window", "head_dim", "max_position_embeddings", "hidden_act"):
            table.pop(key, None)
    data |= {"monotonicity": False, "patching_threshold_add": None, "pm_size": 0, "realtime_patching": True}
    del data["local_attention_window_len"], data["encoder_hash_byte_group_size"]
    file.write_text(json.dumps(data))
    assert open_checkpoint(hf_copy).config == expected
    assert (expected.encoder.window, expected.decoder.window, expected.patcher.window) == (512, 512, 512)


def test_null_windows_mean_none(hf_copy: Path) -> None:
    config = json.loads((hf_copy / "config.json").read_text())
    edit_json(
        hf_copy / "config.json",
        local_attention_window_len=None,
        patcher_config={**config["patcher_config"], "sliding_window": None},
    )
    found = open_checkpoint(hf_copy).config
    assert (found.encoder.window, found.decoder.window, found.patcher.window) == (None, None, None)


def test_an_empty_hugging_face_configuration_has_the_defaults_of_transformers(hf_copy: Path) -> None:
    from transformers import BltConfig

    from bltcli.checkpoint.hf import read_config

    ours, theirs = read_config({"model_type": "blt"}), BltConfig()
    for stack, part in (
        (ours.patcher, theirs.patcher_config),
        (ours.encoder, theirs.encoder_config),
        (ours.global_model, theirs.global_config),
        (ours.decoder, theirs.decoder_config),
    ):
        assert stack.hidden_size == part.hidden_size
        assert stack.num_layers == part.num_hidden_layers
        assert stack.num_heads == part.num_attention_heads
        assert stack.num_kv_heads == part.num_key_value_heads
        assert stack.intermediate_size == part.intermediate_size
        assert stack.max_positions == part.max_position_embeddings
        assert stack.rope_theta == part.rope_parameters["rope_theta"]
        assert stack.norm_eps == part.rms_norm_eps
    assert ours.patcher.threshold_nats == theirs.patching_threshold
    assert list(ours.encoder.hash_group_sizes) == theirs.encoder_hash_byte_group_size
    assert ours.encoder.hash_vocab == theirs.encoder_hash_byte_group_vocab


def test_licences_are_found(hf_copy: Path) -> None:
    assert open_checkpoint(hf_copy).licence == {}
    (hf_copy / "README.md").write_text("---\ntags: [x]\nlicense: other\nlicense_name: fair\n---\nlicense: not-this\n")
    (hf_copy / "LICENSE").write_text("...")
    assert open_checkpoint(hf_copy).licence == {"license": "other", "license_name": "fair", "files": ["LICENSE"]}


def test_the_hash_tells_checkpoints_apart(hf_copy: Path) -> None:
    first = open_checkpoint(hf_copy).sha256
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert open_checkpoint(hf_copy).sha256 == first
    retrained = load_file(hf_copy / "model.safetensors")["lm_head.weight"] + 1
    edit_tensors(hf_copy / "model.safetensors", lm_head__weight=retrained)
    second = open_checkpoint(hf_copy).sha256
    edit_json(hf_copy / "config.json", max_patch_length=8)
    assert len({first, second, open_checkpoint(hf_copy).sha256}) == 3


def test_opening_needs_no_torch(hf_checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bltcli.checkpoint import *; c = open_checkpoint(Path(sys.argv[1]));"
        "write_checkpoint(Path(sys.argv[2]), c.config, c.weights, licence={}, metadata={});"
        "bad = {'torch', 'transformers', 'onnx', 'huggingface_hub'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, hf_checkpoint, tmp_path / "own"], check=True)


# what is written


def test_a_checkpoint_is_replaced_and_other_folders_are_not(own_checkpoint: Path, tmp_path: Path) -> None:
    source = open_checkpoint(own_checkpoint)
    write_checkpoint(own_checkpoint, source.config, source.weights, licence={}, metadata={"training": 2})
    assert open_checkpoint(own_checkpoint).metadata == {"training": 2}
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("...")
    with pytest.raises(ModelError, match="not empty and is no bltcli checkpoint"):
        write_checkpoint(tmp_path / "precious", source.config, source.weights, licence={}, metadata={})


def test_wrong_weights_are_not_written(own_checkpoint: Path, tmp_path: Path) -> None:
    source = open_checkpoint(own_checkpoint)
    name = "decoder.norm.weight"
    wrong: list[tuple[object, str]] = [
        (np.ones(3, np.float32), r"is \[3\], the configuration says \[32\]"),
        (np.full(32, np.nan, np.float32), "NaN"),
        (np.ones(32), "is float64"),
    ]
    for array, message in wrong:
        with pytest.raises(ModelError, match=message):
            write_checkpoint(tmp_path / "new", source.config, {**source.weights, name: array}, licence={}, metadata={})
    without = {key: weight for key, weight in source.weights.items() if key != name}
    with pytest.raises(ModelError, match="is missing"):
        write_checkpoint(tmp_path / "new", source.config, without, licence={}, metadata={})
    with pytest.raises(ModelError, match="is unknown"):
        write_checkpoint(
            tmp_path / "new", source.config, {**source.weights, "x": np.ones(1, np.float32)}, licence={}, metadata={}
        )
    with pytest.raises(ModelError, match="reserved"):
        write_checkpoint(tmp_path / "new", source.config, source.weights, licence={}, metadata={"model": 1})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["own"]


def test_safetensors_are_read_and_written_as_the_library_does(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "c": torch.randn(2, 1, 3).half(),
        "d": torch.zeros(0, 4),
        "e": torch.tensor(2.5),
    }
    save_file(tensors, tmp_path / "theirs.safetensors")
    arrays = map_safetensors(tmp_path / "theirs.safetensors")
    write_safetensors(
        tmp_path / "ours.safetensors",
        {name: (array.dtype, array.shape, [array]) for name, array in arrays.items()},
        {"k": "v"},
    )
    back = load_file(tmp_path / "ours.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    with pytest.raises(ValueError, match="read-only"):
        arrays["a"][0, 0] = 1
    scattered = map_safetensors(tmp_path / "theirs.safetensors", scattered=True)
    assert all(np.array_equal(scattered[name], array) for name, array in arrays.items())


def test_a_weight_of_parts_is_one_array() -> None:
    parts = tuple(np.full((2, 3), i, np.float16) for i in range(3))
    weight = Weight("x", parts)
    assert (weight.shape, weight.dtype, weight.nbytes) == ((6, 3), "float16", 36)
    np.testing.assert_array_equal(weight.numpy(), np.concatenate(parts))
    with pytest.raises(ModelError, match="tensor y holds NaN or infinity"):
        Weight("y", (parts[0], np.full((1, 3), np.inf, ml_dtypes.bfloat16))).numpy()

"""Everything that can be wrong with a checkpoint ends with exit code 3 and one clear line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bltcli.checkpoint import open_checkpoint
from bltcli.checkpoint.safetensors_map import map_safetensors
from bltcli.errors import ModelError
from bltcli.nn.loading import load_blt
from tests.helpers import edit_json, edit_tensors, load_hf
from tests.meta import save_meta_twin


def refusal(path: Path) -> str:
    """The one line that opening and loading `path` ends with."""
    with pytest.raises(ModelError) as caught:
        load_blt(open_checkpoint(path))
    assert caught.value.exit_code == 3
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


Spoil = Callable[[Path], object]


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{not json")


def sub_config(folder: Path, part: str, **changes: object) -> None:
    table = json.loads((folder / "config.json").read_text())[part]
    edit_json(folder / "config.json", **{part: {**table, **changes}})


def truncate(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


def drop_patcher(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "patcher" not in n}, file)


def lose_a_shard(folder: Path) -> None:
    load_hf(folder).save_pretrained(folder / "s", max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    for file in (folder / "s").iterdir():
        file.replace(folder / file.name)
    next(folder.glob("model-00002*")).unlink()


def nan_weight(folder: Path, value: float = math.nan) -> None:
    weight = load_file(folder / "model.safetensors")["lm_head.weight"]
    weight[100, 3] = value
    edit_tensors(folder / "model.safetensors", lm_head__weight=weight)


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


REFUSALS: dict[str, tuple[Spoil, list[str]]] = {
    "config is no JSON": (no_json, ["config.json", "no JSON"]),
    "config is a list": (lambda d: (d / "config.json").write_text("[1]"), ["holds a list"]),
    "config is missing": (lambda d: (d / "config.json").unlink(), ["neither config.json nor params.json"]),
    "another model": (lambda d: edit_json(d / "config.json", model_type="llama"), ["llama"]),
    "space patching": (lambda d: edit_json(d / "config.json", patching_mode="space"), ["patching_mode", "'space'"]),
    "monotonicity": (lambda d: edit_json(d / "config.json", monotonicity=True), ["monotonicity is True"]),
    "threshold_add": (lambda d: edit_json(d / "config.json", patching_threshold_add=0.5), ["threshold_add is 0.5"]),
    "pm_size": (lambda d: edit_json(d / "config.json", pm_size=2), ["pm_size is 2"]),
    "tied": (lambda d: edit_json(d / "config.json", tie_word_embeddings=True), ["tie_word_embeddings is True"]),
    "vocabulary": (lambda d: edit_json(d / "config.json", vocab_size=300), ["vocab_size is 300", "260"]),
    "NaN threshold": (lambda d: edit_json(d / "config.json", patching_threshold=math.nan), ["threshold_nats is nan"]),
    "null threshold": (lambda d: edit_json(d / "config.json", patching_threshold=None), ["threshold_nats is None"]),
    "rope scaling": (
        lambda d: sub_config(d, "global_config", rope_scaling={"type": "yarn"}),
        ["global_config", "yarn"],
    ),
    "two epsilons": (lambda d: sub_config(d, "encoder_config", norm_eps=1e-6), ["1e-06", "1e-05", "disagree"]),
    "two k": (lambda d: edit_json(d / "config.json", cross_attn_k=3), ["cross_attn_k is 3", "2 in encoder_config"]),
    "sub-config no table": (lambda d: edit_json(d / "config.json", global_config=3), ["global_config is a int"]),
    "gelu": (lambda d: sub_config(d, "decoder_config", hidden_act="gelu"), ["decoder_config.hidden_act", "gelu"]),
    "encoder cross-attention": (
        lambda d: sub_config(d, "encoder_config", cross_attn_all_layers=True, num_hidden_layers=2),
        ["cross_attn_all_layers"],
    ),
    "wrong width": (
        lambda d: sub_config(d, "global_config", intermediate_size=128),
        ["global_transformer.layers.0", "[96, 64]", "[128, 64]"],
    ),
    "endless layers": (lambda d: sub_config(d, "global_config", num_hidden_layers=10**12), ["layers, the files only"]),
    "a text for a number": (lambda d: sub_config(d, "patcher_config", num_hidden_layers="2"), ["num_layers is '2'"]),
    "no entropy model": (drop_patcher, ["no entropy model"]),
    "missing tensor": (
        lambda d: edit_tensors(d / "model.safetensors", lm_head__weight=None),
        ["lm_head.weight is missing"],
    ),
    "unknown tensor": (
        lambda d: edit_tensors(d / "model.safetensors", model__surprise=torch.ones(3)),
        ["model.surprise is unknown"],
    ),
    "integer tensor": (
        lambda d: edit_tensors(d / "model.safetensors", lm_head__weight=torch.ones(260, 32, dtype=torch.int32)),
        ["decoder.lm_head.weight is int32", "float32"],
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ["no model.safetensors"]),
    "missing shard": (lose_a_shard, ["shard model-00002", "missing"]),
    "truncated data": (lambda d: truncate(d, 100_000), ["truncated", "header announces"]),
    "truncated header": (lambda d: truncate(d, 200), ["truncated", "header alone needs"]),
    "truncated to nothing": (lambda d: truncate(d, 3), ["no safetensors file (3 bytes"]),
    "garbage": (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 900), ["no safetensors file"]),
    "broken header": (
        lambda d: (d / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"{broken}"),
        ["broken safetensors header"],
    ),
    "NaN weight": (nan_weight, ["decoder.lm_head.weight", "NaN"]),
    "infinite weight": (lambda d: nan_weight(d, -math.inf), ["decoder.lm_head.weight", "infinity"]),
    "pickle": (only_a_pickle, ["pickle", "bltcli convert {path} -o OUT --allow-pickle"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_hugging_face_folders_are_refused_with_one_clear_line(name: str, hf_copy: Path) -> None:
    spoil, fragments = REFUSALS[name]
    spoil(hf_copy)
    line = refusal(hf_copy)
    for fragment in fragments:
        assert fragment.format(path=hf_copy) in line


def test_paths_that_are_no_folder_are_refused(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "give the folder" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"format_version": 2}, "format_version is 2, this bltcli reads up to 1; update bltcli"),
        ({"format_version": ...}, "format_version is None"),
        ({"model": ...}, "model is missing"),
        ({"licence": "MIT"}, "licence is missing or no table"),
        ({"model": {"patcher": {}}}, "missing"),
    ],
)
def test_own_folders_are_refused_with_one_line(changes: dict[str, object], fragment: str, own_checkpoint: Path) -> None:
    edit_json(own_checkpoint / "config.json", **changes)
    assert fragment in refusal(own_checkpoint)


def test_own_configurations_are_read_strictly(own_checkpoint: Path) -> None:
    model = json.loads((own_checkpoint / "config.json").read_text())["model"]
    edit_json(own_checkpoint / "config.json", model={**model, "colour": 1})
    assert "unknown key 'colour'" in refusal(own_checkpoint)
    del model["decoder"]["window"]
    edit_json(own_checkpoint / "config.json", model=model)
    assert "decoder: missing key 'window'" in refusal(own_checkpoint)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"rope_theta": ...}, "lack rope_theta"),
        ({"n_heads_global": ...}, "lack n_heads_global"),
        ({"n_heads_global": "4"}, "n_heads_global is '4'"),
        ({"cross_attn_nheads": 2}, "cross_attn_nheads is 2, only 4"),
        ({"cross_attn_window_encoder": 512}, "cross_attn_window_encoder is 512"),
        ({"patching_mode": "space"}, "patching_mode is 'space'"),
        ({"encoder_hash_byte_group_size": [3, 4, 5, 6]}, "6 hash tables"),
        ({"encoder_hash_byte_group_size": None}, "encoder_hash_byte_group_size"),
    ],
)
def test_meta_folders_are_refused_with_one_clear_line(
    change: dict[str, object], fragment: str, hf_checkpoint: Path, tmp_path: Path
) -> None:
    folder = save_meta_twin(tmp_path / "meta", hf_checkpoint)
    args = json.loads((folder / "config.json").read_text())["args"] | change
    edit_json(folder / "config.json", args={key: value for key, value in args.items() if value is not ...})
    assert fragment in refusal(folder)


def test_a_missing_or_pickled_entropy_model_is_named(hf_checkpoint: Path, tmp_path: Path) -> None:
    folder = save_meta_twin(tmp_path / "a" / "meta", hf_checkpoint)
    entropy = folder / "entropy_model"
    (entropy / "model.safetensors").rename(entropy / "consolidated.pth")
    assert f"bltcli convert {folder} -o OUT --allow-pickle" in refusal(folder)
    (entropy / "consolidated.pth").unlink()
    assert "entropy model's weights are missing" in refusal(folder)
    shutil.rmtree(entropy)
    assert f"put its params.json and weights in {entropy}" in refusal(folder)


def header_file(path: Path, header: dict[str, object], data: bytes) -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


@pytest.mark.parametrize(
    ("offsets", "shape", "dtype", "message"),
    [
        ([0, 8], [2], "F32", "starts at byte 4"),  # overlaps the second tensor
        ([4, 12], [2], "F32", "starts at byte 4 of the data, expected 0"),
        ([0, 4], [2], "F32", "has 4 bytes, its shape .2. needs 8"),
        ([0, 4], [-1], "F32", "expected 0"),
        ([0, 4], [4], "F8_E4M3", "is F8_E4M3, which bltcli does not read"),
        ([0], [1], "F32", "broken safetensors header"),
        ([-4, 4], [2], "F32", "starts at byte -4"),
    ],
)
def test_hostile_safetensors_headers_are_refused(
    offsets: list[int], shape: list[int], dtype: str, message: str, tmp_path: Path
) -> None:
    header = {
        "a": {"dtype": dtype, "shape": shape, "data_offsets": offsets},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    }
    with pytest.raises(ModelError, match=message):
        map_safetensors(header_file(tmp_path / "x.safetensors", header, bytes(8)))

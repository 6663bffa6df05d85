"""A second phase from an existing checkpoint: its entropy model is kept, said to be kept, and no other is taken."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bltcli.checkpoint import open_checkpoint
from bltcli.checkpoint.identity import check_patcher, patcher_sha256
from bltcli.errors import ModelError, UsageError
from bltcli.train.config import TrainConfig, load_config
from bltcli.train.data import Corpus
from bltcli.train.overlap import RUN, Overlap, normal
from bltcli.train.recipe import train
from bltcli.train.start import take_start
from tests.toy_training import quiet, with_blocks


@pytest.fixture
def first(recipe: Path, data_root: Path, tmp_path: Path) -> Path:
    """Checkpoint of a whole run on next bytes."""
    train(load_config(recipe), data_root, tmp_path / "first", resume=False, show=quiet)
    return tmp_path / "first" / "checkpoint"


@pytest.fixture
def blocks(first: Path, recipe: Path) -> TrainConfig:
    with_blocks(recipe)
    return load_config(recipe)


def test_a_second_phase_keeps_the_entropy_model_and_trains_the_rest(
    first: Path, blocks: TrainConfig, data_root: Path, tmp_path: Path
) -> None:
    train(blocks, data_root, tmp_path / "out", resume=False, show=quiet, init=first)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out" / "checkpoint", first))
    same = {name for name in ours if torch.equal(ours[name], theirs[name])}
    assert {name for name in ours if name.startswith("patcher.")} <= same
    assert "decoder.layers.0.mlp.up_proj.weight" not in same
    new, old = open_checkpoint(tmp_path / "out" / "checkpoint"), open_checkpoint(first)
    assert new.config == dataclasses.replace(old.config, block_size=8)
    assert new.metadata["training"]["patcher_sha256"] == old.metadata["training"]["patcher_sha256"]
    assert new.metadata["training"]["init"]["sha256"] == old.sha256
    assert new.metadata["training"]["patcher"]["steps"] == 6
    phases = {json.loads(line)["phase"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()}
    assert phases == {"blt"}


def test_a_second_phase_is_resumed_with_its_own_entropy_model_only(
    first: Path, blocks: TrainConfig, data_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    figures = train(blocks, data_root, out, resume=False, show=quiet, init=first)
    assert train(blocks, data_root, out, resume=True, show=quiet, init=first) == figures
    config = json.loads((first / "config.json").read_text())
    config["model"]["patcher"]["threshold_nats"] += 0.25
    del config["training"]["patcher_sha256"]
    (first / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="begun with another entropy model"):
        train(blocks, data_root, out, resume=True, show=quiet, init=first)


def test_another_geometry_is_refused(first: Path, blocks: TrainConfig, data_root: Path, tmp_path: Path) -> None:
    decoder = dataclasses.replace(blocks.model.decoder, num_layers=2)
    config = dataclasses.replace(blocks, model=dataclasses.replace(blocks.model, decoder=decoder))
    with pytest.raises(UsageError, match=r"model\.decoder\.num_layers is 2 in the recipe and 1 in the checkpoint"):
        train(config, data_root, tmp_path / "out", resume=False, show=quiet, init=first)
    assert not (tmp_path / "out").exists()


def test_windows_are_the_recipes(first: Path, blocks: TrainConfig) -> None:
    shorter = {part: dataclasses.replace(getattr(blocks.model, part), window=40) for part in ("encoder", "decoder")}
    config = dataclasses.replace(blocks, model=dataclasses.replace(blocks.model, **shorter))
    found = take_start(config, first, torch.device("cpu")).model.config
    assert (found.encoder.window, found.decoder.window) == (40, 40)
    assert open_checkpoint(first).config.decoder.window == 64


# identity


def test_a_checkpoint_with_another_entropy_model_or_threshold_is_refused(first: Path) -> None:
    check_patcher(open_checkpoint(first))
    weights, config = load_file(first / "model.safetensors"), (first / "config.json").read_text()
    changed = {**weights, "patcher.norm.weight": weights["patcher.norm.weight"] + 1}
    save_file(changed, first / "model.safetensors")
    with pytest.raises(ModelError, match="is not the one it was trained with"):
        check_patcher(open_checkpoint(first))
    save_file({**weights, "decoder.norm.weight": weights["decoder.norm.weight"] + 1}, first / "model.safetensors")
    check_patcher(open_checkpoint(first))
    data = json.loads(config)
    data["model"]["patcher"]["threshold_nats"] += 0.25
    (first / "config.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="is not the one it was trained with"):
        check_patcher(open_checkpoint(first))


def test_the_identity_of_an_entropy_model_does_not_depend_on_the_precision_it_is_stored_in(first: Path) -> None:
    before = open_checkpoint(first)
    identity = patcher_sha256(before.config.patcher, before.weights)
    assert identity == before.metadata["training"]["patcher_sha256"]
    save_file(
        {name: t.float() for name, t in load_file(first / "model.safetensors").items()}, first / "model.safetensors"
    )
    after = open_checkpoint(first)
    assert after.weights["patcher.norm.weight"].dtype == "float32"
    assert patcher_sha256(after.config.patcher, after.weights) == identity


# data


def test_a_long_run_of_a_test_line_is_found_wherever_it_stands_and_a_short_one_is_not() -> None:
    rng = random.Random(0)
    letters = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=200)) for _ in range(3)]
    overlap = Overlap([letters[0].encode(), b"", b"..."])
    for start in range(0, 160, 7):
        run = letters[0][start : start + RUN].upper()
        for place in range(0, 60, 3):
            before, after = f"{letters[1][:place]} {run[:11]}, ", f" {letters[2]}"
            assert f"{before}{run[11:]}{after}".encode() in overlap
            assert f"{before}{run[11:20]}1{run[21:]}{after}".encode() not in overlap
    assert b"" not in overlap
    assert b"anything" not in Overlap([])


def test_a_text_that_repeats_an_excluded_line_is_left_out_on_either_side(recipe: Path, data_root: Path) -> None:
    assert normal("L'État, c’est\tMOI!".encode()) == "létatcestmoi"
    data = load_config(recipe).data
    (data_root / "test.txt").write_text("The cat  number 3 sees the DOG.\nle chat numéro 5 voit le chien\n")
    whole = Corpus(data, data_root, "train").sources[0].texts
    left = Corpus(dataclasses.replace(data, exclude=("test.txt",)), data_root, "train").sources[0].texts
    gone = {english.split()[3] for english, _ in whole} - {english.split()[3] for english, _ in left}
    held = {english.split()[3] for english, _ in Corpus(data, data_root, "dev").sources[0].texts}
    assert gone == {b"3", b"5"} - held
    assert gone

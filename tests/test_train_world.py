"""Several processes are one run: the same losses, whichever process takes which batch and whatever is made ahead."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from bltcli.commands.train import command
from bltcli.errors import UsageError
from bltcli.train.config import load_config
from bltcli.train.recipe import train
from bltcli.train.run import Run
from bltcli.train.world import join_world
from tests.toy_training import quiet, with_blocks


@pytest.fixture
def recipe(recipe: Path) -> Path:
    with_blocks(recipe)
    return recipe


def rows(out: Path) -> list[dict[str, float]]:
    """The log without its timings."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("phase", "bytes_per_s")} for r in records]


def test_two_processes_have_the_losses_of_one_with_twice_the_batches(
    recipe: Path, data_root: Path, tmp_path: Path
) -> None:
    config = load_config(recipe)
    optimiser = dataclasses.replace(config.optimiser, accumulate=2)
    train(dataclasses.replace(config, optimiser=optimiser), data_root, tmp_path / "one", resume=False, show=quiet)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bltcli"]
    arguments = ["train", str(recipe), "--data", str(data_root), "--out", str(tmp_path / "two"), "--device", "cpu"]
    done = subprocess.run([*launcher, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 12
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert done.stderr.count("threshold") == 1  # the first process alone speaks
    weights = [load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("one", "two")]
    for name in weights[0]:  # a bfloat16 may round either way
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-2, atol=1e-3)


def test_batches_made_ahead_are_the_same_batches(
    recipe: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(recipe)
    train(config, data_root, tmp_path / "plain", resume=False, show=quiet)
    make = Run.trainer

    def ahead(*arguments: object) -> object:
        trainer = make(*arguments)  # type: ignore[arg-type]
        trainer.ahead = True
        return trainer

    monkeypatch.setattr(Run, "trainer", ahead)
    train(config, data_root, tmp_path / "ahead", resume=False, show=quiet)
    assert rows(tmp_path / "ahead") == rows(tmp_path / "plain")


def test_a_run_whose_time_is_up_is_saved_and_goes_on_to_the_same_end(
    recipe: Path, data_root: Path, tmp_path: Path
) -> None:
    config = load_config(recipe)
    figures = train(config, data_root, tmp_path / "whole", resume=False, show=quiet)
    pieces = 0
    while (
        ended := train(config, data_root, tmp_path / "pieces", resume=True, show=quiet, until=time.monotonic())
    ) is None:
        pieces += 1
        assert not (tmp_path / "pieces" / "checkpoint").exists()
    assert pieces == 5 + 5  # the last step of a phase does not stop the run
    assert ended == figures
    assert rows(tmp_path / "pieces") == rows(tmp_path / "whole")
    assert math.isfinite(rows(tmp_path / "pieces")[-1]["bits_per_byte"])


def test_the_command_stops_in_time_and_says_how_to_go_on(recipe: Path, data_root: Path, tmp_path: Path) -> None:
    arguments = [str(recipe), "--data", str(data_root), "--out", str(tmp_path / "out"), "--minutes", "0.0001"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "go on with --resume" in result.stderr


@pytest.mark.gpu
def test_a_gpu_has_the_losses_of_a_cpu(recipe: Path, data_root: Path, tmp_path: Path) -> None:
    config = load_config(recipe)
    train(config, data_root, tmp_path / "cpu", resume=False, show=quiet)
    with join_world("cuda") as world:
        train(config, data_root, tmp_path / "gpu", resume=False, show=quiet, world=world)
        assert train(config, data_root, tmp_path / "gpu", resume=True, show=quiet, world=world) is not None
    for ours, theirs in zip(rows(tmp_path / "gpu"), rows(tmp_path / "cpu"), strict=True):
        assert ours["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], abs=0.02)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="PyTorch finds no GPU here"), join_world("cuda"):
        pass

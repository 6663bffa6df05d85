"""What takes a run to a borrowed machine and home again: parts, pieces of minutes, the recipes; all on a CPU here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bltcli.checkpoint import open_checkpoint
from bltcli.checkpoint.names import expected_shapes
from bltcli.errors import UsageError
from bltcli.train.config import load_config
from bltcli.train.data import Corpus
from tests.toy_training import RECIPE, with_blocks, write_root

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, Path]:
    """A toy recipe with blocks and the parts of its data."""
    recipe = tmp_path / "recipe.toml"
    with_blocks(recipe)
    root = write_root(tmp_path / "data")
    (root / "unread.txt").write_text("of no recipe")
    done = script("parts.py", "write", root, tmp_path / "parts", "--mb", "0.0005", "--recipe", recipe)
    assert done.returncode == 0, done.stderr
    return recipe, tmp_path / "parts"


def test_parts_are_small_and_together_the_files_that_the_recipe_reads(
    packed: tuple[Path, Path], tmp_path: Path
) -> None:
    files = sorted(packed[1].glob("part.*"))
    assert len(files) > 1
    assert all(file.stat().st_size <= 500 for file in files)
    assert script("parts.py", "read", packed[1], tmp_path / "again").returncode == 0
    read = sorted(str(f.relative_to(tmp_path / "again")) for f in (tmp_path / "again").rglob("*") if f.is_file())
    assert read == load_config(packed[0]).data.paths
    assert all((tmp_path / "again" / f).read_bytes() == (tmp_path / "data" / f).read_bytes() for f in read)


@pytest.mark.parametrize("harm", ["changed", "missing", "unfinished"])
def test_damaged_parts_are_refused_in_one_line(packed: tuple[Path, Path], tmp_path: Path, harm: str) -> None:
    part = packed[1] / ("parts.json" if harm == "unfinished" else "part.001")
    if harm == "changed":
        part.write_bytes(part.read_bytes()[::-1])
    else:
        part.unlink()
    done = script("train_gpu.py", packed[0], "--data-parts", packed[1], "--out", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.startswith("train_gpu: ")
    assert done.stderr.count("\n") == 1


def test_a_run_goes_from_machine_to_machine_and_ends_with_a_checkpoint(
    packed: tuple[Path, Path], tmp_path: Path
) -> None:
    common = (packed[0], "--data-parts", packed[1], "--device", "cpu")
    first = script("train_gpu.py", *common, "--out", tmp_path / "a", "--minutes", "0", "--give", tmp_path / "home")
    assert first.returncode == 0, first.stderr
    assert "stopped and saved" in first.stdout
    assert not (tmp_path / "a" / "checkpoint").exists()
    second = script(
        "train_gpu.py", *common, "--out", tmp_path / "b", "--take", tmp_path / "home", "--give", tmp_path / "end",
        "--peak-tflops", "1",
    )  # fmt: skip
    assert second.returncode == 0, second.stderr
    assert "bytes/s" in second.stdout
    assert "MFU" in second.stdout
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6] * 2  # the first step was taken on the first machine
    assert script("parts.py", "read", tmp_path / "end", tmp_path / "result").returncode == 0
    assert open_checkpoint(tmp_path / "result" / "checkpoint").config.block_size == 8
    assert not (tmp_path / "result" / "data").exists()


# recipes


@pytest.mark.parametrize(("name", "low", "high"), [("small", 8, 12), ("large", 60, 120)])
def test_the_recipes_for_a_gpu_have_the_size_they_say(name: str, low: float, high: float) -> None:
    model = load_config(EXAMPLES / f"train-gpu-{name}.toml").model
    millions: dict[str, float] = {}
    for tensor, shape in expected_shapes(model).items():
        part = tensor.split(".")[0]
        millions[part] = millions.get(part, 0) + int(np.prod(shape)) / 1e6
    assert low <= sum(millions.values()) <= high
    assert millions["global_model"] > 0.6 * sum(millions.values())
    assert model.block_size == 16


def test_a_recipe_with_a_base_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(RECIPE)
    (tmp_path / "recipe.toml").write_text('base = "base.toml"\n[data]\nseed = 9\n[model.decoder]\nnum_layers = 3\n')
    config, base = load_config(tmp_path / "recipe.toml"), load_config(tmp_path / "base.toml")
    assert (config.data.seed, config.model.decoder.num_layers) == (9, 3)
    assert (config.data.sources, config.model.encoder) == (base.data.sources, base.model.encoder)
    (tmp_path / "third.toml").write_text('base = "recipe.toml"\n[data]\nseed = 10\n')
    third = load_config(tmp_path / "third.toml")
    assert (third.data.seed, third.model.decoder.num_layers) == (10, 3)
    (tmp_path / "base.toml").write_text('base = "third.toml"\n' + RECIPE)
    with pytest.raises(UsageError, match=r"'base\.toml'; it must name another recipe"):
        load_config(tmp_path / "base.toml")
    (tmp_path / "lost.toml").write_text('base = "nowhere.toml"\n')
    with pytest.raises(UsageError, match=r"nowhere\.toml: No such file"):
        load_config(tmp_path / "lost.toml")


def test_test_sets_hold_only_what_no_run_is_trained_on(recipe: Path, data_root: Path, tmp_path: Path) -> None:
    english, french = (data_root / f"train/toy.en-fr.{language}" for language in ("en", "fr"))
    held = {pair[0]: pair for pair in Corpus(load_config(recipe).data, data_root, "dev").sources[0].texts}
    known = Corpus(load_config(recipe).data, data_root, "train").sources[0].texts[0][1]
    again, other = list(held)[:2]
    for file, line in ((english, again), (french, known)):  # a held out text, with a partner that is trained on
        file.write_bytes(file.read_bytes() + line + b"\n")
    done = script("held_out.py", recipe, "--data", data_root, "--out", tmp_path / "held", "--least", "1")
    assert done.returncode == 0, done.stderr
    lines = [(tmp_path / "held" / f"pairs.{language}").read_bytes().splitlines() for language in ("en", "fr")]
    pairs = set(zip(*lines, strict=True))
    assert pairs == set(held.values())
    assert held[other] in pairs
    assert (again, known) not in pairs


def test_lines_of_test_sets_that_texts_repeat_are_counted(recipe: Path, data_root: Path, tmp_path: Path) -> None:
    prose = data_root / "lm" / "toy.txt"
    long = [b"Paragraph %d is longer than forty letters and digits, as it has to be here." % n for n in range(9)]
    prose.write_bytes(prose.read_bytes() + b"\n\n" + b"\n\n".join(long) + b"\n")
    data = load_config(recipe).data
    held = [pair[0] for pair in Corpus(data, data_root, "dev").sources[0].texts]
    pairs, paragraphs = (source.texts for source in Corpus(data, data_root, "train").sources)
    part = next(text[0] for text in paragraphs if text[0] in long)[3:-8]
    file = tmp_path / "set.en"
    lines = [pairs[0][0].upper() + b" !", b"He said: " + part + b"!", part[:40], held[0], b"", held[1]]
    file.write_bytes(b"\n".join(lines) + b"\n")
    done = script("overlap.py", recipe, "--data", data_root, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{file}: 5 lines, 1 repeated, 1 share a run of 40\n"

"""scripts/read_before.py: a new decoder layer that reads the row before a masked one, and leaves next bytes alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from bltcli.checkpoint import open_checkpoint
from bltcli.nn.loading import load_blt
from bltcli.train.config import load_config
from bltcli.train.recipe import train
from tests.tiny import sample_text
from tests.toy_training import quiet, with_blocks

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPTS / script), *map(str, arguments)], capture_output=True, text=True)


def test_masked_rows_read_the_row_before_and_next_bytes_stay(recipe: Path, data_root: Path, tmp_path: Path) -> None:
    with_blocks(recipe)
    train(load_config(recipe), data_root, tmp_path / "run", resume=False, show=quiet)
    source, deep, out = tmp_path / "run" / "checkpoint", tmp_path / "deep", tmp_path / "out"
    assert run("deepen.py", source, deep, "--part", "decoder", "--layers", 2).returncode == 0
    done = run("read_before.py", recipe, deep, out, "--data", data_root, "--layer", 1, "--steps", 80)
    assert done.returncode == 0, done.stderr
    shares = [[float(word.rstrip("%,")) for word in line.split() if "%" in word] for line in done.stdout.splitlines()]
    assert max(shares[0]) < 40
    assert min(shares[-1]) > 80
    ids = sample_text(90)[None]
    expected, found = (
        model(model.layout(ids)).softmax(-1) for model in (load_blt(open_checkpoint(x)) for x in (source, out))
    )
    assert float((found - expected).abs().sum(-1).mean().detach()) < 0.2
    before, after = (open_checkpoint(x).weights for x in (deep, out))
    changed = {name for name in before if not np.array_equal(before[name].numpy(), after[name].numpy())}
    assert changed == {f"decoder.layers.1.self_attn.{part}_proj.weight" for part in "qkvo"}
    refused = run("read_before.py", recipe, deep, tmp_path / "no", "--data", data_root, "--layer", 2)
    assert refused.returncode == 2
    assert "--layer is 2; the decoder has 2 layers" in refused.stderr
    assert not (tmp_path / "no").exists()

"""scripts/deepen.py: more layers, the same model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bltcli.checkpoint import open_checkpoint
from bltcli.nn.loading import load_blt
from tests.tiny import sample_text, tiny_checkpoint

SCRIPT = Path(__file__).parents[1] / "scripts" / "deepen.py"


def deepen(source: Path, out: Path, part: str, layers: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(source), str(out), "--part", part, "--layers", str(layers)]
    return subprocess.run(command, capture_output=True, text=True)


@torch.no_grad()
@pytest.mark.parametrize("part", ["global_model", "decoder"])
@pytest.mark.parametrize("form", ["lookup", "encoder"])
def test_a_deepened_model_computes_the_same_and_has_something_to_learn_with(
    tmp_path: Path, form: str, part: str
) -> None:
    source = tiny_checkpoint(tmp_path / "source", form)
    layers = getattr(source.config, part).num_layers
    assert deepen(source.path, tmp_path / "deep", part, layers + 2).returncode == 0
    deep = open_checkpoint(tmp_path / "deep")
    assert getattr(deep.config, part).num_layers == layers + 2
    ids = sample_text(90)[None]
    expected, found = (model(model.layout(ids)) for model in (load_blt(source), load_blt(deep)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    new = deep.weights[f"{part}.layers.{layers + 1}.mlp.up_proj.weight"].numpy().astype(np.float32)
    assert 0.5 < new.std() * new.shape[1] ** 0.5 < 2
    refused = deepen(source.path, tmp_path / "no", part, layers)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert f"the {part.replace('_', ' ')} has {layers} already" in refused.stderr
    assert not (tmp_path / "no").exists()

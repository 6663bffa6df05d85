"""What --dry-run announces is what comes about, and needs no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bltcli.bundle import TABLES, open_bundle
from bltcli.checkpoint.opening import open_shapes
from bltcli.errors import ModelError
from bltcli.graphs import GRAPHS
from bltcli.pipeline import open_model
from bltcli_export.exporter import export_checkpoint
from bltcli_export.plan import PRECISIONS, plan
from tests.cli_support import bltcli
from tests.full_size import RELEASED
from tests.meta import save_meta_twin
from tests.tiny import sample_text, tiny_checkpoint


def test_files_have_the_announced_sizes_at_every_precision(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "encoder")
    components = {component.name: component for component in plan(checkpoint, 100)}
    for precision in PRECISIONS:
        bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / precision, precision=precision, check=False))
        sizes = {name: entry["bytes"] for name, entry in bundle.manifest["files"].items()}
        assert 0 <= sizes[TABLES] - components[TABLES].file_bytes[precision] < 1000
        for name in GRAPHS:
            found = sizes[f"{name}.onnx"] + sizes[f"{name}.onnx.data"]
            nodes = 150_000  # names, shapes, and the gaps that align tensors
            assert 0 <= found - components[name].file_bytes[precision] < nodes, (precision, name)
    assert sum(c.parameters for c in components.values()) == sum(w.parts[0].size for w in checkpoint.weights.values())


@pytest.mark.parametrize("context", [100, 900, 2000])
def test_caches_hold_what_is_announced_at_most(tmp_path: Path, context: int) -> None:
    # patches of eight bytes: as many as are announced of a text of half that length
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "lookup", bytes_per_patch=1e9)
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp16", check=False))
    announced = {component.name: component.cache_bytes["fp16"] for component in plan(checkpoint, context)}
    announced["global"] = plan(checkpoint, context // 2)[2].cache_bytes["fp16"]
    model, ids = open_model(bundle), sample_text(context)
    most = dict.fromkeys(GRAPHS, 0)
    for start in range(0, context, 100):
        model.extend([ids[start : start + 100]])
        for name in GRAPHS:
            held = sum(model.engines[name].buffers[past].nbytes for past in bundle.specs[name].state)
            most[name] = max(most[name], held)
    least = {component.name: component.cache_bytes["fp16"] for component in plan(checkpoint, 1)}  # by rounding alone
    for name in GRAPHS:
        assert 0.5 * (announced[name] - least[name]) <= most[name] <= announced[name], name
        assert most[name] > 0


@pytest.mark.parametrize("form", RELEASED)
def test_a_published_configuration_alone_is_enough(tmp_path: Path, form: str) -> None:
    data, parameters, _ = RELEASED[form]
    (tmp_path / "config.json").write_text(json.dumps(data))
    components = {component.name: component for component in plan(open_shapes(tmp_path), 4096)}
    assert sum(component.parameters for component in components.values()) == parameters
    sizes = {name: component.file_bytes for name, component in components.items()}
    assert sizes["global"]["int4"] < sizes["global"]["int8"] < sizes["global"]["fp16"] < sizes["global"]["fp32"]
    assert sizes["global"]["fp32"] / sizes["global"]["int8"] == pytest.approx(32 / 8.25, rel=0.01)
    assert len(set(sizes["patcher"].values())) == 1, "the patcher is float32 at every precision"
    done = bltcli("export", str(tmp_path), "--dry-run", "--context", "8000")
    assert f"{parameters:,}" in done.stdout.decode()
    assert "memory at 8,000 bytes, 2,000 patches" in done.stdout.decode()
    assert "export, checking against PyTorch" in done.stdout.decode()
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_weights_that_are_there_are_looked_at_and_meta_folders_need_them(tmp_path: Path, hf_checkpoint: Path) -> None:
    assert open_shapes(hf_checkpoint).kind == "hf"
    meta = save_meta_twin(tmp_path / "meta", hf_checkpoint)
    assert open_shapes(meta).kind == "meta"
    for file in meta.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match="weights are missing"):
        open_shapes(meta)

"""Export: the graphs are the model, the gate can fail, nothing half-written stays."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from bltcli.bundle import FORMAT_VERSION, GOLDEN, MANIFEST, open_bundle
from bltcli.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from bltcli.errors import ModelError, UsageError
from bltcli.graphs import GRAPHS, Precision
from bltcli.pipeline import open_model
from bltcli_export import exporter, parity
from bltcli_export.exporter import dry_run, export_checkpoint
from bltcli_export.golden import write_golden
from tests.tiny import sample_text, tiny_checkpoint, tiny_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return tiny_checkpoint(tmp_path / "checkpoint", "lookup")


@pytest.mark.parametrize("form", ["lookup", "encoder", "projected"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_graph_passes_the_gate_against_torch(tmp_path: Path, form: str, precision: Precision) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", form)
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", precision=precision))
    record = bundle.manifest["parity"]
    assert record["checked"]
    assert record["against"] == "torch model"
    assert {what.split()[0] for what in record["differences"]} == set(GRAPHS)
    assert all(difference <= record["tolerance"] for difference in record["differences"].values())
    assert record["calls"] > 50


def test_graphs_are_standard_onnx_with_the_contract_io(tmp_path: Path, checkpoint: Checkpoint) -> None:
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp32"))
    forms = [*bundle.graph_paths.items(), ("decoder", bundle.device_paths["decoder"])]
    for (name, path), spec in zip(forms, [*bundle.specs.values(), bundle.device_specs["decoder"]], strict=True):
        assert spec.name == name
        onnx.checker.check_model(str(path))
        model = onnx.load(path, load_external_data=False)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 24)]
        assert model.ir_version == 12
        assert [i.name for i in model.graph.input] == [t.name for t in spec.inputs]
        assert {n.domain for n in model.graph.node} == {""}


def test_a_graph_that_is_not_the_model_fails_the_export_and_leaves_nothing(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bltcli_export.decoder.rms_norm", lambda g, x, weight, eps: x)
    with pytest.raises(ModelError, match=r"parity check failed: decoder logits .* tolerance 1e-04"):
        export_checkpoint(checkpoint, tmp_path / "out" / "bundle", precision="fp32")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_choosing_form_that_chooses_otherwise_fails_the_export(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bltcli_export.choosing.NEVER_GENERATED", ())
    with pytest.raises(ModelError, match=r"parity check failed: decoder (best|confidence|certainty) .*"):
        export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp32")


def test_golden_outputs_stand_in_for_torch(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_golden(checkpoint.path)
    monkeypatch.setitem(sys.modules, "torch", None)
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp32"))
    assert bundle.manifest["parity"]["against"] == "golden outputs"
    chosen = {"decoder logits, choosing", "decoder best", "decoder confidence", "decoder certainty"}
    assert set(bundle.manifest["parity"]["differences"]) == {"entropy", "states", "cross_kv", "logits", *chosen}
    assert (bundle.path / GOLDEN).is_file()


@pytest.mark.parametrize("module", ["patcher", "encoder", "global_model", "decoder"])
def test_golden_outputs_notice_one_wrong_weight_in_each_graph(tmp_path: Path, module: str) -> None:
    write_golden(tiny_checkpoint(tmp_path / "right", "lookup").path)
    model = tiny_model("lookup")
    weights = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    weights[f"{module}.layers.0.mlp.down_proj.weight"][0] += 0.05
    write_checkpoint(tmp_path / "wrong", model.config, weights, licence={}, metadata={})
    (tmp_path / "right" / GOLDEN).rename(tmp_path / "wrong" / GOLDEN)
    with pytest.raises(ModelError, match="parity check failed"):
        export_checkpoint(open_checkpoint(tmp_path / "wrong"), tmp_path / "bundle", precision="fp32")


def test_without_torch_the_check_is_refused_or_left_out_on_record(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'bltcli\[torch\]', or export with --no-check"):
        export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp32")
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp32", check=False))
    assert bundle.manifest["parity"] == {"checked": False}


def test_sixteen_bit_graphs_hold_sixteen_bit_weights_but_the_patcher(tmp_path: Path, checkpoint: Checkpoint) -> None:
    full, half = (
        open_bundle(export_checkpoint(checkpoint, tmp_path / p, precision=p, check=False)) for p in ("fp32", "fp16")
    )
    for name in GRAPHS:
        ratio = full.weight_bytes[name] / half.weight_bytes[name]
        assert ratio == (1 if name == "patcher" else 2)
    ids = sample_text(200)
    difference = open_model(full).extend([ids[:100]]) - open_model(half).extend([ids[:100]])
    assert 0 < np.abs(difference).max() < 0.1
    boundaries = []
    for bundle in (full, half):
        model = open_model(bundle)
        model.extend([ids[:100]])
        model.extend([ids[100:]])
        boundaries.append(model.patch_starts(0))
    assert boundaries[0] == boundaries[1]


def test_bf16_is_refused_by_the_cpu_engine_and_runs_in_torch(tmp_path: Path, checkpoint: Checkpoint) -> None:
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", precision="bf16", check=False))
    with pytest.raises(ModelError, match="no bfloat16 kernels; export with --precision fp32"):
        open_model(bundle)
    assert np.isfinite(open_model(bundle, engine="torch").extend([sample_text(20)])).all()


def test_the_dry_run_says_what_the_export_writes(tmp_path: Path, checkpoint: Checkpoint) -> None:
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp16", check=False))
    rows = {row.name: row for row in dry_run(checkpoint, "fp16")}
    assert {name: rows[name].bytes for name in GRAPHS} == bundle.weight_bytes
    tables = rows["byte table"].bytes + rows["hashed table"].bytes
    assert 0 <= (bundle.path / "tables.safetensors").stat().st_size - tables < 1000


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path, checkpoint: Checkpoint) -> None:
    precious = tmp_path / "home" / "letter.txt"
    precious.parent.mkdir()
    precious.write_text("dear")
    with pytest.raises(UsageError, match="exists and is no bundle"):
        export_checkpoint(checkpoint, precious.parent, precision="fp32", check=False)
    assert [p.name for p in precious.parent.iterdir()] == ["letter.txt"]
    export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp32", check=False)
    export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp16", check=False)
    assert open_bundle(tmp_path / "bundle").precision == "fp16"


def test_an_interrupted_export_leaves_no_half_bundle(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "write_tables", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint, tmp_path / "out" / "bundle", precision="fp32", check=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_named_before_anything_is_written(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(exporter.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match="1,000 bytes free, the bundle needs"):
        export_checkpoint(checkpoint, tmp_path / "out" / "bundle", precision="fp32", check=False)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_check_that_memory_does_not_hold_is_refused_before_anything_is_written(
    tmp_path: Path, checkpoint: Checkpoint, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds torch's weights and the graphs', which ONNX Runtime's CPU widens; not the tables."""
    graphs = {p: sum(row.bytes for row in exporter.dry_run(checkpoint, p)[:4]) for p in ("fp32", "int8")}
    needed = (graphs["fp32"] + graphs["int8" if precision == "int8" else "fp32"]) * 6 // 5
    monkeypatch.setattr(exporter, "available_bytes", lambda: needed - 1)
    with pytest.raises(ModelError, match=f"takes {needed:,} bytes .* {needed - 1:,} are available; .*--no-check"):
        export_checkpoint(checkpoint, tmp_path / "bundle", precision=precision)
    assert not (tmp_path / "bundle").exists()
    export_checkpoint(checkpoint, tmp_path / "bundle", precision=precision, check=False)
    monkeypatch.setattr(exporter, "available_bytes", lambda: needed)
    export_checkpoint(checkpoint, tmp_path / "bundle", precision=precision)


def _export(folder: Path, out: Path) -> None:
    export_checkpoint(open_checkpoint(folder), out, precision="fp32", check=False)


def test_processes_that_export_at_once_all_leave_one_whole_bundle(tmp_path: Path, checkpoint: Checkpoint) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_export, args=(checkpoint.path, tmp_path / "out" / "b")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b"]
    open_bundle(tmp_path / "out" / "b").verify_files()


def corrupt_weights(folder: Path) -> None:
    file = folder / "decoder.onnx.data"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)


def truncate_graph(folder: Path) -> None:
    file = folder / "global.onnx"
    file.write_bytes(file.read_bytes()[:-10])


def edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def edit_model(folder: Path) -> None:
    model = json.loads((folder / MANIFEST).read_text())["model"]
    model["decoder"]["num_layers"] = 3
    edit(folder, model=model)


def unknown_key(folder: Path) -> None:
    model = json.loads((folder / MANIFEST).read_text())["model"]
    edit(folder, model={**model, "flux": 1})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / MANIFEST).unlink(), "is no bundle: manifest.json"),
        (lambda f: (f / MANIFEST).write_text("{"), "is damaged"),
        (lambda f: (f / MANIFEST).write_text("[]"), "is damaged"),
        (lambda f: edit(f, format="zip"), "format is 'zip', expected 'bltcli-bundle'"),
        (
            lambda f: edit(f, format_version=99),
            f"format version is 99, this program reads {FORMAT_VERSION}; update bltcli",
        ),
        (lambda f: edit(f, format_version=0), "format version is 0, .* export the bundle again"),
        (lambda f: edit(f, precision="fp8"), "precision is 'fp8'"),
        (lambda f: edit(f, files={}), "no size and hash for"),
        (edit_model, "inputs of graph global are not those"),
        (unknown_key, "unknown key 'flux'"),
        (lambda f: (f / "encoder.onnx").unlink(), "encoder.onnx is missing"),
        (truncate_graph, "global.onnx has .* bytes, the manifest says"),
        (corrupt_weights, "decoder.onnx.data is not the file that was exported"),
    ],
)
def test_a_damaged_bundle_is_refused_with_one_clear_line(
    tmp_path: Path, checkpoint: Checkpoint, damage: object, message: str
) -> None:
    folder = export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp32", check=False)
    damage(folder)  # type: ignore[operator]  # one of the functions above
    with pytest.raises(ModelError, match=message) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_graph_that_disagrees_with_the_manifest_is_refused_by_the_engine(tmp_path: Path) -> None:
    """Hashes fit, the I/O table fits, the graph itself is another model's."""
    one, other = (
        export_checkpoint(tiny_checkpoint(tmp_path / f"c-{form}", form), tmp_path / form, precision="fp32", check=False)
        for form in ("lookup", "projected")
    )
    files = json.loads((one / MANIFEST).read_text())["files"]
    for name in ("decoder.onnx", "decoder.onnx.data"):
        (one / name).write_bytes((other / name).read_bytes())
        files[name] = json.loads((other / MANIFEST).read_text())["files"][name]
    edit(one, files=files)
    with pytest.raises(ModelError, match=r"decoder\.onnx: (unknown )?input \w+"):
        open_model(open_bundle(one))


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, checkpoint: Checkpoint) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file is a file, so .*bundle cannot be made"):
        export_checkpoint(checkpoint, tmp_path / "file" / "bundle", precision="fp32", check=False)

"""benchmarks/gpu.py where there is no GPU: every stage runs on the CPU or says what is absent, and none runs twice."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bltcli.bundle import Bundle, open_bundle
from bltcli.errors import ModelError
from bltcli.pipeline import open_model
from tests import full_size
from tests.cli_support import environment
from tests.conftest import TinyBundle

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The module of the stages, as the script imports it."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setenv("BLTCLI_CACHE_DIR", str(tmp_path / "cache"))
    import gpu_stages  # type: ignore[import-not-found]  # beside the script

    monkeypatch.setattr(gpu_stages, "PADDINGS", (1, 2))
    monkeypatch.setattr(gpu_stages, "TEXT", gpu_stages.TEXT[:120])
    monkeypatch.setattr(gpu_stages, "RUNS", 7)
    yield gpu_stages
    for name in ("gpu_stages", "gpu_methods", "gpu_stage", "replay", "common"):
        del sys.modules[name]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script itself."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu  # type: ignore[import-not-found]  # beside its stages

    yield gpu
    del sys.modules["gpu"]
    sys.modules.pop("gpu_report", None)


@pytest.fixture
def bundle(tiny_bundle: TinyBundle) -> Bundle:
    return tiny_bundle("lookup", block_size=16)


def rows(stages: Any, bundle: Bundle, name: str, engine: str = "") -> list[dict[str, Any]]:
    stage = stages.Stage(stage=name, model=str(bundle.path), precision="", engine=engine, prompts=2, new_bytes=12,
                         repeats=1, bytes_per_s=1e10)  # fmt: skip
    found = list(stages.STAGES[name](stage))
    json.dumps(found)
    return found


def test_the_engines_of_a_machine_without_a_gpu_are_those_of_the_cpu(stages: Any, bundle: Bundle) -> None:
    last = rows(stages, bundle, "engines")[-1]
    assert last["opened"] == ["ort-cpu", "torch"]
    assert set(last["refused"]) == {"ort-cuda", "tensorrt", "torch-cuda"}
    checks = {row["name"]: row["ok"] for row in rows(stages, bundle, "environment")[0]["checks"]}
    assert (checks["GPU"], checks["tensorrt"]) == (False, True)


def test_graphs_are_compared_with_torch_and_other_weights_show(
    stages: Any, bundle: Bundle, tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differences() -> dict[str, float]:
        found = rows(stages, bundle, "graphs", "ort-cpu")
        return {row["graph"]: row.get("relative_difference", 1.0) for row in found}

    assert set(differences()) == {"patcher", "encoder", "global", "decoder"}
    assert max(differences().values()) < 1e-5
    assert [(row["tolerance"], row["ok"]) for row in rows(stages, bundle, "graphs", "ort-cpu")] == [(1e-4, True)] * 4
    half = rows(stages, tiny_bundle("lookup", "fp16", block_size=16), "graphs", "ort-cpu")
    assert [row["tolerance"] for row in half] == [1e-4, 0.03, 0.03, 0.03]
    assert all(row["ok"] for row in half)
    other = open_model(tiny_bundle("lookup", block_size=16, seed=1))
    monkeypatch.setattr(stages.Stage, "open", lambda self: other)
    assert min(differences().values()) > 1e-3
    assert not any(row["ok"] for row in rows(stages, bundle, "graphs", "ort-cpu"))


def test_padding_that_keeps_rows_apart_is_told_from_padding_that_does_not(stages: Any, bundle: Bundle) -> None:
    found = {row["padded_to"]: row["largest_difference"] for row in rows(stages, bundle, "rows", "ort-cpu")}
    assert found[2] == 0 < found[1]


def test_decoding_stages_say_what_they_found(stages: Any, bundle: Bundle) -> None:
    assert rows(stages, bundle, "ar", "ort-cpu")[-1] == {
        "texts": 2, "different": 0, "bugs": 0, "near_tie_margin": 1e-3,
    }  # fmt: skip
    graphs = {(row["graph"], row["rows"], row["drafted"]) for row in rows(stages, bundle, "times", "ort-cpu")}
    assert {("patcher", 2), ("encoder", 2), ("global", 2), ("decoder", 2), ("decoder", 10)} <= {g[:2] for g in graphs}
    assert graphs & {("decoder", 1, False), ("decoder", 8, True)}  # byte by byte, or a draft in one submission
    methods = {row["setting"]: row for row in rows(stages, bundle, "methods", "ort-cpu")}
    assert {"ar", "ar exact=no", "blt-s k=8", "auto", "blt-d", "blt-dv", "blt-h"} <= set(methods)
    assert methods["blt-s k=8"]["equal_texts"] == methods["blt-s k=8"]["texts"] == 4
    assert methods["ar"]["nfe"]["decoder"] > 0
    assert methods["ar"]["share_of_bandwidth"] > 0
    recorded, *found = rows(stages, bundle, "replayed", "ort-cpu")
    assert recorded["recording"] == "replay.json"
    assert 1 < recorded["bytes_per_patch"] < 8
    replayed = {row["setting"]: row for row in found}
    assert {"ar", "ar exact=no", "blt-s k=8", "blt-d block=4", "blt-dv block=16"} <= set(replayed)
    assert all(row["recording"] == "replay.json" and row["texts"] == 1 for row in found)
    assert all(row["equal_texts"] == 1 for name, row in replayed.items() if not name.startswith("blt-d "))
    assert 0 < replayed["blt-s k=8"]["acceptance_rate"] < 1


#: Of the released models' forms, in miniature: the 7B one has a projection into the global model.
SMALL_FORMS = {
    "1b": full_size.published(2, 64, 4, 128, 2, 128, 4, 256, 2),
    "7b": full_size.published(4, 64, 4, 128, 2, 192, 4, 256, 2),
}


@pytest.mark.parametrize("form", ["1b", "1b-lookup", "7b"])
def test_random_weights_of_both_released_forms_are_written_and_replayed(
    stages: Any, script: Any, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["gpu_methods"], "HASH_VOCAB", 50)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    released, _, lookup = form.partition("-")
    data = SMALL_FORMS[released] | {"patcher_config": SMALL_FORMS[released]["patcher_config"] | small}
    monkeypatch.setitem(full_size.RELEASED, released, (data, 0, 0))
    large, out = tmp_path / "large", tmp_path / "gpu.jsonl"
    o = argparse.Namespace(out=out, model="builtin", precisions="fp32", stages="engines,replayed", large=large,
                           forms=form, prompts=2, new_bytes=8, repeats=1)  # fmt: skip
    assert {name.partition("-")[0] for name in script.FORMS} == set(full_size.RELEASED)
    ran = []
    for key in script.plan(o):
        if key[1] == str(large / form) and key[3] != "torch":
            script.run_one(argparse.Namespace(**{**vars(o), "one": json.dumps(key)}))
            ran.append((key[0], key[2], key[3]))
    assert ran == [("write", "fp16", ""), ("engines", "fp16", ""), ("replayed", "fp16", "ort-cpu")]
    assert [path.name for path in large.iterdir()] == [form]  # the checkpoint is gone
    found = script.read_rows(out)
    assert all((row["form"], row["weights"]) == (form, "random") for row in found)
    assert open_bundle(large / form).config.has_global_projection == (released == "7b")
    absent = [row["absent"] for row in found if row.get("setting") == "blt-d, blt-dv"]
    assert [text[:35] for text in absent] == ([] if lookup else ["this decoder reads the encoder's sta"[:35]])
    expected = {"ar", "blt-s k=8", *(("blt-d block=8", "blt-dv block=8") if lookup else ())}
    assert expected <= {row["setting"] for row in found if "speedup" in row}
    from gpu_report import report  # type: ignore[import-not-found]  # beside the script

    printed = report(found)
    where = f"{form.upper()} form, random weights fp16 ort-cpu"
    assert f"replayed {where}: patches and acceptance of replay.json: " in printed
    assert any(line.startswith(f"{where}  blt-s k=8 ") for line in printed.splitlines())


def test_a_large_model_is_not_begun_where_it_has_no_room(
    stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: argparse.Namespace(free=10**9))
    stage = stages.Stage(stage="write", model=str(tmp_path / "7b"), precision="fp16", engine="", prompts=1, new_bytes=1,
                         repeats=1)  # fmt: skip
    with pytest.raises(ModelError, match=r"has 1\.0 GB free, 32\.4 are needed; use another --large"):
        next(stages.STAGES["write"](stage))
    assert not list(tmp_path.iterdir())


def test_all_that_was_found_is_printed_as_tables(script: Any) -> None:
    def row(stage: str, **found: Any) -> dict[str, Any]:
        return {"stage": stage, "model": "builtin", "precision": "fp16", "engine": "tensorrt", **found}

    from gpu_report import report

    middle = {"median": 2e-3, "low": 1e-3, "high": 3e-3}
    printed = report([
        row("bandwidth", memory="NVIDIA T", bytes_per_s=4e12),
        row("validity", library="tensorrt_rtx", version="1.7", validity="INVALID", diagnostics=["UNSUPPORTED_CC"]),
        row("build", graph="global", reasons=["none was built"], bytes=3_500_000_000, build_s=61.26),
        row("build", graph="decoder", reasons=[], bytes=0, build_s=0.0),
        row("engines", engine="", opens="tensorrt", gpu_bytes_used=5_000_000_000),
        row("graphs", graph="global", tolerance=0.03, ok=False, relative_difference=0.5),
        row("graphs", graph="decoder", tolerance=0.03, ok=False, patches=[3, 4]),
        row("rows", padded_to=16, largest_difference=0.0),
        row("ar", texts=20, different=3, bugs=1, near_tie_margin=0.1),
        row("verify", name="blt-s k=4 equals ar", ok=True, detail="20 texts, none differs"),
        row("times", graph="decoder", rows=8, drafted=True, seconds=middle, share_of_bandwidth=0.5),
        row("times", graph="global", rows=10, drafted=False, seconds=middle, share_of_bandwidth=0.42),
        row("methods", setting="blt-s k=8", bytes_per_s=812.3, speedup=middle | {"median": 2.5}, equal_texts=4, texts=4,
            share_of_bandwidth=None, gpu_bytes_used_by_all=None),
        row("methods", done=True, seconds=1.0),
    ])  # fmt: skip
    lines = [line.removeprefix("builtin fp16 ").split() for line in printed.splitlines()]
    for expected in (
        "bandwidth builtin fp16 tensorrt: NVIDIA T, 4000 GB/s",
        "validity builtin fp16 tensorrt: tensorrt_rtx 1.7 says INVALID (UNSUPPORTED_CC)",
        "tensorrt global 61.3 3.50 GB",
        "tensorrt decoder kept",
        "tensorrt 5.00 GB",
        "tensorrt global 5.0e-01 0.03 NOT WITHIN",
        "tensorrt decoder other patches 0.03 NOT WITHIN",
        "tensorrt 16 0.0e+00",
        "tensorrt greedy ar as on the CPU in float32 NO 20 texts, 3 differ: 1 by more than 0.1",
        "tensorrt blt-s k=4 equals ar ok 20 texts, none differs",
        "tensorrt decoder 8 drafted 2.000 50%",
        "tensorrt global 10 2.000 42%",
        "tensorrt blt-s k=8 812 2.50 4 of 4",
    ):
        assert expected.split() in lines, expected


def test_the_script_goes_on_where_it_was_stopped_and_names_what_is_absent(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, SCRIPT, "--model", bundle.path, "--out", out, "--prompts", "1", "--new-bytes", "4"]
    command += ["--stages", "environment,ar"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        env = environment(BLTCLI_CACHE_DIR=str(tmp_path / "cache"))
        return subprocess.run([*map(str, command), *more], capture_output=True, text=True, env=env, check=False)

    late = run("--minutes", "0.1")
    assert (late.returncode, out.exists()) == (3, False)
    assert "out of time before environment; run again to go on" in late.stdout
    unknown = run("--forms", "1b,3b")
    assert (unknown.returncode, out.exists()) == (2, False)
    assert "unknown forms: 3b" in unknown.stderr
    first = run()
    assert first.returncode == 0, first.stderr
    assert "ran on ort-cpu, torch" in first.stdout
    assert "not on tensorrt: no NVIDIA driver" in first.stdout
    written = [json.loads(line) for line in out.read_text().splitlines()]
    done = [(row["stage"], row["engine"]) for row in written if "done" in row]
    assert done == [("environment", ""), ("engines", ""), ("ar", "ort-cpu"), ("ar", "torch")]
    again = run()
    assert again.returncode == 0
    assert len(out.read_text().splitlines()) == len(written)

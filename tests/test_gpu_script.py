"""benchmarks/gpu.py where there is no GPU: every stage runs on the CPU or says what is absent, and none runs twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bltcli.bundle import Bundle
from bltcli.pipeline import open_model
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
    del sys.modules["gpu_stages"]


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
    other = open_model(tiny_bundle("lookup", block_size=16, seed=1))
    monkeypatch.setattr(stages.Stage, "open", lambda self: other)
    assert min(differences().values()) > 1e-3


def test_padding_that_keeps_rows_apart_is_told_from_padding_that_does_not(stages: Any, bundle: Bundle) -> None:
    found = {row["padded_to"]: row["largest_difference"] for row in rows(stages, bundle, "rows", "ort-cpu")}
    assert found[2] == 0 < found[1]


def test_decoding_stages_say_what_they_found(stages: Any, bundle: Bundle) -> None:
    assert rows(stages, bundle, "ar", "ort-cpu")[-1] == {"texts": 2, "different": 0, "near_tie_margin": 1e-3}
    graphs = {(row["graph"], row["rows"]) for row in rows(stages, bundle, "times", "ort-cpu")}
    assert {("patcher", 2), ("encoder", 2), ("global", 2), ("decoder", 1), ("decoder", 10)} <= graphs
    methods = {row["setting"]: row for row in rows(stages, bundle, "methods", "ort-cpu")}
    assert {"ar", "ar exact=no", "blt-s k=8", "auto", "blt-d", "blt-dv", "blt-h"} <= set(methods)
    assert methods["blt-s k=8"]["equal_texts"] == methods["blt-s k=8"]["texts"] == 4
    assert methods["ar"]["nfe"]["decoder"] > 0
    assert methods["ar"]["share_of_bandwidth"] > 0
    replayed = {row["setting"]: row for row in rows(stages, bundle, "replayed", "ort-cpu")}
    assert {"ar", "ar exact=no", "blt-s k=8"} <= set(replayed)
    assert all(row["equal_texts"] == row["texts"] == 1 for row in replayed.values())
    assert 0 < replayed["blt-s k=8"]["acceptance_rate"] < 1


def test_the_script_goes_on_where_it_was_stopped_and_names_what_is_absent(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, SCRIPT, "--model", bundle.path, "--out", out, "--prompts", "1", "--new-bytes", "4"]
    command += ["--stages", "environment,ar"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        env = {**environment(BLTCLI_CACHE_DIR=str(tmp_path / "cache")), "OMP_NUM_THREADS": "1"}
        return subprocess.run([*map(str, command), *more], capture_output=True, text=True, env=env, check=False)

    late = run("--minutes", "0.1")
    assert (late.returncode, out.exists()) == (3, False)
    assert "out of time before environment; run again to go on" in late.stdout
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

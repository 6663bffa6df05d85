"""The model that ships: its files, its first export, and exactness on real weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from bltcli.bundle import open_bundle
from bltcli.checkpoint import open_checkpoint
from bltcli.decoding.driver import run_whole
from bltcli.models import builtin_checkpoint, resolve_bundle
from bltcli.pipeline import open_model, patch_text
from bltcli.verify import self_test
from bltcli.vocab import encode

ROOT = Path(__file__).parent.parent
ENGLISH = b"The minister may, by order, amend the conditions of the permit. " * 5


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLTCLI_CACHE_DIR", str(folder))
        yield folder


def exactness(tmp_path: Path, prompts: int, new_bytes: int) -> list[dict[str, object]]:
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "exactness.py"), "--prompts", str(prompts)]
    result = subprocess.run(
        [*command, "--new-bytes", str(new_bytes), "--out", str(out)], capture_output=True, text=True
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_it_is_small_real_and_has_a_card() -> None:
    folder = builtin_checkpoint()
    assert (folder / "model.safetensors").stat().st_size < 24_000_000
    config = open_checkpoint(folder).config
    assert (config.decoder.input, config.block_size) == ("lookup", 16)
    card = (folder / "MODEL_CARD.md").read_text()
    for source in ("Tatoeba", "Open Government Licence - Canada", "Microsoft", "PHP", "Python", "CC-BY"):
        assert source in card


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_its_sixteen_bit_forms_pass_the_gate(precision: str) -> None:
    bundle = open_bundle(resolve_bundle(None, precision, lambda line: None))
    assert bundle.manifest["parity"]["against"] == "golden outputs"


def test_its_first_use_makes_a_bundle_and_the_second_takes_it() -> None:
    notices: list[str] = []
    first = resolve_bundle(None, None, notices.append)
    assert any("exporting the built-in model" in line for line in notices)
    notices.clear()
    assert resolve_bundle("builtin", "fp32", notices.append) == first
    assert notices == []
    assert open_bundle(first).manifest["parity"]["against"] == "golden outputs"


def test_once_exported_it_answers_at_once_and_imports_no_exporter() -> None:
    """Bounds are ten times what a quiet machine takes (benchmarks/startup.py)."""
    resolve_bundle(None, None, lambda line: None)
    generation = ["generate", "-p", "It was a dark night", "-n", "1"]
    for arguments, bound, absent in (
        (["--help"], 0.6, {"numpy", "onnxruntime"}),
        (generation, 3, {"onnx_ir", "onnx", "sympy", "torch", "bltcli_export.exporter"}),
    ):
        code = f"import sys, bltcli.cli; bltcli.cli.run({arguments}); print(*sys.modules, file=sys.stderr)"
        began = perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert perf_counter() - began < bound
        assert len(result.stdout) > 0
        assert not absent & set(result.stderr.decode().split())


def test_patches_average_about_four_bytes() -> None:
    patches = patch_text(open_bundle(resolve_bundle(None, None, print)), ENGLISH)
    assert 3 < np.mean([len(patch) for patch, _ in patches]) < 6.5
    assert max(len(patch) for patch, _ in patches) <= 8


def test_long_texts_do_not_fall_apart() -> None:
    """Bytes behind the 300th are expected no worse than the first, as no window is longer than the rows of training."""
    ids = encode((ROOT / "LICENSE").read_bytes()[1000:2400])
    model, found = open_model(open_bundle(resolve_bundle(None, None, print))), []
    for pieces, logits in run_whole(model, {0: ids}):
        found.append(logits[0, : len(pieces[0])].copy())
    scores = np.concatenate(found)[:-1].astype(np.float64)
    bits = np.log2(np.exp(scores).sum(-1)) - scores[np.arange(len(scores)), ids[1:]] / np.log(2)
    assert bits[300:].mean() < bits[:256].mean() + 0.3


@pytest.mark.parametrize("engine", ["ort-cpu", "torch"])
def test_the_self_test_passes(engine: str) -> None:
    checks = self_test(engine)
    assert len(checks) >= 4
    assert all(check.ok for check in checks), checks


def test_verified_methods_equal_ar_on_real_weights(tmp_path: Path) -> None:
    rows = exactness(tmp_path, prompts=20, new_bytes=64)
    runs = [*(f"blt-s k={k}" for k in (1, 2, 4, 8, 16)), *(f"blt-dv block={block}" for block in (4, 8, 16))]
    assert {(row["sampling"], row["setting"]) for row in rows} >= {(s, r) for s in ("greedy", "sampled") for r in runs}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_verified_methods_equal_ar_on_200_prompts_of_every_kind(tmp_path: Path) -> None:
    assert all(row["different_texts"] == 0 for row in exactness(tmp_path, prompts=200, new_bytes=256))

"""The pipelines of docs/batch.md, as they stand there: sacrebleu on both sides of bltcli translate."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.dataset import DATASETS

from tests.cli_support import Done, environment, home

DOCS = Path(__file__).parent.parent / "docs" / "batch.md"
WORDS = ("le", "chat", "noir", "dort,", "été", "où?", "«non»", "1.5", "\u2028", "a\u00a0b")


def pipelines() -> list[str]:
    return [line for line in DOCS.read_text(encoding="utf-8").splitlines() if "| sacrebleu" in line]


def shell(line: str, folder: Path) -> Done:
    """Run a command line in `folder`, its test sets there too, with the tiny model."""
    python = shlex.quote(sys.executable)
    tools = f'bltcli() {{ {python} -m bltcli "$@"; }}; sacrebleu() {{ {python} -m sacrebleu "$@"; }}\n'
    env = environment(
        SACREBLEU=str(folder), BLTCLI_TRANSLATE_MODEL=str(home() / "bundle"), BLTCLI_TRANSLATE_MAX_BYTES="12",
        BLTCLI_TRANSLATE_QUIET="1", BLTCLI_TRANSLATE_IGNORE_EOS="1",
    )  # fmt: skip
    return subprocess.run(["bash", "-c", tools + line], cwd=folder, env=env, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Line-aligned files, and the same as a test set that sacrebleu finds in its cache: 30 lines, some of them empty.
    The references are what bltcli translates to, so that a score of 100 says that each line met its own."""
    folder, rng = tmp_path_factory.mktemp("sacrebleu"), np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, int(size))) for size in rng.integers(0, 9, 30)]
    for direction in ("fr-en", "en-fr"):
        from_, to = direction.split("-")
        (folder / f"test.{from_}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        done = shell(f"bltcli translate --to {to} --from {from_} < test.{from_} > ref.{to}", folder)
        assert (folder / f"ref.{to}").read_bytes().count(b"\n") == 30, done.stderr.decode()
        (folder / "wmt14").mkdir(exist_ok=True)
        for field in DATASETS["wmt14"].fieldnames(direction):
            target = folder / "wmt14" / f"wmt14.{direction}.{field}"
            known = {"src": folder / f"test.{from_}", "ref": folder / f"ref.{to}"}
            target.write_bytes(known[field].read_bytes() if field in known else b"-\n" * 30)
    return folder


def score(done: Done) -> float:
    found = json.loads(done.stdout)
    return float((found[0] if isinstance(found, list) else found)["score"])


@pytest.mark.parametrize("line", pipelines())
def test_a_pipeline_of_the_documentation_scores_each_line_against_its_own_reference(line: str, folder: Path) -> None:
    assert score(shell(line, folder)) == pytest.approx(100)
    shifted = line.replace("| sacrebleu", "| (read -r first; cat; echo) | sacrebleu")
    assert score(shell(shifted, folder)) < 50


def test_the_documentation_has_pipelines_from_test_sets_and_from_files() -> None:
    found = pipelines()
    assert any("--echo src" in line for line in found)
    assert any("--echo" not in line for line in found)

"""Diversity: what the ratio is, and free text over the grid of settings."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from bltcli.decoding.setting import parse_setting
from bltcli.errors import UsageError
from bltcli.evaluate.diversity import grid, make_report, task_of, type_token_ratio
from bltcli.evaluate.generating import Generator, output_of, run_settings
from tests.cli_support import here, one_line
from tests.conftest import TinyBundle


@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        (b"a b c", 1.0),
        (b"a b a\n\ta", 0.5),
        (b"The the the, the,", 3 / 4),  # case and punctuation count
        (b"\xff \xff \xfe", 1 / 3),  # what is no UTF-8 is all one character
        ("été\u00a0été".encode(), 0.5),  # white space of any kind
        (b" \n ", 0.0),
        (b"", 0.0),
    ],
)
def test_the_ratio_is_of_different_words_to_words(text: bytes, ratio: float) -> None:
    assert type_token_ratio(text) == ratio


@pytest.fixture(scope="module")
def generator(tiny_bundle: TinyBundle) -> Generator:
    return Generator(tiny_bundle("lookup", block_size=8))


def _run(generator: Generator, *runs: str, top_ps: list[float], samples: int = 3, **how: Any) -> dict[str, list[bytes]]:
    chosen = grid(generator, [parse_setting(run)[0] for run in runs], top_ps, **{"sample_bytes": 50, **how})
    found = run_settings(generator, list(itertools.chain(*chosen)), task_of(samples))
    return {name: [output_of(record) for record in records] for name, records in found.items()}


def test_samples_have_all_their_bytes_and_differ(generator: Generator) -> None:
    found = _run(generator, "ar", "blt-d unmask=entropy gamma=1.0", "blt-dv", top_ps=[0.8, 1.0])
    rule = "unmask=entropy gamma=1.0"
    assert list(found) == [
        "ar top-p=0.8", f"blt-d block=8 {rule} top-p=0.8", "blt-dv block=8 unmask=one-step top-p=0.8",
        "ar top-p=1.0", f"blt-d block=8 {rule} top-p=1.0", "blt-dv block=8 unmask=one-step top-p=1.0",
    ]  # fmt: skip
    for texts in found.values():
        assert [len(text) for text in texts] == [50, 50, 50]
        assert len(set(texts)) == 3
    for top_p in ("0.8", "1.0"):
        verified = found[f"blt-dv block=8 unmask=one-step top-p={top_p}"]
        assert verified == found[f"ar top-p={top_p}"]
        assert found[f"blt-d block=8 {rule} top-p={top_p}"] != verified
    assert found["ar top-p=0.8"] != found["ar top-p=1.0"]


def test_a_seed_draws_the_same_texts_and_another_seed_others(generator: Generator) -> None:
    first, again, other = (_run(generator, "ar", top_ps=[1.0], seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_a_wider_entropy_bound_takes_fewer_decoder_passes(generator: Generator) -> None:
    runs = [parse_setting(f"blt-d unmask=entropy gamma={gamma}")[0] for gamma in (0.0, 12.0, 100.0)]
    chosen = grid(generator, [parse_setting("ar")[0], *runs], [1.0], sample_bytes=48)
    records = run_settings(generator, chosen[0], task_of(2))
    report = make_report(generator, chosen, records)
    plain, single, some, whole = (row.summary.nfe["decoder"] for row in report.rows)
    assert single > some > whole
    assert single == pytest.approx(plain, abs=8)  # a byte per pass; a block may run over the end
    assert whole == 6  # 47 bytes after the first in blocks of 8
    assert report.rows[0].decrease is None
    assert all(row.decrease is not None for row in report.rows[1:])
    assert set(report.rows[0].scores) == {"TTR", "± TTR"}


def test_numbers_out_of_range_are_refused(generator: Generator) -> None:
    runs = [parse_setting("ar")[0]]
    with pytest.raises(UsageError, match=r"--top-p is 1\.5"):
        grid(generator, runs, [0.8, 1.5], sample_bytes=10)
    with pytest.raises(UsageError, match="--max-bytes is 0"):
        grid(generator, runs, [0.8], sample_bytes=0)
    with pytest.raises(UsageError, match="is there 2 times"):
        grid(generator, runs * 2, [0.8], sample_bytes=10)
    assert len(grid(generator, runs, [0.8, 0.8], sample_bytes=10)) == 1


def test_the_grid_needs_a_model_trained_on_blocks() -> None:
    done = here("eval", "diversity", "-m", "bundle")
    assert (done.returncode, done.stdout) == (3, b"")
    assert "needs one trained on blocks" in one_line(done)


def test_the_grid_is_the_papers_and_goes_on_in_its_folder(tmp_path: Path, generator: Generator) -> None:
    args = ("eval", "diversity", "-m", str(generator.bundle.path), "--samples", "2", "-n", "12", "--format", "json",
            "--records", str(tmp_path))  # fmt: skip
    done = here(*args)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    names = [row["setting"] for row in report["settings"]]
    rules = ["ar", *(f"blt-d block=8 unmask=entropy gamma={gamma}" for gamma in (0.5, 0.8, 1.0, 1.2))]
    assert names == [f"{rule} top-p={p}" for p in (0.8, 0.9, 0.95, 1.0) for rule in rules]
    assert len(list(tmp_path.glob("*.jsonl"))) == 20
    before = {file: file.read_bytes() for file in tmp_path.glob("*")}
    assert json.loads(here(*args).stdout) == report
    assert {file: file.read_bytes() for file in tmp_path.glob("*")} == before

"""`bltcli bench` and `bltcli bench compare` on the command line."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bltcli.bench import report as reports
from tests.cli_support import bltcli, here, one_line

BENCH = ("bench", "--model", "bundle", "--ignore-eos", "-n", "12", "--repeats", "1")


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bltcli.bench.floor.LEAST_BYTES", 2**20)
    monkeypatch.setattr("bltcli.bench.floor.CACHE_MULTIPLE", 0)


def measured(file: Path, *args: str) -> dict[str, Any]:
    done = here(*BENCH, "-p", "Once", *args, "--format", "json", "-o", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    found: dict[str, Any] = json.loads(file.read_bytes())
    return found


def test_a_prompt_in_a_pipe_is_benchmarked_with_what_suits_the_model() -> None:
    done = bltcli(*BENCH, data=b"Once")
    assert (done.returncode, done.stderr) == (0, b"")
    speed = done.stdout.decode().split("\n\n")[0].splitlines()
    assert [line.split("  ")[0] for line in speed[2:]] == [
        "ar", "ar exact=no", "blt-s k=4", "blt-s k=8", "blt-s k=16", "auto",
    ]  # fmt: skip


def test_settings_come_from_options_or_from_the_environment(tmp_path: Path) -> None:
    found = measured(tmp_path / "a.json", "--run", "blt-s k=1,2", "--run", "ar ngram=yes")
    assert [row["setting"] for row in found["rows"]] == ["ar", "blt-s k=1", "blt-s k=2", "ar ngram=yes"]
    done = bltcli(*BENCH, "-p", "x", "--format", "csv", env={"BLTCLI_BENCH_RUN": "ar; blt-s k=3"})
    assert [line.split(",")[0] for line in done.stdout.decode().splitlines()[1:]] == ["ar", "blt-s k=3"]
    config = tmp_path / "config.toml"
    config.write_text('[bench]\nrun = ["ar", "blt-s k=5"]\n[bench.compare]\nformat = "json"\n')
    done = here("--config", str(config), *BENCH, "-p", "x", "--format", "csv")
    assert [line.split(",")[0] for line in done.stdout.decode().splitlines()[1:]] == ["ar", "blt-s k=5"]


def test_a_profile_says_where_the_time_goes(tmp_path: Path) -> None:
    done = here(*BENCH, "-p", "Once", "--run", "ar", "--run", "blt-s k=2", "--profile")
    assert (done.returncode, done.stderr) == (0, b"")
    table = done.stdout.decode().split("Time\n")[1].split("\n\n")[0].splitlines()
    rows = [re.split(r"  +", line) for line in table if line.startswith(("ar ", "blt-s k=2 "))]
    assert [row[1] for row in rows[:6]] == ["patcher", "encoder", "global", "decoder", "Python", "(floor)"]
    assert len(rows) == 12
    for row in (rows[:5], rows[6:11]):
        assert 95 <= sum(int(line[-1].rstrip("%")) for line in row) <= 105  # the shares are of all the time
    assert rows[0][2] == rows[3][2] == "1.00"  # a pass each for the prompt and for every byte but the last
    assert float(rows[9][2]) > 1  # drafts
    done = here(*BENCH, "-p", "Once", "--profile", "--format", "csv")
    assert done.returncode == 2
    assert "--profile is a table, --format is csv; use table or md" in one_line(done)


def test_prompts_of_a_jsonl_file_are_continued_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "é\\n"}\n\n{"prompt": "b"}\n')
    done = here(*BENCH, str(tmp_path / "prompts.jsonl"), "--run", "ar", "--format", "json")
    found = json.loads(done.stdout)
    assert (found["task"]["prompts"], found["task"]["prompt_bytes"]) == (2, 4)
    assert found["rows"][0]["new_bytes"] == 24


def test_the_page_has_its_plots_and_loads_nothing(tmp_path: Path) -> None:
    page = tmp_path / "bench.html"
    done = here(*BENCH, "-p", "Once", "--run", "ar,blt-s", "--format", "html", "-o", str(page))
    assert done.returncode == 0
    html = page.read_text()
    assert html.count("data-root-id") == 3
    assert "Bytes per round" in html
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", html)


def test_a_missing_plotting_library_is_said_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("bltcli.bench.page.find_spec", lambda name: None if name == "bokeh" else find(name))
    done = here("bench", "-p", "x", "--format", "html", "--model", "nowhere")
    assert done.returncode == 3
    assert "pip install 'bltcli[bench]'" in one_line(done)


def test_two_reports_are_compared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        measured(tmp_path / f"{name}.json", "--run", "ar", "--run", f"blt-s k={1 if name == 'a' else 2}")
    files = (str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    done = here("bench", "compare", *files)
    assert done.returncode == 0
    assert b"Only in B: blt-s k=2." in done.stdout
    found = json.loads(here("bench", "compare", *files, "--format", "json").stdout)
    assert [(row["setting"], row["same_bytes"]) for row in found["rows"]] == [("ar", True)]
    assert here("bench", "compare", *files, "--format", "md").stdout.startswith(b"| setting |")


def test_a_broken_promise_is_exit_code_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "agreement", lambda found, expected: agreement([b"x"], [b"y"]))
    from bltcli.bench.agreement import agreement

    done = here(*BENCH, "-p", "Once", "--run", "blt-s")
    assert done.returncode == 5
    assert "promised" in one_line(done)
    assert b"BROKEN PROMISE" in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-p", "x", "--run", "magic"], "setting 'magic'"),
        (["-p", "x", "--paper", "9B FR-EN"], "--paper is '9B FR-EN'"),
        (["-p", "x", "--baseline", "hf"], "--checkpoint"),
        (["-p", "x", "-n", "0"], "--max-bytes is 0"),
        (["-p", "x", "-o", "nowhere/a"], "--output nowhere/a"),
        (["-p", "x", "more", "words"], "words"),
        (["nowhere.txt"], "cannot read nowhere.txt"),
        (["compare", "nowhere.json", "b"], "cannot read nowhere.json"),
        (["compare", "bundle/manifest.json", "b"], "is no report"),
    ],
)
def test_wrong_usage_is_one_line(args: list[str], says: str) -> None:
    done = here("bench", *args) if args[0] == "compare" else here(*BENCH, *args)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in one_line(done)


def test_a_prompt_list_without_prompts_is_refused(tmp_path: Path) -> None:
    for text, says in (("", "holds no prompts"), ('{"text": "a"}\n', "line 1")):
        (tmp_path / "p.jsonl").write_text(text)
        done = here(*BENCH, str(tmp_path / "p.jsonl"))
        assert done.returncode == 2
        assert says in one_line(done)

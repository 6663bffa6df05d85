"""docs/cli.md and docs/bltcli.1 say what --help says, and the examples in --help work when pasted."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bltcli import cli
from bltcli.commands import docs
from tests.cli_support import environment, with_tiny_builtin

#: Their examples need the network, or hours.
NEED_MORE = ("convert", "train")


def test_the_written_documentation_is_fresh() -> None:
    # in a process of its own: a command that a test has invoked by itself keeps the help option it was given there
    subprocess.run([sys.executable, "-m", "bltcli.commands.docs", "--check"], check=True)


def test_stale_documentation_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    assert docs.main() == 1
    monkeypatch.setattr(sys, "argv", ["docs"])
    assert docs.main() == 0
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    assert docs.main() == 0


def roff_faults(text: str) -> list[str]:
    """Lines that a formatter would warn of or show otherwise than they were meant."""
    faults, literal = [], False
    for line in text.splitlines():
        word = line.split(" ")[0]
        if line.startswith((".", "'")) and word not in (".TH", ".SH", ".TP", ".B", ".PP", ".nf", ".fi"):
            faults.append(line)  # no request, or one that this page has no use for
        elif "\\" in re.sub(r"\\(e|-|&|\(aq)", "", line):
            faults.append(line)  # an escape that nobody meant
        elif word in (".nf", ".fi"):
            if literal == (word == ".nf"):
                faults.append(line)
            literal = word == ".nf"
    return [*faults, *([".nf"] if literal else [])]


def test_the_man_page_is_clean_roff() -> None:
    assert roff_faults(docs.roff()) == []
    if groff := shutil.which("groff"):  # a formatter's own opinion, where the system has one
        command = [groff, "-man", "-Tutf8", "-ww", "-z"]
        assert subprocess.run(command, input=docs.roff().encode(), capture_output=True, check=True).stderr == b""


@pytest.mark.parametrize("line", [".XX", "'quoted", "a\\q", ".nf", ".fi", ".hidden file"])
def test_a_line_that_is_no_roff_is_found(line: str) -> None:
    assert roff_faults(f".SH NAME\n{line}\n.PP\ntext \\- \\(aqand\\(aq \\&.more") == [line]


def _verbs() -> list[click.Context]:
    return [ctx for ctx in docs.contexts(docs.root()) if ctx.parent is not None]


@pytest.mark.parametrize("ctx", _verbs(), ids=lambda ctx: ctx.command_path)
def test_every_verb_ends_with_examples(ctx: click.Context) -> None:
    epilog = ctx.command.epilog or ""
    assert "Example" in epilog.split("\n\n")[-1]


def _examples(ctx: click.Context) -> str:
    """The lines below "Examples:" as a shell script."""
    return "\n".join((ctx.command.epilog or "").split("\n\n")[-1].split("\n")[2:])


@pytest.mark.parametrize(
    "ctx",
    [docs.root(), *(ctx for ctx in _verbs() if ctx.info_name not in NEED_MORE)],
    ids=lambda ctx: ctx.command_path,
)
def test_the_examples_work_when_pasted(ctx: click.Context, tmp_path: Path) -> None:
    script = _examples(ctx)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    # 4: translations were cut off, as an untrained model does not end them
    (bin_folder / "bltcli").write_text(f'#!/bin/sh\n{shlex.join(with_tiny_builtin())} "$@" || test $? = 4\n')
    (bin_folder / "bltcli").chmod(0o755)
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        env=environment(PATH=f"{bin_folder}:{os.environ['PATH']}"), cwd=tmp_path / "work", capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout
    assert b"Traceback" not in done.stderr


def test_choices_on_the_command_line_are_those_of_the_library() -> None:
    from bltcli.commands import PRECISIONS, decoding
    from bltcli.decoding import COMMITS, METHODS
    from bltcli.graphs import DTYPES

    assert tuple(METHODS) == decoding.METHODS
    assert COMMITS == decoding.COMMITS
    assert tuple(DTYPES) == PRECISIONS


def test_only_verbs_that_exist_are_listed() -> None:
    ctx = docs.root()
    assert [ctx.command_path for ctx in _verbs() if " " not in ctx.command_path.removeprefix("bltcli ")] == [
        f"bltcli {verb}" for verb in cli.VERBS
    ]
    for verb, line in cli.VERBS.items():
        assert line.endswith("."), verb
        assert cli.group.get_command(ctx, verb) is not None

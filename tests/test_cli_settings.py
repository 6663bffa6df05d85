"""Where options get their values from, and what the program says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from bltcli import __version__, cli, settings
from bltcli.commands import docs
from tests.cli_support import bltcli, environment, generate, here, home, one_line

PROMPT = ("generate", "--model", "bundle", "--ignore-eos", "-p", "x")


def _config(folder: Path, text: str) -> str:
    (folder / "config.toml").write_text(text, encoding="utf-8")
    return str(folder / "config.toml")


def test_command_line_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = _config(tmp_path, '[generate]\nmax-bytes = 7\nstop = ["never seen here"]\nexact = false\n')
    twin = {"BLTCLI_GENERATE_MAX_BYTES": "5"}
    assert len(bltcli("--config", file, *PROMPT).stdout) == 7
    assert len(bltcli(*PROMPT, env={"BLTCLI_CONFIG": file}).stdout) == 7
    assert len(bltcli("--config", file, *PROMPT, env=twin).stdout) == 5
    assert len(bltcli("--config", file, *PROMPT, "-n", "3", env=twin).stdout) == 3


def test_the_users_own_file_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "bltcli"
    folder.mkdir()
    _config(folder, "[generate]\nmax_bytes = 6\n")
    assert len(bltcli(*PROMPT, env={"XDG_CONFIG_HOME": str(tmp_path)}).stdout) == 6


def test_stop_strings_in_the_environment_are_separated_by_spaces() -> None:
    whole = generate("-n", "60").stdout
    spelled = "".join(f"\\x{byte:02x}" for byte in whole[30:32])
    env = {"BLTCLI_GENERATE_STOP": f"never {spelled}"}
    assert generate("-n", "60", env=env).stdout == whole[: whole.find(whole[30:32])]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[transmute]\nx = 1", "no verb 'transmute'"),
        ("generate = 1", "expected a table"),
        ("[generate]\nspeed = 1", "no option 'speed'"),
        ("[generate]\nmax-bytes = 1.5", "expected a whole number"),
        ("[generate]\nmax-bytes = true", "expected a whole number"),
        ('[generate]\ntemperature = "hot"', "expected a number"),
        ("[generate]\necho = 1", "expected true or false"),
        ("[generate]\nmodel = 1", "expected a string"),
        ("[generate]\nstop = [1]", "expected a string"),
        ('[generate]\nmethod = "magic"', "'ar', 'blt-s'"),
        ("[generate]\ntemperature = nan", "--temperature is nan"),
        ("[models.list]\nspeed = 1", "no option 'speed'"),
        ("[generate", "no valid TOML"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(tmp_path: Path, text: str, says: str) -> None:
    done = here("--config", _config(tmp_path, text), *PROMPT)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in one_line(done)


def test_a_configuration_that_is_named_must_exist() -> None:
    done = bltcli("--config", "nowhere.toml", *PROMPT)
    assert (done.returncode, done.stdout) == (2, b"")
    assert "nowhere.toml: No such file" in one_line(done)


def _options() -> Iterator[tuple[str, click.Option]]:
    for ctx in docs.contexts(docs.root()):
        for param in ctx.command.params:
            if isinstance(param, click.Option):
                yield ctx.command_path, param


def test_every_option_has_the_environment_twin_that_its_name_promises() -> None:
    for path, option in _options():
        assert option.name == settings.key(option).replace("-", "_"), f"{path} {option.opts}"
        assert option.allow_from_autoenv, f"{path} {option.opts}"


def test_every_option_is_explained() -> None:
    assert not [(path, option.opts) for path, option in _options() if not option.help]


def test_help_starts_fast_and_imports_nothing_heavy() -> None:
    probe = "import sys; from bltcli import cli; cli.run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True, env=environment())
    loaded = set(done.stderr.decode().split())
    assert not loaded & {"numpy", "rich", "onnx", "onnxruntime", "torch", "bltcli.commands"}
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-m", "bltcli", "--help"], capture_output=True, check=True, env=environment())
        after = os.times()  # processor time: what others do on this machine is not our doing
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.15


def test_version_names_the_program_its_revision_and_what_it_runs_on() -> None:
    out = bltcli("--version").stdout.decode()
    assert out.startswith(f"bltcli {__version__}")
    assert f"numpy {version('numpy')}" in out
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, cwd=Path(cli.__file__).parent).stdout
    if revision:
        assert f"(revision {revision.decode()[:12]})" in out


def test_the_revision_is_found_in_every_kind_of_checkout(tmp_path: Path) -> None:
    git = tmp_path / ".git"
    assert cli.git_revision(tmp_path) is None
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert cli.git_revision(tmp_path) is None
    (git / "packed-refs").write_text("# pack-refs\naaaa refs/heads/main\n")
    assert cli.git_revision(tmp_path) == "aaaa"
    (git / "refs/heads").mkdir(parents=True)
    (git / "refs/heads/main").write_text("bbbb\n")
    assert cli.git_revision(tmp_path) == "bbbb"
    (git / "HEAD").write_text("cccc\n")
    assert cli.git_revision(tmp_path) == "cccc"
    linked, tree = git / "worktrees/w", tmp_path / "w"
    linked.mkdir(parents=True)
    tree.mkdir()
    (tree / ".git").write_text(f"gitdir: {linked}\n")
    (linked / "HEAD").write_text("ref: refs/heads/main\n")
    (linked / "commondir").write_text("../..\n")
    assert cli.git_revision(tree) == "bbbb"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_completion_script(shell: str) -> None:
    done = bltcli(env={"_BLTCLI_COMPLETE": f"{shell}_source"})
    assert done.returncode == 0
    assert b"_BLTCLI_COMPLETE" in done.stdout


def test_options_are_completed() -> None:
    env = {"_BLTCLI_COMPLETE": "bash_complete", "COMP_WORDS": "bltcli generate --me", "COMP_CWORD": "2"}
    assert b"--method" in bltcli(env=env).stdout


def test_verbose_says_what_is_used_and_quiet_nothing() -> None:
    assert b"on ort-cpu, blt-s, 4 prompt bytes" in generate("-n", "1", "-v").stderr
    assert generate("-n", "1", "-v", "-q").stderr == b""
    assert home().is_dir()

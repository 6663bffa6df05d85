"""Wrong usage and broken models: one line, the right exit code, nothing on stdout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bltcli import cli
from tests.cli_support import bltcli, here, home, one_line


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-k", "0"], "0"),
        (["-k", "65"], "65"),
        (["--method", "blt-d", "--ngram-draft"], "--ngram-draft needs a method that verifies"),
        (["-k", "many"], "neither a number nor 'auto'"),
        (["--method", "blt-h", "--trust", "2"], "--trust is 2.0"),
        (["--unmask", "confidence", "--alpha", "1.5"], "--alpha is 1.5"),
        (["--unmask", "entropy", "--gamma", "nan"], "--gamma is nan"),
        (["-n", "0"], "--max-bytes is 0"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--temperature", "inf"], "--temperature is inf"),
        (["--top-p", "nan"], "--top-p is nan"),
        (["--min-p", "-inf"], "--min-p is -inf"),
        (["--seed", "-1"], "--seed is -1"),
        (["--stop", ""], "--stop is empty"),
        (["--stop", "\\q"], "is no escape"),
        (["--threads", "-1"], "--threads"),
        (["--method", "magic"], "'ar', 'blt-s'"),
        (["--precision", "bf16"], "exported as fp32"),
        (["--stats-json", "-"], "name a file"),
        (["--stats-json", "no/folder/x.json"], "does not exist"),
        (["-p", "x", "prompt.txt"], "two prompts"),
        (["missing.txt"], "cannot read missing.txt: No such file"),
        (["."], "cannot read .: Is a directory"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(args: list[str], says: str) -> None:
    prompt = [] if args[-1] in ("missing.txt", ".") else ["-p", "x"]
    done = here("generate", "--model", "bundle", *prompt, *args)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in one_line(done)


def _spoil(folder: Path, how: str) -> None:
    """A copy of the bundle with one thing wrong."""
    shutil.copytree(home() / "bundle", folder)
    manifest = folder / "manifest.json"
    if how == "truncated manifest":
        manifest.write_bytes(manifest.read_bytes()[:100])
    elif how == "truncated graph":
        (folder / "decoder.onnx").write_bytes((folder / "decoder.onnx").read_bytes()[:-10])
    elif how == "flipped byte":
        data = bytearray((folder / "tables.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "tables.safetensors").write_bytes(data)
    elif how == "missing file":
        (folder / "global.onnx").unlink()
    elif how == "newer format":
        manifest.write_text(json.dumps({**json.loads(manifest.read_bytes()), "format_version": 99}))


@pytest.mark.parametrize(
    "how", ["truncated manifest", "truncated graph", "flipped byte", "missing file", "newer format"]
)
def test_a_damaged_bundle_is_refused(tmp_path: Path, how: str) -> None:
    _spoil(tmp_path / "bad", how)
    for verb in (["generate", "-p", "x", "--model"], ["inspect"]):
        done = here(*verb, str(tmp_path / "bad"))
        assert (done.returncode, done.stdout) == (3, b"")
        one_line(done)


@pytest.mark.parametrize("name", ["nowhere", "checkpoint", "checkpoint/config.json"])
def test_what_is_no_bundle_is_refused(name: str) -> None:
    done = here("generate", "-p", "x", "--model", name)
    assert (done.returncode, done.stdout) == (3, b"")
    one_line(done)


def test_a_model_without_blocks_is_refused_for_diffusion() -> None:
    done = here("generate", "-p", "x", "--model", "bundle", "--method", "blt-dv")
    assert (done.returncode, done.stdout) == (3, b"")
    assert "trained on next bytes only; blt-dv needs one trained on blocks, use blt-s" in one_line(done)


def test_the_unexpected_is_one_line_and_a_traceback_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("boom [bold]\nand more")

    monkeypatch.setattr("bltcli.commands.generate.run", broken)
    assert cli.run(["generate", "-p", "x"]) == 1
    assert capsys.readouterr().err == "bltcli: unexpected RuntimeError: boom [bold] and more; run with --debug\n"
    assert cli.run(["generate", "-p", "x", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert cli.run(["--debug", "generate", "-p", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("package", cli.EXTRAS)
def test_a_package_that_is_missing_is_named_with_the_command_that_adds_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    def lacking(_: object) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("bltcli.commands.generate.run", lacking)
    assert cli.run(["generate", "-p", "x"]) == 3
    assert f"{package} is not installed; pip install 'bltcli[" in capsys.readouterr().err


def test_there_is_help_and_an_unknown_verb_is_refused() -> None:
    assert b"generate" in bltcli("--help").stdout
    done = bltcli("transmute")
    assert (done.returncode, done.stdout) == (2, b"")
    assert "there is no verb 'transmute'" in one_line(done)
    bare = bltcli()
    assert (bare.returncode, bare.stdout) == (2, b"")

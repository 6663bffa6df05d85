"""export, inspect, patches, models and doctor, and what happens around the built-in model's cache."""

from __future__ import annotations

import json
import os
import pty
import re
from pathlib import Path
from typing import Any

import pytest

from bltcli import cli
from bltcli.bundle import open_bundle
from bltcli.commands import doctor
from bltcli.errors import ModelError
from tests.cli_support import CONTEXT, Done, bltcli, here, home, one_line, start, with_tiny_builtin

TEXT = "Once upon a time | there was \\ a café".encode()


def _builtin(*args: str, **options: Any) -> Done:
    return bltcli(*args, program=with_tiny_builtin(), **options)


# export, inspect


def test_a_checkpoint_becomes_a_bundle_that_generates(tmp_path: Path) -> None:
    done = bltcli("export", "checkpoint", "-o", str(tmp_path / "new" / "bundle"), "--no-check")
    assert (done.returncode, done.stdout) == (0, b"")
    again = bltcli("export", "-q", "checkpoint", "-o", str(tmp_path / "new" / "bundle"), "--no-check")
    assert (again.returncode, again.stderr) == (0, b"")
    assert len(bltcli("generate", "-m", str(tmp_path / "new" / "bundle"), "-p", "x", "-n", "4").stdout) == 4


def test_a_dry_run_counts_and_writes_nothing() -> None:
    before = sorted(home().iterdir())
    out = bltcli("export", "checkpoint", "--dry-run").stdout.decode()
    assert re.search(r"^total +[\d,]+( +[\d.]+ [kM]B){5}$", out, re.MULTILINE)
    assert re.search(r"^together( +[\d.]+ [kM]B){5}$", out, re.MULTILINE)
    assert sorted(home().iterdir()) == before


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["checkpoint"], 2, "-o DIR"),
        (["checkpoint", "-o", "checkpoint"], 2, "is no bundle"),
        (["checkpoint", "-o", "checkpoint/config.json"], 2, "is no bundle"),
        (["checkpoint", "-o", "checkpoint/config.json/b", "--no-check"], 2, "config.json"),
        (["nowhere", "-o", "new"], 3, "nowhere"),
        (["checkpoint/config.json", "-o", "new"], 3, "is a file"),
        (["checkpoint", "--precision", "int2", "-o", "new"], 2, "--precision"),
    ],
)
def test_exports_that_cannot_be(args: list[str], code: int, says: str) -> None:
    done = here("export", *args)
    assert (done.returncode, done.stdout) == (code, b"")
    assert says in one_line(done)
    assert not (home() / "new").exists()


def test_two_processes_may_export_to_one_folder(tmp_path: Path) -> None:
    args = ("export", "-q", "checkpoint", "-o", str(tmp_path / "bundle"), "--no-check")
    both = [start(*args), start(*args)]
    assert [(*process.communicate(timeout=120), process.returncode) for process in both] == [(b"", b"", 0)] * 2
    open_bundle(tmp_path / "bundle").verify_files()
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_inspect_shows_sizes_hashes_and_configuration(kind: str) -> None:
    facts = json.loads(bltcli("inspect", kind, "--json").stdout)
    assert facts["kind"].startswith(kind)
    assert len(facts["sha256"]) == 64
    assert facts["config"]["encoder"]["max_positions"] == CONTEXT
    assert "licence" in facts
    shown = bltcli("inspect", kind).stdout.decode()
    assert facts["sha256"] in shown
    parts = facts["graphs"] if kind == "bundle" else facts["components"]
    for name, part in parts.items():
        assert re.search(rf"^{name} +{part['parameters']:,} ", shown, re.MULTILINE)
    if kind == "bundle":
        assert facts["graphs"]["decoder"]["outputs"][0]["name"] == "logits"
        assert facts["graphs"]["decoder"]["bytes"] >= facts["graphs"]["decoder"]["bytes_per_pass"]


# patches


def test_patches_in_a_pipe_can_be_undone() -> None:
    done = bltcli("patches", "-m", "bundle", data=TEXT + b"\xff\n")
    pieces = re.findall(rb"(?:[^|\\]|\\.)+", done.stdout, re.DOTALL)
    undone = re.sub(rb"\\(.)", rb"\1", b"".join(pieces))
    assert (undone, done.stderr) == (TEXT + b"\xff\n", b"")
    facts = json.loads(bltcli("patches", "-m", "bundle", "--json", data=TEXT + b"\xff\n").stdout)
    assert bytes.fromhex("".join(patch["hex"] for patch in facts["patches"])) == TEXT + b"\xff\n"
    assert len(facts["patches"]) == len(pieces)
    for patch in facts["patches"]:
        assert len(patch["entropies_nats"]) == patch["bytes"]


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_patches_on_a_terminal_show_whole_characters(env: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    done = bltcli("patches", "-m", "bundle", data="é🙂[bold]é".encode() * 5, stdout=theirs, env=env)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, b"")
    assert ("\x1b[" in shown) == (not env)
    assert ("|" in shown) == bool(env)
    assert re.sub(r"\x1b\[[\d;]*m|\||\s", "", shown) == "é🙂[bold]é" * 5


def test_patches_of_nothing_are_none() -> None:
    assert bltcli("patches", "-m", "bundle").stdout == b""
    assert json.loads(bltcli("patches", "-m", "bundle", "--json").stdout)["patches"] == []


# models, doctor


def test_the_builtin_model_is_exported_once_and_then_found(tmp_path: Path) -> None:
    env = {"BLTCLI_CACHE_DIR": str(tmp_path)}
    first = _builtin("models", "path", env=env)
    folder = Path(first.stdout.decode().removesuffix("\n"))
    assert (first.returncode, b"first use" in first.stderr) == (0, True)
    again = _builtin("models", "path", env=env)
    assert (again.stdout, again.stderr) == (first.stdout, b"")
    assert str(folder) in _builtin("models", "list", env=env).stdout.decode()
    assert _builtin("models", "verify", env=env).stdout == f"ok  {folder}\n".encode()
    listed = json.loads(_builtin("models", "list", "--json", env=env).stdout)
    assert [row["kind"] for row in listed] == ["built-in", "cached"]
    assert len(_builtin("generate", "-n", "4", "--ignore-eos", data=b"x", env=env).stdout) == 4
    report = json.loads(_builtin("doctor", "--json").stdout)
    assert report["ok"], report
    assert {"ort-cpu", "torch", "cache folder"} <= {check["name"] for check in report["checks"]}
    assert b"FAIL" not in _builtin("doctor").stdout


def test_a_cache_that_cannot_be_written_gives_way_to_a_temporary_folder() -> None:
    env = {"BLTCLI_CACHE_DIR": str(home() / "checkpoint" / "config.json" / "cache")}
    done = _builtin("generate", "-n", "4", "--ignore-eos", data=b"x", env=env)
    assert (done.returncode, len(done.stdout)) == (0, 4)
    assert b"cannot be written: using a temporary folder" in done.stderr
    folder = re.search(rb"model to (\S+)\n", done.stderr)
    assert folder is not None
    assert not Path(folder[1].decode()).parent.exists()


def test_a_damaged_bundle_fails_verification(tmp_path: Path) -> None:
    done = bltcli("models", "verify", str(tmp_path))
    assert (done.returncode, done.stdout) == (3, b"")
    assert "no bundle" in one_line(done)


def test_doctor_refuses_two_onnx_runtimes_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def version(name: str) -> str | None:
        return None if name == "torch" else "1.0"

    monkeypatch.setattr(doctor, "installed", version)
    monkeypatch.setattr(doctor, "model_checks", lambda engine: pytest.fail("must not load either"))
    assert cli.run(["doctor"]) == 3
    out = capfdbinary.readouterr().out
    assert b"both installed" in out
    assert b"pip uninstall -y onnxruntime onnxruntime-gpu" in out
    assert b"pip install 'bltcli[torch]'" in out


@pytest.mark.parametrize(
    ("enabled", "tunables", "ok", "advised"),
    [
        ("[always] madvise never", "", True, False),
        ("always [madvise] never", "", False, True),
        ("always [madvise] never", "glibc.malloc.check=0:glibc.malloc.hugetlb=1", True, False),
        ("always madvise [never]", "", False, False),
        (None, "", False, False),
    ],
)
def test_doctor_says_how_to_ask_for_huge_pages(
    enabled: str | None, tunables: str, ok: bool, advised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    if enabled is not None:
        (tmp_path / "enabled").write_text(f"{enabled}\n")
    row = doctor.huge_page_check()
    assert (row["ok"], row["optional"], "glibc.malloc.hugetlb=1" in row["fix"]) == (ok, True, advised)


def test_doctor_fails_when_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(engine: str) -> None:
        raise ModelError(f"{engine} is out of order")

    monkeypatch.setattr("bltcli.verify.self_test", broken)
    assert cli.run(["doctor", "--json"]) == 3

"""What the tests of the command line share: a tiny random model, and `python -m bltcli` in a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast
from unittest import mock

from bltcli import cli
from tests.tiny import tiny_checkpoint

CONTEXT = 4096
Done = subprocess.CompletedProcess[bytes]


@functools.cache
def home() -> Path:
    """A folder with a tiny `checkpoint` and its `bundle`: HOME and working directory of the processes."""
    from bltcli_export.exporter import export_checkpoint

    folder = Path(tempfile.mkdtemp(prefix="bltcli-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    checkpoint = tiny_checkpoint(folder / "checkpoint", "lookup", max_bytes=CONTEXT, max_patches=CONTEXT)
    export_checkpoint(checkpoint, folder / "bundle", precision="fp32", check=False)
    return folder


def environment(**more: str) -> dict[str, str]:
    """The environment without anything that configures bltcli."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("BLTCLI", "XDG_", "NO_COLOR"))}
    return {**kept, "HOME": str(home()), "BLTCLI_CACHE_DIR": str(home() / "cache"), "TERM": "xterm", **more}


def with_tiny_builtin() -> list[str]:
    """The command that starts bltcli with the tiny checkpoint in the place of the built-in model."""
    folder = str(home() / "checkpoint")
    program = f"""\
import pathlib
import bltcli.models, bltcli_export.exporter as exporter
from bltcli.cli import main
bltcli.models.builtin_checkpoint = lambda: pathlib.Path({folder!r})
export = exporter.export_checkpoint
exporter.export_checkpoint = lambda *a, **more: export(*a, **dict(more, check=False))  # the gate has its own tests
main()"""
    return [sys.executable, "-c", program]


def start(
    *args: str, env: dict[str, str] | None = None, program: list[str] | None = None, **streams: Any
) -> subprocess.Popen[bytes]:
    """Start bltcli with pipes for whatever `streams` leaves out; it can be interrupted even where the tests, in the
    background of a script, cannot."""
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr") if name not in streams}
    command = program or [sys.executable, "-m", "bltcli"]
    streams |= {"cwd": home(), "env": environment(**(env or {}))}
    streams.setdefault("preexec_fn", _take_interrupts)
    return cast("subprocess.Popen[bytes]", subprocess.Popen([*command, *args], **pipes, **streams))


def _take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def bltcli(*args: str, data: bytes = b"", **options: Any) -> Done:
    """Run bltcli to its end with `data` on stdin."""
    with start(*args, **options) as process:
        try:
            out, err = process.communicate(None if "stdin" in options else data, timeout=120)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def here(*args: str) -> Done:
    """Run bltcli in this process, which is faster: for what needs no streams, signals or fresh interpreter."""
    nothing, out, err = io.BytesIO(), io.BytesIO(), io.BytesIO()
    stdin, stdout, stderr = (io.TextIOWrapper(raw, encoding="utf-8", write_through=True) for raw in (nothing, out, err))
    with (
        mock.patch.dict(os.environ, environment(), clear=True),
        mock.patch.multiple(sys, stdin=stdin, stdout=stdout, stderr=stderr),
        contextlib.chdir(home()),
    ):
        code = cli.run(list(args))
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def generate(*args: str, data: bytes = b"Once", **options: Any) -> Done:
    """`bltcli generate` with the tiny model, which is kept from ending the text."""
    return bltcli("generate", "--model", "bundle", "--ignore-eos", *args, data=data, **options)


def until_closed(terminal: int) -> bytes:
    """What was written to the other end of a pseudo-terminal, once that is closed."""
    data = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux says EIO when the other end is closed
            return data
        data += piece


def one_line(done: Done) -> str:
    """stderr, which must be one line of ours."""
    text: str = done.stderr.decode()
    assert text.startswith("bltcli: "), text
    assert text.count("\n") == 1, text
    assert text.endswith("\n"), text
    return text

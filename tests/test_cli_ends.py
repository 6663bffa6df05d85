"""Broken pipes, interrupts, full disks and terminals, with real processes."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import IO

import pytest

from tests.cli_support import bltcli, generate, home, one_line, start, until_closed

ENDLESS = ("generate", "--model", "bundle", "--ignore-eos", "-p", "x", "-n", "4000", "--method", "ar")


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def test_the_reader_may_leave() -> None:
    with start(*ENDLESS, "--stats-json", "left.json") as process:
        assert len(_pipe(process.stdout).read(10)) == 10
        _pipe(process.stdout).close()
        assert (process.wait(60), _pipe(process.stderr).read()) == (141, b"")
    assert json.loads((home() / "left.json").read_bytes())["finish_reason"] is None


@pytest.mark.parametrize("args", [["--help"], ["generate", "--help"], ["inspect", "bundle"]])
def test_the_reader_may_leave_before_anything_is_written(args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = bltcli(*args, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_keeps_the_output_so_far_and_writes_statistics() -> None:
    with start(*ENDLESS, "--stats-json", "interrupted.json") as process:
        some = _pipe(process.stdout).read(100)
        process.send_signal(signal.SIGINT)
        out = some + _pipe(process.stdout).read()
        assert (process.wait(60), _pipe(process.stderr).read()) == (130, b"")
    facts = json.loads((home() / "interrupted.json").read_bytes())
    assert 100 <= len(out) < 4000
    assert (facts["new_bytes"], facts["finish_reason"]) == (len(out), None)
    assert generate("-p", "x", "-n", str(len(out)), "--method", "ar").stdout == out


def test_an_interrupt_while_waiting_for_stdin_is_quiet() -> None:
    with start("generate", "--model", "bundle") as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        assert (process.wait(60), _pipe(process.stdout).read(), _pipe(process.stderr).read()) == (130, b"", b"")


def test_a_second_interrupt_gives_up_on_a_reader_that_is_stuck() -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b"x" * 3800)
    with start(*ENDLESS, "--stats-json", "stuck.json", stdout=write) as process:
        time.sleep(3.0)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(1.0)
        assert (process.wait(60), _pipe(process.stderr).read()) == (130, b"")
    os.close(write)
    os.close(read)
    assert json.loads((home() / "stuck.json").read_bytes())["finish_reason"] is None


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    def no_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    with open(tmp_path / "full", "wb") as full:
        done = generate("-n", "5", stdout=full, preexec_fn=no_room)
    assert done.returncode == 1
    assert "File too large" in one_line(done)


def test_a_closed_stdout_is_said() -> None:
    done = generate("-n", "5", stdout=None, preexec_fn=lambda: os.close(1))
    assert done.returncode == 1
    assert "stdout is closed" in one_line(done)


def test_strict_utf8_stops_at_the_first_invalid_byte() -> None:
    done = generate("-n", "20", "--utf8", "strict", "--echo", data=b"caf\xc3\xa9\xff")
    assert (done.returncode, done.stdout) == (1, "café".encode())
    assert "at byte 5" in one_line(done)


# Terminals


def test_a_terminal_gets_whole_characters(terminal: tuple[int, int]) -> None:
    raw = generate("-n", "200", "--echo", data="🙂".encode()).stdout
    ours, theirs = terminal
    done = generate("-n", "200", "--echo", data="🙂".encode(), stdout=theirs)
    os.close(theirs)
    assert until_closed(ours).decode() == raw.decode(errors="replace")
    assert done.stderr == b""


def test_stdin_that_is_a_terminal_is_no_prompt(terminal: tuple[int, int]) -> None:
    done = bltcli("generate", stdin=terminal[1])
    os.close(terminal[1])
    assert done.returncode == 2
    assert "printf 'Once upon a time' | bltcli generate" in one_line(done)


@pytest.mark.parametrize("colour", [True, False])
def test_progress_shows_only_on_a_terminal(terminal: tuple[int, int], colour: bool) -> None:
    ours, theirs = terminal
    done = generate("-n", "300", stderr=theirs, env={} if colour else {"NO_COLOR": "1"})
    os.close(theirs)
    shown = until_closed(ours)
    assert len(done.stdout) == 300
    assert b"/300 bytes" in shown
    assert (b"\x1b[33m" in shown) == colour


def test_progress_in_a_log_is_plain_and_only_on_request() -> None:
    done = generate("-n", "30", "--progress")
    assert done.stderr.startswith(b"bltcli: ")
    assert b"of at most 30 bytes" in done.stderr
    assert b"\x1b" not in done.stderr
    assert b"\r" not in done.stderr

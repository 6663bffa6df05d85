"""The sandbox: each limit stops what it is there for and says so, nothing is left behind, and a wall that is missing is
noticed before any program runs."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from pathlib import Path

import pytest

from bltcli.errors import UsageError
from bltcli.evaluate import jail, probes, sandbox
from bltcli.evaluate.sandbox import Limits, Sandbox

pytestmark = pytest.mark.namespaces
SMALL = Limits(seconds=5, memory_bytes=256 << 20, processes=4, folder_bytes=1 << 20)


@pytest.fixture(scope="module")
def small() -> Sandbox:
    return Sandbox(SMALL)


FORK_BOMB = "import os\nwhile True: os.fork()"
QUIET_FORK_BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
THREADS = (
    "import threading, time\nfor _ in range(9): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
)


@pytest.mark.parametrize(
    ("program", "reason", "says"),
    [
        ("x = 1", "passed", ""),
        ("assert 1 + 1 == 3, 'no'", "wrong", "AssertionError: no"),
        ("int('a')", "error", "ValueError"),
        ("def f(:", "error", "SyntaxError"),
        ("def f(): f()\nf()", "error", "RecursionError"),
        (FORK_BOMB, "processes", "BlockingIOError"),
        (THREADS, "processes", "can't start new thread"),
        ("x = bytearray(10 << 30)", "memory", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory", "MemoryError"),
        ("open('/usr/probe', 'w')", "files", "Read-only"),
        ("open('a', 'wb').write(bytes(2 << 20))", "files", ""),
        ("import os\nos.remove(os.__file__)", "files", "Read-only"),
        ("import urllib.request as r\nr.urlopen('http://192.0.2.1/')", "network", "unreachable"),
        ("import socket\nsocket.create_connection(('example.com', 80))", "network", "name resolution"),
        ("import sys\nsys.exit(0)", "exit", "SystemExit"),
        ("import os\nos._exit(0)", "exit", "status 0"),
        ("import os\nos.kill(os.getpid(), 11)", "crash", "SIGSEGV"),
        ("import os\nfor n in (-1, 1):\n    try: os.kill(n, 9)\n    except OSError: pass", "passed", ""),
        ("open('a', 'w').write('b')\nassert open('a').read() == 'b'", "passed", ""),
        ("print('x' * 10_000_000)", "passed", ""),
        ("import math, re, heapq, collections, random, decimal, dataclasses, typing, ctypes", "passed", ""),
    ],
)
def test_a_program_ends_as_it_should_and_says_why(small: Sandbox, program: str, reason: str, says: str) -> None:
    outcome = small.run(program)
    assert (outcome.reason, outcome.passed) == (reason, reason == "passed")
    assert says in outcome.detail


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)", QUIET_FORK_BOMB])
@pytest.mark.usefixtures("small")
def test_an_endless_program_is_stopped_in_time(program: str) -> None:
    began = time.monotonic()
    assert sandbox._run(program, Limits(seconds=0.5)).reason == "time"
    assert time.monotonic() - began < 5


def test_a_program_that_is_late_would_have_passed_with_more_time(small: Sandbox) -> None:
    program = "import time\ntime.sleep(0.7)"
    assert sandbox._run(program, Limits(seconds=0.5)).reason == "time"
    assert small.run(program).passed


def test_no_connection_reaches_this_machine(small: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        assert small.run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))").reason == "network"
        with pytest.raises(TimeoutError):
            server.accept()
        with socket.create_connection(("127.0.0.1", port)):  # from outside it works
            server.accept()


def test_neither_environment_nor_files_of_the_caller_are_seen(
    small: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLTCLI_SECRET", "secret")
    (tmp_path / "secret").write_text("secret")
    seen = f"import os\nassert 'BLTCLI_SECRET' in os.environ or os.path.exists({str(tmp_path / 'secret')!r})"
    assert small.run(seen).reason == "wrong"
    exec(seen, {})  # the same outside


def test_what_one_program_wrote_the_next_does_not_see(small: Sandbox) -> None:
    assert small.run("open('a', 'w').write('b')").passed
    assert "FileNotFoundError" in small.run("open('a')").detail


def names() -> set[str]:
    """The names of all processes."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.add((entry / "comm").read_text().strip())
            except OSError:
                continue
    return found


def test_no_process_outlives_its_program(small: Sandbox) -> None:
    name = f"left-{secrets.token_hex(4)}"
    program = f"""
import ctypes, os, time
ctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
time.sleep(0.2)
"""
    exec(f"import ctypes\nctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)", {})
    try:
        assert name in names()  # that is how one would be found
    finally:
        exec("import ctypes\nctypes.CDLL(None).prctl(15, b'python', 0, 0, 0)", {})
    assert small.run(program).passed
    assert name not in names()
    assert sandbox._run(f"{program}\nwhile True: pass", Limits(seconds=0.8)).reason == "time"
    assert name not in names()


#: What is taken out of the walls, and what the proof then says.
MISSING = {
    "network": (" | NEWNET", "", "a connection to 127.0.0.1"),
    "filter": ("    install_filter()\n", "", "memory that no limit counts"),
    "memory": ('("AS", limits["memory_bytes"]),', "", "an allocation of 512 MiB"),
    "processes": ('("NPROC", limits["processes"] + others),', "", "starting 32 processes"),
    "root": ('    make_read_only("/", recursive=False)\n', "", "writing into /"),
    "libraries": ("ATTR_RDONLY | more", "more", "writing into /"),
    "folder": ('size={folder_bytes},', "", "a file of 2 MiB"),
    "environment": (', "PYTHONHASHSEED": "0"}', ', "SECRET": "0"}', "environment variables"),
}  # fmt: skip
if os.geteuid() == 0:  # anyone else has no rights to give up
    give_up = "os.geteuid() == 0:\n        os.setgroups"
    MISSING["user"] = (give_up, "False:\n        os.setgroups", "the program runs as root")


@pytest.mark.parametrize("wall", MISSING)
@pytest.mark.usefixtures("small")
def test_a_missing_wall_is_noticed(wall: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, says = MISSING[wall]
    source = Path(jail.__file__).read_text()
    assert old in source
    if wall == "folder":  # two limits hold here
        source = source.replace('("FSIZE", limits["folder_bytes"]),', "")
    (tmp_path / "jail.py").write_text(source.replace(old, new))
    monkeypatch.setattr(jail, "__file__", str(tmp_path / "jail.py"))
    with pytest.raises(UsageError, match="no sandbox on this machine") as refusal:
        sandbox.prove()
    assert says in str(refusal.value)


@pytest.mark.usefixtures("small")
def test_a_clock_that_does_not_stop_programs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(jail.__file__).read_text()
    patient = source.replace('limits["milliseconds"] / 1000', "60").replace('("CPU", limits["cpu_seconds"]),', "")
    (tmp_path / "jail.py").write_text(patient)
    (tmp_path / "probes.py").write_text("")
    monkeypatch.setattr(jail, "__file__", str(tmp_path / "jail.py"))
    monkeypatch.setattr(probes, "__file__", str(tmp_path / "probes.py"))
    monkeypatch.setattr(sandbox, "_START_SECONDS", 1.0)
    sandbox.prove()  # the caller's own clock still stands
    (tmp_path / "jail.py").write_text(patient.replace("os.execve(python", "os._exit(0) or os.execve(python"))
    with pytest.raises(UsageError, match="no sandbox"):
        sandbox.prove()


@pytest.mark.parametrize("refusal", ["Operation not permitted", "No space left on device"])
def test_where_walls_cannot_be_built_nothing_runs(
    refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(jail.__file__).read_text().replace('call("unshare",', f"raise OSError(1, {refusal!r}); (")
    (tmp_path / "jail.py").write_text(source)
    monkeypatch.setattr(jail, "__file__", str(tmp_path / "jail.py"))
    with pytest.raises(UsageError, match=f"no sandbox on this machine: .*{refusal}"):
        Sandbox()


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match="darwin"):
        Sandbox()
    with pytest.raises(OSError, match="riscv64"):
        jail.kernel_filter("riscv64")


@pytest.mark.parametrize("limits", [{"seconds": 0.0}, {"seconds": float("nan")}, {"memory_bytes": 1 << 20}])
def test_limits_that_no_program_could_keep_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"use 0\.1|needs 64 MiB"):
        Limits(**limits)  # type: ignore[arg-type]

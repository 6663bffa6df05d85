"""Runs one program at a time in a process that can do no harm, after proving that each of its limits bites.

Linux only, by the kernel's own means (`jail`): namespaces of mounts, processes, network and shared memory, an
unprivileged user, resource limits, a filter of kernel calls, and an end to the whole process tree. There is no network,
the libraries are read-only, one folder in memory is all there is to write, and nothing of the caller's is passed on.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bltcli.errors import UsageError
from bltcli.evaluate import jail, probes

Reason = Literal[
    "passed",
    "wrong",  # an assertion failed
    "error",  # any other exception
    "exit",  # the program left before its end
    "crash",  # a signal
    "time",
    "memory",
    "processes",
    "files",  # a write outside its folder, or too much inside
    "network",
]

_SYSTEM: Final = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")
_START_SECONDS: Final = 5.0  # what starting two interpreters may take on a busy machine; not the program's time
_BY_ERRNO: Final[dict[int, Reason]] = {
    errno.ENOMEM: "memory",
    errno.EAGAIN: "processes",
    errno.EROFS: "files", errno.EACCES: "files", errno.EPERM: "files", errno.EFBIG: "files", errno.ENOSPC: "files",
    errno.ENETUNREACH: "network", errno.EHOSTUNREACH: "network", errno.EADDRNOTAVAIL: "network",
    errno.EAFNOSUPPORT: "network",
}  # fmt: skip
_BY_NAME: Final[dict[str, Reason]] = {
    "AssertionError": "wrong",
    "MemoryError": "memory",
    "SystemExit": "exit",
    "gaierror": "network",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use. Memory is address space of each process: all together, `processes` times as much."""

    seconds: float = 10.0  # on the clock
    memory_bytes: int = 1 << 30
    processes: int = 4  # threads count as such
    folder_bytes: int = 16 << 20  # of the folder, and of each file in it

    def __post_init__(self) -> None:
        if not 0.1 <= self.seconds <= 3600:
            raise UsageError(f"a program's time is {self.seconds} seconds; use 0.1 to 3600")
        if self.memory_bytes < 64 << 20:
            raise UsageError(f"a program's memory is {self.memory_bytes} bytes; Python itself needs 64 MiB")


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    reason: Reason
    detail: str  # the exception, the signal; empty when passed

    @property
    def passed(self) -> bool:
        return self.reason == "passed"


class Sandbox:
    """Runs programs for this interpreter's Python. UsageError where the walls cannot be built or do not hold."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        prove()

    def run(self, program: str) -> Outcome:
        """Run Python source to its end or to a limit. It passes when its last line was reached and raised nothing.

        What it prints is thrown away. A program made to forge its own report can: this guards the machine, not the
        score.
        """
        return _run(program, self.limits)


def prove() -> None:
    """Show that every wall stands, by programs that lean on it. UsageError with the first that does not."""
    if sys.platform != "linux":
        raise UsageError(f"programs are run on Linux only, this is {sys.platform}; leave out --execute")
    limits = Limits(seconds=20.0, memory_bytes=256 << 20, folder_bytes=1 << 20)
    outcome = _run(Path(probes.__file__).read_text(encoding="utf-8"), limits)
    if not outcome.passed:
        raise UsageError(f"no sandbox on this machine: {outcome.detail or outcome.reason}; leave out --execute")
    outcome = _run("while True: pass", Limits(seconds=0.2))
    if outcome.reason != "time":
        raise UsageError(f"no sandbox on this machine: an endless program ended as {outcome}; leave out --execute")


def _run(program: str, limits: Limits) -> Outcome:
    numbers = {
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "folder_bytes": limits.folder_bytes,
        "cpu_seconds": math.ceil(limits.seconds),
        "milliseconds": math.ceil(1000 * limits.seconds),
    }
    options = {"limits": numbers, "libraries": _libraries(), "python": _python()}
    process = subprocess.Popen(
        [_python(), "-I", "-S", "-B", jail.__file__, json.dumps(options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={}, cwd="/", close_fds=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, complaint = process.communicate(program.encode(), timeout=limits.seconds + _START_SECONDS)
    except subprocess.TimeoutExpired:
        return Outcome("time", f"more than {limits.seconds:g} s")
    finally:
        if process.returncode is None:  # still there: the launcher and process 1 die here, the rest with process 1
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    try:
        facts = json.loads(said)
    except ValueError:
        raise UsageError(f"no sandbox on this machine: {_last_line(complaint) or 'it ended without a word'}") from None
    return _outcome(facts, limits)


def _outcome(facts: dict[str, Any], limits: Limits) -> Outcome:
    if "setup" in facts:
        raise UsageError(f"no sandbox on this machine: {facts['setup']}; leave out --execute")
    if facts.get("late"):
        return Outcome("time", f"more than {limits.seconds:g} s")
    status = int(facts["status"])
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return Outcome("time" if number == signal.SIGXCPU else "crash", f"killed by {name}")
    try:
        report = json.loads(facts["said"])
    except ValueError:
        return Outcome("exit", f"left with status {os.WEXITSTATUS(status)} before its end")
    if "setup" in report:
        raise UsageError(f"no sandbox on this machine: {report['setup']}; leave out --execute")
    return _judge(report["errors"])


def _judge(errors: list[tuple[str, int | None, str]]) -> Outcome:
    """From an exception and those that it came of, the first that tells which limit it was."""
    if not errors:
        return Outcome("passed", "")
    detail = ": ".join(filter(None, (errors[0][0], errors[0][2])))
    for name, number, text in errors:
        reason = _BY_NAME.get(name) or _BY_ERRNO.get(number or 0)
        if text == "can't start new thread":
            reason = "processes"
        if reason is not None:
            return Outcome(reason, detail)
    return Outcome("error", detail)


def _last_line(complaint: bytes) -> str:
    return (complaint.decode(errors="replace").strip().splitlines() or [""])[-1]


def _python() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _libraries() -> list[str]:
    """What a Python program of the standard library needs to run; nothing of any home folder but Python's own."""
    own = [f"{prefix}/{lib}" for prefix in (sys.base_prefix, sys.base_exec_prefix) for lib in ("lib", "lib64")]
    found: list[str] = []
    for path in (*_SYSTEM, *own, _python()):
        if os.path.lexists(path) and not any(Path(path).is_relative_to(above) for above in found):
            found.append(path)
    return found

"""Run inside the sandbox by `sandbox.prove`: leans on every wall, and ends in an error that names one that gives way.

For 256 MiB of memory, 4 processes and 1 MiB of files. Imports the standard library alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL}


def refused(what: str, numbers: set[int], action: Callable[[], object]) -> None:
    """`action` must fail with one of these error numbers."""
    try:
        action()
    except (OSError, MemoryError) as error:
        number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
        if number in numbers:
            return
        raise RuntimeError(f"{what} ended in {error!r}") from None
    raise RuntimeError(f"{what} was not refused")


def write(path: str, size: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for _ in range(0, size, 4096):
            file.write(bytes(4096))


def fork_many() -> None:
    children = []
    try:
        for _ in range(32):
            child = os.fork()
            if not child:
                time.sleep(30)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def connect(host: str) -> None:
    with socket.socket() as connection:
        connection.settimeout(2)
        connection.connect((host, 9))


def call(name: str, *args: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) == -1:
        raise OSError(ctypes.get_errno(), name)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def main() -> None:
    # nothing of the caller's
    if os.geteuid() == 0 or os.getuid() == 0:
        raise RuntimeError("the program runs as root")
    if [fd for fd in range(256) if is_open(fd)] != [0, 1, 2, 3]:  # 3: what the runner reports to
        raise RuntimeError("file descriptors are passed on")
    if set(os.environ) - {"PATH", "HOME", "LANG", "LC_CTYPE", "PYTHONHASHSEED"}:
        raise RuntimeError("environment variables are passed on")
    if any(map(os.path.exists, ("/proc", "/sys", "/etc/passwd", "/var"))):
        raise RuntimeError("the machine's files can be seen")

    # files
    for folder in ("/", "/usr", "/dev", os.path.dirname(os.__file__)):
        refused(f"writing into {folder}", {errno.EROFS}, lambda folder=folder: write(f"{folder}/probe", 1))  # type: ignore[misc]
    write("small", 4096)
    refused("a file of 2 MiB", {errno.EFBIG, errno.ENOSPC}, lambda: write("large", 2 << 20))
    os.remove("large")

    # memory and processes
    refused("an allocation of 512 MiB", {errno.ENOMEM}, lambda: bytearray(512 << 20))
    refused("memory that no limit counts", {errno.EPERM}, lambda: call("memfd_create", b"probe", 0))
    refused("starting 32 processes", {errno.EAGAIN}, fork_many)

    # network
    for host in ("127.0.0.1", "192.0.2.1"):
        refused(f"a connection to {host}", UNREACHABLE, lambda host=host: connect(host))  # type: ignore[misc]
    refused("a socket to the machine's host", {errno.EAFNOSUPPORT}, lambda: socket.socket(40, socket.SOCK_STREAM))

    # ways out
    for flag in (0x10000000, 0x20000, 0x40000000):
        refused("a new namespace", {errno.EPERM}, lambda flag=flag: call("unshare", flag))  # type: ignore[misc]
    refused("a mount", {errno.EPERM}, lambda: call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None))
    refused("becoming root", {errno.EPERM, errno.EINVAL}, lambda: os.setuid(0))


if __name__ == "__main__":
    main()

"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_folder(out: Path, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well, and vanishes when it does not.

    An existing `out` is replaced only if it is empty or `replaceable(out)`; FileExistsError otherwise. Two processes
    may do this at once: each result is whole, the last one stays.
    """
    _check(out, replaceable)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    temporary.mkdir()
    try:
        yield temporary
        _check(out, replaceable)
        _swap(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `path`, open for writing, that takes its place when the block ends well and vanishes when
    it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a crash of the machine may leave the name on an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(path: Path) -> None:
    """Remove what killed processes left of `atomic_file(path)`. For a caller that knows that no other one runs."""
    for file in path.parent.iterdir():
        if file.name.startswith(f".{path.name}.") and file.name.endswith(".partial"):
            file.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary file beside it."""
    with atomic_file(path) as file:
        file.write(data)


def _check(out: Path, replaceable: Callable[[Path], bool]) -> None:
    if out.parent.exists() and not out.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out.parent))
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or replaceable(out))):
        raise FileExistsError(out)


def _swap(new: Path, out: Path) -> None:
    """Rename `new` to `out`; what stood there moves away first, as a folder with contents cannot be renamed over."""
    while True:
        try:
            new.rename(out)
        except OSError:
            if not out.exists():
                raise
        else:
            return
        old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
        try:
            out.rename(old)
        except FileNotFoundError:  # another process moved it away first
            continue
        shutil.rmtree(old, ignore_errors=True)

"""Where lines go: to stdout as one text, or to files that appear when they are whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

from bltcli import streams
from bltcli.atomic import atomic_file, remove_partial
from bltcli.errors import BltError, UsageError


class Sink(Protocol):
    def write(self, file: int, data: bytes) -> None:
        """Write a line of input number `file`; files come in order."""
        ...

    def finish(self) -> None:
        """Everything is written."""
        ...


class ToStdout:
    """All inputs after one another. Where one ends without a line feed and another follows, one is put between: lines
    of two files never become one."""

    def __init__(self) -> None:
        self._whole = True

    def write(self, file: int, data: bytes) -> None:
        streams.write_stdout(data if self._whole else b"\n" + data)
        self._whole = data.endswith(b"\n")

    def finish(self) -> None:
        pass


class ToFiles:
    """A file per input. BltError when one cannot be written."""

    def __init__(self, paths: Sequence[Path], *, alone: bool = False) -> None:
        """`alone`: no other run writes these files, so that what a run that was killed left of them can go."""
        self._paths = [Path(os.path.realpath(path)) for path in paths]
        self._alone = alone
        self._next = 0
        self._open: IO[bytes] | None = None
        self._stack = ExitStack()

    def write(self, file: int, data: bytes) -> None:
        self._advance(file)
        assert self._open is not None
        with _said(self._paths[file]):
            self._open.write(data)

    def finish(self) -> None:
        self._advance(len(self._paths) - 1)
        self._close()

    def _advance(self, file: int) -> None:
        """Complete the files before number `file`, which may be empty, and open that one."""
        while self._next <= file:
            self._close()
            path = self._paths[self._next]
            with _said(path):
                if self._alone:
                    remove_partial(path)
                device = path.exists() and not path.is_file()
                self._open = self._stack.enter_context(path.open("wb") if device else atomic_file(path))
            self._next += 1

    def _close(self) -> None:
        if self._next:
            with _said(self._paths[self._next - 1]):
                self._stack.close()

    def __enter__(self) -> ToFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]  # nothing is left of a file that is not whole


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BltError(f"cannot write {path}: {error.strerror}") from error


def in_folder(folder: Path, inputs: Sequence[Path], suffix: str = "") -> list[Path]:
    """A path in `folder`, which is made, for each input: its name and `suffix`. UsageError where two inputs have one
    name, an output is an input, or the folder cannot be written."""
    paths = [folder / f"{path.name}{suffix}" for path in inputs]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"two inputs would be written to {path}; translate them one by one")
        if path.exists() and any(path.samefile(source) for source in inputs):
            raise UsageError(f"{path} is an input itself; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder -o {folder}: {error.strerror}") from error
    for path in paths:
        streams.check_writable(str(path), "-o")
    return paths

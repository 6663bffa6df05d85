"""Where lines go: to stdout as one text, or to a file per input that appears when it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Protocol

from bltcli import streams
from bltcli.atomic import atomic_file
from bltcli.errors import UsageError


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


class ToFolder:
    """One file per input, of the same name (and `suffix`)."""

    def __init__(self, folder: Path, inputs: Sequence[Path], suffix: str = "") -> None:
        """UsageError where two inputs have one name, or an output is an input."""
        self._paths = [folder / f"{path.name}{suffix}" for path in inputs]
        for path in self._paths:
            if self._paths.count(path) > 1:
                raise UsageError(f"two inputs would be written to {path}; translate them one by one")
            if path.exists() and any(path.samefile(source) for source in inputs):
                raise UsageError(f"{path} is an input itself; name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._next = 0
        self._open: IO[bytes] | None = None
        self._stack = ExitStack()

    def write(self, file: int, data: bytes) -> None:
        self._advance(file)
        assert self._open is not None
        self._open.write(data)

    def finish(self) -> None:
        self._advance(len(self._paths) - 1)
        self._stack.close()

    def _advance(self, file: int) -> None:
        """Complete the files before number `file`, which may be empty, and open that one."""
        while self._next <= file:
            self._stack.close()
            self._open = self._stack.enter_context(atomic_file(self._paths[self._next]))
            self._next += 1

    def __enter__(self) -> ToFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]  # nothing is left of a file that is not whole

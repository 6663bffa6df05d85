"""Lines of bytes as they arrive: split at line feeds alone, nothing decoded, nothing lost."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from bltcli.errors import UsageError

CHUNK_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class Line:
    """`body` and `end` together are what was read; `end` is a line feed, one with its carriage return, or nothing."""

    file: int  # which of the inputs it is from
    body: bytes
    end: bytes


class LineReader:
    """The lines of one stream, which may be endless and slow."""

    def __init__(self, stream: IO[bytes], file: int = 0) -> None:
        self._stream, self._file = stream, file
        self._pieces: list[bytes] = []  # of a line that has not ended yet
        self._lines: list[bytes] = []  # that wait to be taken, last first
        self._ended = False

    def take(self, *, wait: bool) -> Line | None:
        """The next line; None when there is none now and `wait` is not set. StopIteration at the end."""
        while not self._lines:
            if self._ended:
                if not self._pieces:
                    raise StopIteration
                self._lines, self._pieces = [b"".join(self._pieces)], []
            elif wait or self._readable():
                self._read()
            else:
                return None
        whole = self._lines.pop()
        body = whole.removesuffix(b"\n")
        if len(body) < len(whole):
            body = body.removesuffix(b"\r")
        return Line(self._file, body, whole[len(body) :])

    def _read(self) -> None:
        try:
            data = self._stream.read1(CHUNK_BYTES)  # type: ignore[attr-defined]  # every buffered binary stream has it
        except OSError as error:
            raise UsageError(f"cannot read {getattr(self._stream, 'name', 'the input')}: {error.strerror}") from error
        if not data:
            self._ended = True
            return
        first, *others = data.split(b"\n")
        self._pieces.append(first)
        if others:
            last = others.pop()
            self._lines = [line + b"\n" for line in [b"".join(self._pieces), *others]][::-1]
            self._pieces = [last] if last else []

    def _readable(self) -> bool:
        """Whether reading would not wait; True where the platform cannot say."""
        try:
            return bool(select.select([self._stream], [], [], 0)[0])
        except (OSError, ValueError):
            return True


class Lines:
    """The lines of several inputs one after another, each opened when it is reached."""

    def __init__(self, inputs: list[Callable[[], IO[bytes]]]) -> None:
        self._inputs = inputs
        self._file = -1
        self._reader: LineReader | None = None
        self._stream: IO[bytes] | None = None

    def take(self, *, wait: bool) -> Line | None:
        """As `LineReader.take`; each input's last line may lack its end."""
        while True:
            try:
                if self._reader is not None:
                    return self._reader.take(wait=wait)
            except StopIteration:
                pass
            self._next_input()

    def _next_input(self) -> None:
        self.close()
        self._file += 1
        if self._file == len(self._inputs):
            self._file -= 1
            raise StopIteration
        self._stream = self._inputs[self._file]()
        self._reader = LineReader(self._stream, self._file)

    def close(self) -> None:
        if self._stream is not None and self._stream is not getattr(sys.stdin, "buffer", None):
            self._stream.close()
        self._reader = self._stream = None


@contextmanager
def opened(inputs: list[Callable[[], IO[bytes]]]) -> Iterator[Lines]:
    lines = Lines(inputs)
    try:
        yield lines
    finally:
        lines.close()


def opener(path: Path) -> Callable[[], IO[bytes]]:
    """Opens `path` for reading. UsageError when it cannot be read: now, but for a pipe, which opens only once."""

    def open_it() -> IO[bytes]:
        try:
            return path.open("rb")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(f"cannot read {path}: {reason}") from error

    if not path.is_fifo():
        open_it().close()
    return open_it

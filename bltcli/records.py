"""Runs that survive an interruption: a JSONL file with a header line, then one line per record.

Knows neither models nor tasks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import IO, Any, Final, Self, TypeVar

from bltcli import __version__
from bltcli.errors import BltError, UsageError

Record = dict[str, Any]
T = TypeVar("T")

FORMAT: Final = "bltcli-records"
FORMAT_VERSION: Final = 2
SYNC_S: Final = 1.0  # lines written within so many seconds share one fsync
TAIL_BYTES: Final = 1 << 16  # read at a time in search of the last line


def collect(
    path: Path | None,
    header: Mapping[str, Any],
    groups: Sequence[Sequence[T]],
    make: Callable[[Sequence[T]], Sequence[Record]],
    advance: Callable[[int], None] = lambda _: None,
) -> list[Record]:
    """One record per item, in order; `make` turns a group of items into their records.

    With `path`, each group's lines are appended to that file as soon as they are made, below a line that holds `header`
    and the program's version. A later call goes on after the last group that is whole there. So the file comes out the
    same however often the run was interrupted, as long as `make` depends on its group alone. `advance` is told how many
    records there are. UsageError when the file has another header, holds anything else, or is being written by another
    process.
    """
    if path is None:
        records: list[Record] = []
        for group in groups:
            records += _made(make, group)
            advance(len(records))
        return records
    with RecordFile(path, header) as file:
        advance(file.resume([len(group) for group in groups]))
        for group in groups[file.whole_groups :]:
            file.append(_made(make, group))
            advance(len(file.records))
        return file.records


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of a sequence of byte strings; where one ends and the next begins counts."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


class JournalFile:
    """A JSONL file with a header line, open for appending and locked. What it holds is read when it is asked for."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        own = {"format": FORMAT, "format_version": FORMAT_VERSION, "version": __version__}
        self.path, self._head = path, _line({**own, **header})
        self._synced = monotonic()

    def __enter__(self) -> Self:
        """UsageError when the file has another header, is no such file, or is being written by another process."""
        if self.path.exists() and not self.path.is_file():
            raise UsageError(f"{self.path} is no regular file, and could not be read again; name another file")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")  # what is written goes to the end, wherever was read
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            self._lock()
            self._begin()
            self._read()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._sync()
        except BltError:
            if kind is None:  # else it has been said
                raise
        finally:
            self._close()

    def found(self) -> Iterator[tuple[Record, int]]:
        """The records that are there now, each with where its line ends in the file. UsageError for a damaged line."""
        with self.path.open("rb") as file:
            end = file.seek(self._head_size)
            for number, line in enumerate(file, 2):
                if end == self._size:  # what follows was appended since
                    return
                end += len(line)
                yield self._parsed(line, number), end

    def append(self, records: Sequence[Record]) -> None:
        """Survives the end of this process at once, that of the machine within SYNC_S. BltError when it cannot be
        written."""
        self._write(b"".join(map(_line, records)))
        if monotonic() - self._synced >= SYNC_S:
            self._sync()

    def _read(self) -> None:
        """What to do with what is there, for those who want it at once."""

    def _begin(self) -> None:
        """Check the header, or write it; a last line without its end was torn off by an interruption."""
        self._file.seek(0)
        head = self._file.readline()
        if not head.endswith(b"\n"):
            if not self._head.startswith(head):
                raise UsageError(f"{self.path} holds no records of bltcli; name another file, or remove it")
            self._file.truncate(0)
            self._write(self._head)
            self._head_size = self._size = len(self._head)
            return
        self._check_header(head)
        self._head_size = len(head)
        self._size = _last_line_end(self._file)
        self._file.truncate(self._size)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise BltError(f"cannot write {self.path}: {error.strerror}") from error

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise BltError(f"cannot write {self.path}: {error.strerror}") from error
        self._synced = monotonic()

    def _close(self) -> None:
        with suppress(OSError):  # of what could not be written, which has been said
            self._file.close()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self.path} is being written by another run") from None
        except OSError as error:
            raise UsageError(f"cannot lock {self.path}: {error.strerror}; name a file elsewhere") from error

    def _check_header(self, line: bytes) -> None:
        found, wanted = self._parsed(line, 1), json.loads(self._head)
        if found.get("format") != FORMAT:
            raise UsageError(f"{self.path} holds no records of bltcli; name another file, or remove it")
        for field in (*wanted, *found):
            ours, theirs = wanted.get(field), found.get(field)
            if ours != theirs:
                raise UsageError(
                    f"{self.path} was begun with {field} {_shown(theirs)}, this run has {_shown(ours)}; "
                    "run with the former, or name another file"
                )

    def _parsed(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UsageError(f"{self.path}: line {number} is damaged; remove the file to start anew")
        return record


class RecordFile(JournalFile):
    """The file of `collect`: its records are in memory, and it ends with a whole group."""

    def _read(self) -> None:
        self.records: list[Record] = []
        self.whole_groups = 0
        self._ends = [self._head_size]  # where each line ends in the file, the header's first
        for record, end in self.found():
            self.records.append(record)
            self._ends.append(end)

    def resume(self, sizes: Sequence[int]) -> int:
        """Keep as many groups of these sizes as are whole, drop the rest; how many records that leaves."""
        if len(self.records) > sum(sizes):
            raise UsageError(f"{self.path} holds {len(self.records)} records, this run has {sum(sizes)}; name another")
        kept = 0
        for size in sizes:
            if kept + size > len(self.records):
                break
            kept += size
            self.whole_groups += 1
        del self.records[kept:]
        self._file.truncate(self._ends[kept])
        return kept

    def append(self, records: Sequence[Record]) -> None:
        super().append(records)
        self.records += records


def _last_line_end(file: IO[bytes]) -> int:
    """Where the last line that has its end stops."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - TAIL_BYTES)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _made(make: Callable[[Sequence[T]], Sequence[Record]], group: Sequence[T]) -> Sequence[Record]:
    records = make(group)
    assert len(records) == len(group)
    return records


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _shown(value: Any) -> str:
    """A header's value, short enough for one line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."

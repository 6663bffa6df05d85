"""A run over many records that survives an interruption: a JSONL file with a header line, then one line per record.

Knows neither models nor tasks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final, Self, TypeVar

from bltcli import __version__
from bltcli.errors import UsageError

Record = dict[str, Any]
T = TypeVar("T")

FORMAT: Final = "bltcli-records"
FORMAT_VERSION: Final = 1
SYNC_S: Final = 1.0  # lines written within so many seconds share one fsync


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


class RecordFile:
    """The file of `collect`, open for appending and locked."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        own = {"format": FORMAT, "format_version": FORMAT_VERSION, "version": __version__}
        self.path, self._head = path, _line({**own, **header})
        self.records: list[Record] = []
        self.whole_groups = 0
        self._ends: list[int] = []  # where each line ends in the file, the header's first
        self._synced = monotonic()

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")  # what is written goes to the end, wherever was read
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._sync()
        finally:
            self._file.close()

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
        self._file.write(b"".join(map(_line, records)))
        self._file.flush()
        self.records += records
        if monotonic() - self._synced >= SYNC_S:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = monotonic()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{self.path} is being written by another run") from None

    def _read(self) -> None:
        """Take what is there; a last line without its end was torn off by an interruption."""
        self._file.seek(0)
        *lines, torn = self._file.read().split(b"\n")
        if not lines:
            if not self._head.startswith(torn):
                raise UsageError(f"{self.path} holds no records of bltcli; name another file, or remove it")
            self._file.truncate(0)
            self._file.write(self._head)
            self._file.flush()
            self._ends = [len(self._head)]
            return
        self._check_header(lines[0])
        self._ends = [len(lines[0]) + 1]
        for number, line in enumerate(lines[1:], 2):
            self.records.append(self._parsed(line, number))
            self._ends.append(self._ends[-1] + len(line) + 1)

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

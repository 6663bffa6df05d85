"""What was finished, on disk as soon as it is: a run that was killed goes on where it stood."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bltcli.batch.ordering import Item, Result
from bltcli.decoding.driver import Request
from bltcli.errors import UsageError
from bltcli.records import JournalFile, Record


class Journal(JournalFile):
    """Results in the order in which they came; a line each: n (the item's number), part, request (a digest of what was
    asked), output or output_base64, end, or error.

    A run begins nothing that is far ahead of its oldest unfinished item. So a later run, which meets the same input in
    the same order, finds an item's results a bounded way ahead, and holds no more lines than that.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume: bool) -> None:
        """UsageError where there is a journal and `resume` is not set."""
        if not resume and path.exists() and path.stat().st_size:
            raise UsageError(f"{path} exists; go on with it by --resume, or remove it")
        super().__init__(path, header)
        self._waiting: dict[tuple[int, int], Record] = {}  # read, and not asked for yet
        self.used = 0  # results that were known

    def _read(self) -> None:
        self._old: Iterator[tuple[Record, int]] = self.found()

    def known(self, item: Item, part: int) -> Result | None:
        """What this part came to in an earlier run. Items are asked for in order. UsageError when it was another
        input then."""
        wanted = item.number, part
        while wanted not in self._waiting:
            record, _ = next(self._old, ({}, 0))
            if not record:
                return None
            place = int(record.get("n", -1)), int(record.get("part", 0))
            if place >= wanted:  # else it was done twice, and has been used
                self._waiting[place] = record
        record = self._waiting.pop(wanted)
        request = item.requests[part]
        if record.get("request") != digest_of(request):
            raise UsageError(
                f"{self.path} was begun with another input: record {item.number + 1} differs; name another"
            )
        self.used += 1
        return _result(request.record, record)

    def add(self, item: Item, part: int, result: Result) -> None:
        place = {"n": item.number, **({"part": part} if part else {}), "request": digest_of(item.requests[part])}
        self.append([{**place, **_facts(result)}])


def digest_of(request: Request) -> str:
    """Short, and the same for the same text, noise and end."""
    stop = request.stop
    parts = (request.record, request.prompt, stop.max_bytes, stop.strings)
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def bytes_fields(name: str, data: bytes) -> dict[str, str]:
    """Bytes in JSON: as text; where they are no valid UTF-8, with U+FFFD in the text and in base64 beside it."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {name: data.decode(errors="replace"), f"{name}_base64": base64.b64encode(data).decode()}


def bytes_of(record: Mapping[str, Any], name: str) -> bytes:
    """What `bytes_fields` wrote."""
    if f"{name}_base64" in record:
        return base64.b64decode(record[f"{name}_base64"])
    return str(record[name]).encode()


def _facts(result: Result) -> Record:
    if result.error is not None:
        return {"error": result.error}
    return {**bytes_fields("output", result.output), "end": result.end}


def _result(record: int, facts: Record) -> Result:
    if "error" in facts:
        return Result(record, error=str(facts["error"]))
    return Result(record, bytes_of(facts, "output"), facts["end"])

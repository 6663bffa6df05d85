"""Records of a run: the same file however often it is interrupted, and never mixed up with another's."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest

from bltcli import __version__, records
from bltcli.errors import BltError, UsageError
from bltcli.records import Record, RecordFile, collect, digest

HEADER = {"task": "squares", "bundle_sha256": "abc", "settings": {"k": 4}}
GROUPS = [[0, 1, 2], [3], [4, 5]]


def squares(numbers: Sequence[int]) -> list[Record]:
    return [{"id": n, "output": f"{n * n} é\u2028"} for n in numbers]


def finished(path: Path) -> bytes:
    collect(path, HEADER, GROUPS, squares)
    return path.read_bytes()


def test_records_come_in_order_with_and_without_a_file(tmp_path: Path) -> None:
    told: list[int] = []
    found = collect(tmp_path / "new" / "a.jsonl", HEADER, GROUPS, squares, told.append)
    assert found == collect(None, HEADER, GROUPS, squares) == squares(range(6))
    assert told == [0, 3, 4, 6]
    header, *lines = (tmp_path / "new" / "a.jsonl").read_bytes().split(b"\n")
    own = {"format": "bltcli-records", "format_version": 2, "version": __version__}
    assert json.loads(header) == {**own, **HEADER}
    assert [json.loads(line) for line in lines[:-1]] == found
    assert lines[-1] == b""


def test_a_run_cut_at_any_byte_goes_on_to_the_same_file(tmp_path: Path) -> None:
    whole = finished(tmp_path / "whole.jsonl")
    part = tmp_path / "part.jsonl"
    ends = [len(b"".join(whole.splitlines(keepends=True)[: 1 + n])) for n in range(7)]
    for cut in range(len(whole) + 1):
        part.write_bytes(whole[:cut])
        asked: list[int] = []

        def make(numbers: Sequence[int], asked: list[int] = asked) -> list[Record]:
            asked.extend(numbers)
            return squares(numbers)

        assert collect(part, HEADER, GROUPS, make) == squares(range(6))
        assert part.read_bytes() == whole, cut
        lines = sum(end <= cut for end in ends[1:])
        kept = max(n for n in (0, 3, 4, 6) if n <= lines)  # whole groups only
        assert asked == list(range(kept, 6)), cut


def test_an_exception_leaves_whole_groups(tmp_path: Path) -> None:
    def make(numbers: Sequence[int]) -> list[Record]:
        if 4 in numbers:
            raise KeyboardInterrupt
        return squares(numbers)

    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        collect(path, HEADER, GROUPS, make)
    assert path.read_bytes().count(b"\n") == 1 + 4
    assert finished(path) == finished(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({**HEADER, "bundle_sha256": "abd"}, 'bundle_sha256 "abc", this run has "abd"'),
        ({**HEADER, "settings": {"k": 8}}, 'settings {"k": 4}, this run has {"k": 8}'),
        ({**HEADER, "more": 1}, "more null, this run has 1"),
        ({"task": "squares", "bundle_sha256": "abc"}, 'settings {"k": 4}, this run has null'),
    ],
)
def test_another_run_is_refused_by_the_field_that_differs(tmp_path: Path, header: Record, says: str) -> None:
    before = finished(tmp_path / "a.jsonl")
    with pytest.raises(UsageError) as error:
        collect(tmp_path / "a.jsonl", header, GROUPS, squares)
    assert says in str(error.value)
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_another_version_of_the_program_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "a.jsonl")
    with mock.patch.object(records, "__version__", "99.0"), pytest.raises(UsageError, match=r"version .* has \"99.0\""):
        collect(tmp_path / "a.jsonl", HEADER, GROUPS, squares)


@pytest.mark.parametrize("data", [b"hello", b"hello\n", b'{"format":"other"}\n', b"\n", b'{"a":1}', b"[1]\n"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(UsageError):
        collect(tmp_path / "a.jsonl", HEADER, GROUPS, squares)
    assert (tmp_path / "a.jsonl").read_bytes() == data


def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    lines = finished(tmp_path / "a.jsonl").splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join([*lines[:2], lines[2][:-5] + b"\n", *lines[3:]]))
    with pytest.raises(UsageError, match="line 3 is damaged"):
        collect(tmp_path / "a.jsonl", HEADER, GROUPS, squares)


def test_more_records_than_the_run_has_are_refused(tmp_path: Path) -> None:
    finished(tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="holds 6 records, this run has 4"):
        collect(tmp_path / "a.jsonl", HEADER, GROUPS[:2], squares)


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with (
        RecordFile(tmp_path / "a.jsonl", HEADER),
        pytest.raises(UsageError, match="being written by another run"),
        RecordFile(tmp_path / "a.jsonl", HEADER),
    ):
        pass
    finished(tmp_path / "a.jsonl")  # the lock is gone with its holder


@pytest.mark.parametrize(("seconds", "syncs"), [(0.0, len(GROUPS) + 1), (1000.0, 1)])
def test_lines_written_close_together_share_one_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, syncs: int
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(records, "SYNC_S", seconds)
    monkeypatch.setattr(os, "fsync", synced.append)
    finished(tmp_path / "a.jsonl")
    assert len(synced) == syncs


def test_a_digest_knows_where_its_parts_end() -> None:
    assert len({digest(parts) for parts in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""], [])}) == 5
    assert digest(iter([b"ab", b"c"])) == digest([b"ab", b"c"])


def test_what_cannot_be_read_again_is_refused() -> None:
    with pytest.raises(UsageError, match="/dev/null is no regular file"):
        collect(Path("/dev/null"), HEADER, GROUPS, squares)
    with pytest.raises(UsageError, match="cannot write /dev/null/x: "):
        collect(Path("/dev/null/x"), HEADER, GROUPS, squares)


def test_a_full_disk_is_named_and_what_was_written_before_is_kept(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    whole = finished(tmp_path / "whole.jsonl")
    path, limits = tmp_path / "a.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) - 10, limits[1]))
    try:
        with pytest.raises(BltError, match=rf"cannot write {path}: File too large"):
            collect(path, HEADER, GROUPS, squares)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert whole.startswith(path.read_bytes())
    assert finished(path) == whole

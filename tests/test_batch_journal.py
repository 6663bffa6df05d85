"""The journal: whatever was finished is found again, wherever a run was cut, and never in another run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bltcli.batch.journal import Journal, bytes_fields, bytes_of, digest_of
from bltcli.batch.ordering import Item, Result, Window
from bltcli.batch.run import run_items
from bltcli.decoding.driver import Request
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError

HEADER = {"task": "test", "bundle_sha256": "abc"}
OUTPUTS = [b"", b"plain", "é\u2028".encode(), b"\xff\0\n"]


def items(count: int, *, changed: int | None = None) -> list[Item]:
    """Items of no, one or two requests."""
    found = []
    for n in range(count):
        text = f"{'changed' if n == changed else 'text'} {n}".encode()
        requests = [Request(n + (part << 40), text + b"x" * (n * 7 % 11), Stop(max_bytes=9)) for part in range(n % 3)]
        found.append(Item(n, text, requests, len(text)))
    return found


class Listed:
    def __init__(self, found: list[Item]) -> None:
        self._found = iter(found)

    def take(self, *, wait: bool) -> Item | None:
        return next(self._found)


class Runner:
    """Answers up to `rows` requests at a time, in random order."""

    def __init__(self, rows: int = 4, seed: int = 0) -> None:
        self.rows, self.rng, self.asked = rows, random.Random(seed), 0

    def __call__(self, requests: Iterator[Request]) -> Iterator[Result]:
        running: list[Request] = []
        while True:
            running += [request for _, request in zip(range(self.rows - len(running)), requests, strict=False)]
            if not running:
                return
            self.asked += 1
            yield answer(running.pop(self.rng.randrange(len(running))))


def answer(request: Request) -> Result:
    if request.record % 13 == 5:
        return Result(request.record, error="refused: \u00e9")
    return Result(request.record, OUTPUTS[len(request.prompt) % 4], "length")


def run(path: Path | None, found: list[Item], runner: Runner) -> list[list[Result]]:
    if path is None:
        return [item.found for item in run_items(Window(Listed(found), ahead=64), runner)]
    with Journal(path, HEADER, resume=True) as journal:
        window = Window(Listed(found), ahead=64, known=journal.known)
        return [item.found for item in run_items(window, runner, journal=journal)]


def test_a_run_cut_at_any_byte_comes_to_the_same_and_repeats_nothing_that_was_kept(tmp_path: Path) -> None:
    expected = run(None, items(30), Runner())
    whole = tmp_path / "whole.jsonl"
    assert run(whole, items(30), Runner()) == expected
    data = whole.read_bytes()
    lines = data.splitlines(keepends=True)
    assert [set(json.loads(line)) >= {"n", "request"} for line in lines[1:]] == [True] * 30
    part = tmp_path / "part.jsonl"
    for cut in [0, 1, len(lines[0]) - 1, *range(len(lines[0]), len(data), 17), len(data)]:
        part.write_bytes(data[:cut])
        runner = Runner(rows=3, seed=cut)
        assert run(part, items(30), runner) == expected, cut
        assert runner.asked == 30 - max(0, data[:cut].count(b"\n") - 1), cut
        again = Runner()
        assert run(part, items(30), again) == expected
        assert again.asked == 0


def test_a_run_that_is_cut_again_and_again_holds_little(tmp_path: Path) -> None:
    expected = run(None, items(600), Runner())
    path, rng = tmp_path / "a.jsonl", random.Random(0)
    most = 0
    for attempt in range(12):
        with Journal(path, HEADER, resume=True) as journal:
            runner = Runner(rows=4, seed=attempt)
            window = Window(Listed(items(600)), ahead=64, known=journal.known)
            found = run_items(window, runner, journal=journal)
            for _ in zip(found, range(rng.randrange(600)), strict=False):
                most = max(most, len(journal._waiting))
    assert run(path, items(600), Runner()) == expected
    assert 0 < most <= 2 * 64


def test_an_old_journal_is_used_only_with_resume(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Journal(path, HEADER, resume=False):
        pass
    with pytest.raises(UsageError, match="--resume"):
        Journal(path, HEADER, resume=False)


def test_another_run_or_another_input_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run(path, items(9), Runner())
    with pytest.raises(UsageError, match='bundle_sha256 "abc", this run has "abd"'):
        Journal(path, {**HEADER, "bundle_sha256": "abd"}, resume=True).__enter__()
    with pytest.raises(UsageError, match="record 5 differs"):
        run(path, items(9, changed=4), Runner())
    assert run(path, items(12), Runner()) == run(None, items(12), Runner())  # a longer input goes on


def test_two_runs_on_one_journal_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with Journal(tmp_path / "a.jsonl", HEADER, resume=True), pytest.raises(UsageError, match="by another run"):
        Journal(tmp_path / "a.jsonl", HEADER, resume=True).__enter__()


def test_what_is_asked_is_told_apart() -> None:
    asked = [
        Request(1, b"a", Stop(max_bytes=5)),
        Request(2, b"a", Stop(max_bytes=5)),
        Request(1, b"b", Stop(max_bytes=5)),
        Request(1, b"a", Stop(max_bytes=6)),
        Request(1, b"a", Stop(max_bytes=5, strings=(b"x",))),
    ]
    assert len({digest_of(request) for request in asked}) == len(asked)
    assert digest_of(asked[0]) == digest_of(Request(1, b"a", Stop(max_bytes=5)))


@pytest.mark.parametrize("data", OUTPUTS)
def test_bytes_in_json_are_lossless(data: bytes) -> None:
    assert bytes_of(json.loads(json.dumps(bytes_fields("x", data))), "x") == data

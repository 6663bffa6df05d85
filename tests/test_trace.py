"""What a generation is seen to do: traces, their picture, and the terminal it is drawn on."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.trace import Event, TracingModel, begin, read_trace, to_line
from bltcli.visual import Picture, show
from bltcli.vocab import EOS, MASK, OFFSET, encode
from tests.cli_support import generate, here, one_line, until_closed
from tests.test_methods import ABC, ALWAYS_D, EVERY, names
from tests.toy import ToyModel

PROMPT = encode(b"a").tolist()


def traced(options: dict[str, Any], guess: np.ndarray, wanted: int = 13) -> tuple[bytes, list[Event]]:
    events: list[Event] = []
    model = TracingModel(ToyModel(ABC, guess), events.append)
    texts, _ = generate_texts(model, MethodOptions(**options).make(model), [b"a"], stop=Stop(max_bytes=wanted))
    assert events[0] == {"event": "verify", "row": 0, "position": 0, "ids": PROMPT}  # the prompt
    return texts[0], events[1:]


@pytest.mark.parametrize("options", EVERY, ids=names)
def test_a_picture_that_follows_the_events_ends_with_the_text(options: dict[str, Any]) -> None:
    for guess in (ABC, ALWAYS_D):
        text, events = traced(options, guess)
        picture = Picture(PROMPT)
        for event in events:
            json.dumps(event)
            picture.follow(event)
        ids = encode(b"a" + text).tolist()
        written = picture.text[: len(ids)]
        assert written == ids[: len(written)]
        assert len(ids) - len(written) <= 16  # what was committed last is never run


def test_a_block_is_seen_as_it_is_revealed_and_a_draft_as_it_is_refused() -> None:
    _, events = traced({"method": "blt-dv", "block": 4, "unmask": "confidence", "alpha": 1.0}, ABC)
    blocks = [e["ids"] for e in events if e["event"] == "reveal"][:4]
    assert [block.count(MASK) for block in blocks] == [3, 2, 1, 0]
    _, events = traced({"method": "blt-s", "draft_bytes": 2}, ALWAYS_D)
    picture, refused = Picture(PROMPT), []
    for event in events:
        picture.follow(event)
        refused += [cell[0] for cell in picture.flight if cell[1] == "refused"]
    assert refused[:2] == [OFFSET + ord("d")] * 2


def test_lines_are_cut_at_the_terminals_width_and_bytes_become_characters() -> None:
    picture = Picture(encode(b"x" * 25 + b"\nab").tolist())
    assert [len(row) for row in picture.cells(10)] == [10, 10, 6, 2]
    assert show(encode("aß\n".encode(), bos=False).tolist()) == "aß⏎"
    assert show([OFFSET + 0xFF, MASK, EOS, OFFSET + 27]) == "�░∎�"
    assert "[bold]" in picture.draw(40).plain + Picture(encode(b"[bold]").tolist()).draw(40).plain  # no markup


def test_a_trace_is_read_back_and_what_is_none_is_refused() -> None:
    _, events = traced({"method": "blt-s"}, ABC)
    lines = "".join(map(to_line, [begin(method="blt-s", prompt=PROMPT), *events])).encode()
    assert list(read_trace(lines, "t"))[1:] == events
    assert list(read_trace(lines[:-5], "t"))[1:] == events[:-1]
    for data, reason in (
        (b"hello\n", "t, line 1: no event"),
        (b'{"event": "keep"}\n', "t, line 1: no event"),
        (b'{"event": "begin", "version": 9}\n', "version 9, this program reads 1"),
        (lines + b"[]\n", "no event"),
    ):
        with pytest.raises(UsageError, match=reason):
            list(read_trace(data, "t"))


def test_generate_records_and_replay_writes_what_was_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    done = here("generate", "--model", "bundle", "-p", "hello", "-n", "60", "--ignore-eos", "--trace", str(trace))
    assert (done.returncode, len(done.stdout)) == (0, 60)
    again = here("replay", str(trace))
    assert again.returncode == 0
    assert done.stdout.startswith(again.stdout[:60])
    assert len(again.stdout) > 40
    for args, reason in (
        (["--trace", "-"], "--trace -: stdout carries"),
        (["--visual"], "no terminal"),
    ):
        refused = here("generate", "--model", "bundle", "-p", "x", *args)
        assert refused.returncode == 2
        assert reason in one_line(refused)


def test_a_trace_counts_drafts_as_the_statistics_do(tmp_path: Path) -> None:
    trace, stats = tmp_path / "trace.jsonl", tmp_path / "stats.json"
    method = ["--method", "blt-s", "-k", "3", "--trace", str(trace), "--stats-json", str(stats)]
    done = here("generate", "--model", "bundle", "-p", "hello", "-n", "60", "--ignore-eos", *method)
    assert done.returncode == 0
    said = json.loads(stats.read_text())
    (*_, last) = (event for event in read_trace(trace.read_bytes(), "t") if event["event"] == "keep")
    assert (last["drafted"], last["accepted"]) == (said["drafted"], said["accepted"])
    assert said["drafted"] > 0
    picture = Picture(PROMPT)
    picture.follow(last)
    assert f"{said['accepted']} of {said['drafted']} drafted bytes kept" in picture.draw(40).plain


def test_the_picture_is_drawn_on_the_terminal_and_stdout_has_the_bytes(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    plain = generate("-n", "30").stdout
    done = generate("-n", "30", "--visual", stderr=theirs)
    os.close(theirs)
    shown = io.TextIOWrapper(io.BytesIO(until_closed(ours)), errors="replace").read()
    assert done.stdout == plain
    assert "verifying" in shown
    assert "\x1b[" in shown

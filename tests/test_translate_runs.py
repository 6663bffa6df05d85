"""bltcli translate as a process: pipes, terminals, interrupts, kills and resumes, progress, memory."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from bltcli.batch.journal import bytes_of
from bltcli.batch.segments import is_blank
from tests.cli_support import bltcli, here, home, one_line, start, until_closed
from tests.test_translate import PLAIN, TINY, write


def pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def test_a_line_that_is_piped_in_comes_out_before_the_next() -> None:
    with start(*TINY, "-n", "5") as process:
        for line in (b"Hello.\n", b"\n", b"Good morning.\n"):
            pipe(process.stdin).write(line)
            pipe(process.stdin).flush()
            assert pipe(process.stdout).readline().endswith(b"\n")
        pipe(process.stdin).close()
        assert pipe(process.stdout).read() == b""
        assert process.wait(60) in (0, 4)


def test_a_reader_may_leave_and_a_user_interrupt() -> None:
    data = b"Some line.\n" * 3000
    with start(*TINY, "--journal", "left.jsonl", write("many", data)) as process:
        pipe(process.stdout).readline()
        pipe(process.stdout).close()
        assert (process.wait(60), pipe(process.stderr).read()) == (141, b"")
    with start(*TINY, "--journal", "stopped.jsonl", "many") as process:
        pipe(process.stdout).readline()
        process.send_signal(signal.SIGINT)
        some = pipe(process.stdout).read()
        assert (process.wait(60), pipe(process.stderr).read()) == (130, b"")
    assert some.count(b"\n") < 2999


def count(journal: Path) -> int:
    """Lines of a journal, which need not exist."""
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_runs_killed_at_any_moment_come_to_the_same_output_in_the_end() -> None:
    rng = random.Random(1)
    words = ["one", "two.", "three", "", "four?", "five"]
    data = "".join(" ".join(rng.choices(words, k=rng.randint(0, 30))) + "\n" for _ in range(100)).encode()
    args = (*TINY, "-n", "25", "--batch-size", "8", "--split-bytes", "60", write("input", data))
    whole = bltcli(*args)
    assert whole.returncode == 4
    journal, lines = home() / "killed.jsonl", [0]
    while True:
        wanted = lines[-1] + rng.randint(1, 70)
        with start(*args, "--journal", "killed.jsonl", "--resume", "-o", "killed") as process:
            while process.poll() is None and count(journal) < wanted:
                time.sleep(0.01)
            if process.poll() is not None:
                break
            process.kill()
        assert not (home() / "killed" / "input").exists()
        lines.append(count(journal))
    assert process.returncode == 4
    assert (home() / "killed" / "input").read_bytes() == whole.stdout
    assert lines == sorted(lines)
    assert len(lines) > 3
    entries = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
    places = [(entry["n"], entry.get("part", 0)) for entry in entries]
    assert len(places) == len(set(places))  # nothing that was kept was done again
    again = bltcli(*args, "--journal", "killed.jsonl", "--resume", data=b"")
    assert again.stdout == whole.stdout


def test_a_journal_belongs_to_its_input_model_and_options() -> None:
    args = (*TINY, "-n", "4", "--journal", "own.jsonl")
    write("in1", b"one\ntwo\n")
    first = here(*args, "in1")
    assert first.returncode == 4
    done = here(*args, "in1")
    assert done.returncode == 2
    assert "own.jsonl exists; go on with it by --resume" in one_line(done)
    assert here(*args, "--resume", "in1").stdout == first.stdout
    assert here(*args, "--resume", "--batch-size", "3", "in1").stdout == first.stdout
    for changed, says in (
        ([write("in2", b"one\nthree\n")], "begun with input_sha256"),
        (["in1", "--seed", "7"], 'begun with sampling {"temperature": 1.0'),
        (["in1", "--from", "en", "--method", "ar"], 'begun with method "blt-s", this run has "ar"'),
        (["in1", "-n", "5"], "begun with max_bytes 4, this run has 5"),
        (["in1", "--split-bytes", "5"], "begun with split_bytes 400, this run has 5"),
        (["in1", "--no-exact"], "begun with exact true, this run has false"),
    ):
        done = here(*args, "--resume", *changed)
        assert (done.returncode, done.stdout) == (2, b"")
        assert says in one_line(done)


def test_a_journal_of_piped_input_knows_its_lines() -> None:
    args = (*TINY, "-n", "4", "--journal", "piped.jsonl")
    first = bltcli(*args, data=b"one\ntwo\nthree\n")
    again = bltcli(*args, "--resume", data=b"one\ntwo\nthree\nfour\n")
    assert again.stdout.startswith(first.stdout)
    assert again.stdout.count(b"\n") == 4
    done = bltcli(*args, "--resume", data=b"one\n2\nthree\n")
    assert done.returncode == 2
    assert "record 2 differs" in one_line(done)


def test_metrics_are_what_was_done() -> None:
    done = here(*PLAIN, "-n", "4", "--metrics-file", "metrics.prom", write("three", b"one\n\ntwo\n"))
    assert b"2 truncated" in done.stderr
    text = (home() / "metrics.prom").read_text()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['bltcli_records_total{status="truncated"}'] == "2"
    assert values['bltcli_records_total{status="ok"}'] == "1"
    assert values["bltcli_source_bytes_total"] == "9"
    assert values["bltcli_output_bytes_total"] == str(len(done.stdout))
    assert values["bltcli_generated_bytes_total"] == "8"
    assert int(values['bltcli_passes_total{graph="decoder"}']) > 0
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {name.partition("{")[0] for name in values} == families


def test_progress_in_a_log_is_plain_and_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bltcli.batch.progress.LINE_SECONDS", 0.02)  # a fast machine has done it all in half a second
    quiet = here(*TINY, "-n", "4", write("lines", b"line\n" * 40))
    assert quiet.stderr == b""
    done = here(*PLAIN, "-n", "60", "--batch-size", "1", "--progress", "lines")
    lines = done.stderr.decode().splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("bltcli: ") and "records" in line for line in lines)
    assert "s left" in lines[0]
    assert "s left" not in lines[-1]


def test_metrics_that_cannot_be_written_end_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bltcli.atomic.atomic_file", full)
    done = here(*TINY, "-n", "4", "--metrics-file", "full.prom", write("two", b"one\n\ntwo"))
    assert (done.returncode, done.stdout.count(b"\n")) == (4, 2)
    assert one_line(done) == "bltcli: cannot write full.prom: No space left on device; the metrics end here\n"


def records(name: str, count: int) -> str:
    """A file of prompts, the first of which is none."""
    lines = [json.dumps({"id": n, "prompt": f"Text {n}."} if n else {"id": n}) for n in range(count)]
    return write(name, "\n".join(lines).encode())


PROMPTS = ("batch", "--model", "bundle", "--ignore-eos", "-n", "100", "--batch-size", "2")


def test_a_terminal_shows_what_is_done_how_fast_and_how_long_it_takes_yet(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    done = bltcli(*PROMPTS, records("seen", 60), stderr=theirs, env={"COLUMNS": "200"})
    os.close(theirs)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", until_closed(ours).decode())
    line = r"(\d+) records, \d+ bytes/s, \d+% of drafts kept, 1 failed"
    during = [int(count) for count in re.findall(line + r", (?:\d+ min )?\d+ s left", shown)]
    assert len(during) >= 2
    assert 0 < during[0] < during[-1] <= 60
    assert shown.count("record 1, 0: line 1: there is no prompt") == 1
    assert re.search(r"bltcli: " + line + r", [\d.]+ s\s*$", shown)
    assert done.stdout.count(b"\n") == 60


def test_nothing_is_shown_in_a_pipe_but_what_failed() -> None:
    done = bltcli(*PROMPTS, write("three", b'{"prompt":"a"}\n' * 3))
    assert (done.returncode, done.stderr) == (0, b"")
    done = bltcli(*PROMPTS, records("seen", 3))
    failed, summary = done.stderr.decode().splitlines()
    assert "there is no prompt" in failed
    assert "3 records" in summary
    assert "1 failed" in summary


def test_an_interrupt_at_a_terminal_says_how_far_it_came(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    with start(*PROMPTS, records("many", 4000), stderr=theirs) as process:
        pipe(process.stdout).readline()
        process.send_signal(signal.SIGINT)
        pipe(process.stdout).read()
        assert process.wait(60) == 130
    os.close(theirs)
    assert re.search(rb"bltcli: \d+ records, .* s\s*$", until_closed(ours))


def hostile(rng: np.random.Generator) -> bytes:
    """A line of one of the kinds that break programs."""
    alphabets = ("🙂👩\u200d👩\u200d👧🏽🇫🇷", "e\u0301a\u0308\u0335Z\u0351\u0328", "<b></b>&amp;[bold]{}%s\\n\"'`$(x)",
                 " \t\v\f\x85\u2028\u3000\u00a0", "\ufeff\u202e\u05d0\u0000\x1b[31m\x07", "漢字。かな！",
                 "en>fr\r <EOS>|<s>. ", "a. B? c! ")  # fmt: skip
    kind, size = int(rng.integers(len(alphabets) + 3)), int(rng.integers(0, 30))
    if kind == len(alphabets):
        return bytes(rng.integers(0, 256, size).astype(np.uint8)).replace(b"\n", b"\r")
    if kind == len(alphabets) + 1:
        return rng.choice([b"\xed\xa0\x80", b"\xc0\x80", b"\xf8\x88", b"\xef\xbf"]) * size
    if kind == len(alphabets) + 2:
        return b"" if size % 2 else b" " * size
    return "".join(rng.choice(list(alphabets[kind]), size)).encode()


@pytest.mark.slow
def test_ten_thousand_hostile_lines_keep_their_number_order_and_content() -> None:
    rng = np.random.default_rng(0)
    lines = [hostile(rng) for _ in range(10_000)]
    lines[5_000:5_004] = [b"x" * 100_000, "🙂. ".encode() * 20_000, b" " * 100_000 + b".", b"\xff" * 100_000]
    write("ten", b"\n".join(lines) + b"\n")
    args = (*TINY, "-n", "2", "--batch-size", "128", "--utf8", "raw")
    found = [json.loads(line) for line in bltcli(*args, "--jsonl", "ten").stdout.splitlines()]
    text = bltcli(*args, "--batch-size", "32", "ten")
    assert text.returncode == 4
    assert [record["id"] for record in found] == list(range(1, 10_001))
    sources = [line.removesuffix(b"\r") for line in lines]
    assert [bytes_of(record, "source") for record in found] == sources
    outputs = [line.removesuffix(b"\r") if lines[n].endswith(b"\r") else line
               for n, line in enumerate(text.stdout.split(b"\n")[:-1])]  # fmt: skip
    assert [bytes_of(record, "output") for record in found] == outputs
    assert all(record["status"] in ("ok", "truncated") for record in found)
    assert [out for out, source in zip(outputs, sources, strict=True) if is_blank(source)] == [
        source for source in sources if is_blank(source)
    ]
    assert sum(map(is_blank, sources)) < 2_500


def peak_rss(*args: str, name: str) -> int:
    """Most memory in bytes that translating a file takes."""
    done = bltcli(*TINY, "-n", "2", "--batch-size", "32", "--metrics-file", "rss.prom", *args, "-o", "rss", name)
    assert done.returncode in (0, 4)
    assert (home() / "rss" / name).read_bytes().count(b"\n") == (home() / name).read_bytes().count(b"\n")
    found = [line for line in (home() / "rss.prom").read_text().splitlines() if line.startswith("bltcli_peak_rss")]
    return int(found[0].split()[1])


def test_an_input_larger_than_memory_passes_through() -> None:
    write("small", b"x\n" + b" " * 8191 + b"\n")
    write("large", b"x\n" + (b" " * 8191 + b"\n") * 25_000)
    assert peak_rss(name="large") < peak_rss(name="small") + 90e6  # of 205 MB, the window's bytes in and out


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_texts() -> None:
    rng, words = random.Random(0), ["one", "two.", "three", "é", "longer words"]
    lines = [" ".join(rng.choices(words, k=rng.randint(0, 12))).encode() + b"\n" for _ in range(16_000)]
    write("few", b"".join(lines[:4_000]))
    write("many", b"".join(lines))
    few = peak_rss("--journal", "few.journal", name="few")
    many = peak_rss("--journal", "many.journal", name="many")
    again = peak_rss("--journal", "many.journal", "--resume", name="many")
    print(
        f"peak memory: 4,000 lines {few / 1e6:.0f} MB, 16,000 lines {many / 1e6:.0f} MB, resumed {again / 1e6:.0f} MB"
    )
    assert many < 1.25 * few
    assert again < few

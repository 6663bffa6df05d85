"""Lines in and out as bytes, and long ones in pieces: nothing is decoded, lost or added."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bltcli.batch.lines import Line, LineReader, Lines, opener
from bltcli.batch.outputs import ToFiles, in_folder
from bltcli.batch.segments import is_blank, split
from bltcli.errors import BltError, UsageError

HOSTILE = st.lists(
    st.sampled_from([b"a", b"Z", b". ", b"! ", b"?", b" ", b"  ", b"\t", b"\r", b"\0", b"\xff", b"\xc3", b"\xe2\x80",
                     "é".encode(), "🙂".encode(), "e\u0301".encode(), "。".encode(), "\u00a0".encode(), b'." ']),
    max_size=60,
).map(b"".join)  # fmt: skip


def all_lines(reader: LineReader | Lines) -> list[Line]:
    found = []
    while True:
        try:
            line = reader.take(wait=True)
        except StopIteration:
            return found
        assert line is not None
        found.append(line)


@given(st.lists(HOSTILE | st.sampled_from([b"\n", b"\r\n", b"x" * 70_000]), max_size=8).map(b"".join))
@example(b"a\r\nb\n\n\0\xff\r\r\n\rc")
def test_lines_are_what_line_feeds_end_and_together_are_the_input(data: bytes) -> None:
    found = all_lines(LineReader(io.BytesIO(data)))  # type: ignore[arg-type]
    assert b"".join(line.body + line.end for line in found) == data
    assert all(line.end in (b"\n", b"\r\n") for line in found[:-1])
    assert all(b"\n" not in line.body for line in found)
    assert len(found) == data.count(b"\n") + (data != b"" and not data.endswith(b"\n"))


def test_a_slow_input_is_waited_for_only_on_request() -> None:
    read, write = os.pipe()
    with open(read, "rb") as stream:
        reader = LineReader(stream)
        assert reader.take(wait=False) is None
        os.write(write, b"one\ntw")
        assert reader.take(wait=False) == Line(0, b"one", b"\n")
        assert reader.take(wait=False) is None
        os.write(write, b"o\nthree")
        assert reader.take(wait=True) == Line(0, b"two", b"\n")
        assert reader.take(wait=False) is None
        os.close(write)
        assert reader.take(wait=False) == Line(0, b"three", b"")
        with pytest.raises(StopIteration):
            reader.take(wait=False)


def test_inputs_follow_each_other_and_each_keeps_its_last_line(tmp_path: Path) -> None:
    for name, data in {"a": b"1\n2", "b": b"", "c": b"3\r\n"}.items():
        (tmp_path / name).write_bytes(data)
    lines = Lines([opener(tmp_path / name) for name in "abc"])
    assert all_lines(lines) == [Line(0, b"1", b"\n"), Line(0, b"2", b""), Line(2, b"3", b"\r\n")]
    with pytest.raises(UsageError, match=r"cannot read .*nowhere"):
        opener(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="directory"):
        opener(tmp_path)


@given(HOSTILE, st.integers(min_value=4, max_value=30))
@example(b"", 4)
@example(b"\xbf" * 50, 4)
def test_pieces_are_short_enough_and_together_are_the_line(line: bytes, limit: int) -> None:
    found = split(line, limit)
    assert found.joined(found.pieces) == line
    assert len(found.pieces) == len(found.gaps)
    assert all(0 < len(piece) <= limit and piece == piece.strip(b" \t\r\v\f") for piece in found.pieces)
    assert (found.pieces == ()) == is_blank(line)
    if len(line) <= limit and not is_blank(line):
        assert len(found.pieces) == 1


@given(st.text(alphabet="aé🙂漢", min_size=1, max_size=60), st.integers(min_value=4, max_value=30))
def test_no_character_is_cut(text: str, limit: int) -> None:
    for piece in split(text.encode(), limit).pieces:
        piece.decode()


@pytest.mark.parametrize(
    ("line", "limit", "pieces"),
    [
        (b"One two. Three four! Five.", 21, [b"One two. Three four!", b"Five."]),
        (b"One two. Three four! Five.", 20, [b"One two. Three four!", b"Five."]),
        (b"One two. Three four! Five.", 19, [b"One two.", b"Three four! Five."]),
        (b'He said "No." \t She left.', 20, [b'He said "No."', b"She left."]),
        (b"Version 3.11 is out. Yes.", 21, [b"Version 3.11 is out.", b"Yes."]),
        (b"one two three four", 10, [b"one two", b"three four"]),
        (b"aaaaaaaaaa bb", 6, [b"aaaaaa", b"aaaa", b"bb"]),
        ("これは本。それはペン。".encode(), 20, ["これは本。".encode(), "それはペン。".encode()]),
        ("क्या? हाँ। ठीक।".encode(), 32, ["क्या? हाँ।".encode(), "ठीक।".encode()]),
        ("ééééé".encode(), 5, ["éé".encode(), "éé".encode(), "é".encode()]),
    ],
)
def test_lines_are_cut_at_sentences_then_spaces_then_characters(line: bytes, limit: int, pieces: list[bytes]) -> None:
    assert list(split(line, limit).pieces) == pieces


def test_a_line_of_100_kB_is_cut_in_no_time() -> None:
    for text in (b"word " * 20_000, b"x" * 100_000, b"\x80" * 100_000, b"A b. " * 20_000, b" " * 100_000):
        found = split(text, 400)
        assert found.joined(found.pieces) == text


def test_files_appear_when_they_are_whole(tmp_path: Path) -> None:
    inputs = [tmp_path / name for name in ("a", "b", "c")]
    for path in inputs:
        path.write_bytes(b"")
    out = tmp_path / "out"
    paths = in_folder(out, inputs)
    with ToFiles(paths) as sink:
        sink.write(0, b"1\n")
        assert not (out / "a").exists()
        sink.write(2, b"2")
        assert ((out / "a").read_bytes(), (out / "b").read_bytes()) == (b"1\n", b"")
        assert not (out / "c").exists()
        sink.finish()
    assert (out / "c").read_bytes() == b"2"
    with contextlib.suppress(KeyboardInterrupt), ToFiles(paths) as sink:
        sink.write(0, b"other")
        raise KeyboardInterrupt
    assert sorted(path.name for path in out.iterdir()) == ["a", "b", "c"]
    assert (out / "a").read_bytes() == b"1\n"


def test_outputs_that_would_collide_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(UsageError, match="two inputs"):
        in_folder(tmp_path / "out", [tmp_path / "a", tmp_path / "x" / "a"])
    with pytest.raises(UsageError, match="is an input itself"):
        in_folder(tmp_path, [tmp_path / "a"])
    with pytest.raises(UsageError, match="cannot make the folder"):
        in_folder(tmp_path / "a" / "b", [tmp_path / "a"])
    assert in_folder(tmp_path, [tmp_path / "a"], ".jsonl") == [tmp_path / "a.jsonl"]


def test_what_a_killed_run_left_goes_when_no_other_run_can_be_there(tmp_path: Path) -> None:
    left = {".a.1-00.partial", ".ab.1-00.partial", ".a.txt"}
    for name in left:
        (tmp_path / name).write_bytes(b"")
    for alone in (False, True):
        with ToFiles([tmp_path / "a"], alone=alone) as sink:
            sink.finish()
        found = {path.name for path in tmp_path.iterdir()}
        assert found == {"a", *left} - ({".a.1-00.partial"} if alone else set())


def test_a_device_is_written_in_place_and_a_full_disk_named() -> None:
    def write(path: Path) -> None:
        with ToFiles([path]) as sink:
            sink.write(0, b"x")
            sink.finish()

    write(Path("/dev/null"))
    assert Path("/dev/null").is_char_device()
    with pytest.raises(BltError, match="cannot write /dev/full: No space left"):
        write(Path("/dev/full"))

"""Bytes in and out of a real process: nothing decoded, nothing lost, no noise."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bltcli import streams
from bltcli.errors import BltError, UsageError

FAIL = "try: streams.write_stdout(b'x')\nexcept Exception as e: print(e, file=sys.stderr)"
EMOJI = "naïve 🙂 ok".encode()


class _Terminal:
    """A stdout that keeps its bytes, and how they were flushed."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()


def _written(monkeypatch: pytest.MonkeyPatch, utf8: streams.Utf8, pieces: list[bytes]) -> list[bytes]:
    """What had come out after each piece and after the end."""
    out = _Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    stream = streams.Stdout(utf8)
    seen = []
    for piece in pieces:
        stream.write(piece)
        seen.append(out.buffer.getvalue())
    stream.finish()
    return [*seen, out.buffer.getvalue()]


def _bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def test_raw_bytes_pass_through_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = EMOJI + b"\xff\r\n\x00"
    assert _written(monkeypatch, "raw", _bytes(data))[:-1] == [data[: i + 1] for i in range(len(data))]


@pytest.mark.parametrize("utf8", ["replace", "strict"])
def test_characters_come_out_whole_and_none_is_lost(monkeypatch: pytest.MonkeyPatch, utf8: streams.Utf8) -> None:
    seen = _written(monkeypatch, utf8, _bytes(EMOJI))
    assert seen[-1] == EMOJI
    for out in seen:
        out.decode()  # never half a character


def test_a_character_does_not_wait_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _written(monkeypatch, "replace", _bytes("🙂".encode()))[3] == "🙂".encode()


def test_invalid_and_unfinished_bytes_show_as_replacement_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _written(monkeypatch, "replace", [b"a\xffb\xf0\x9f"])[-1].decode() == "a\ufffdb\ufffd"


@pytest.mark.parametrize(
    ("pieces", "valid", "where"),
    [([b"ab\xffc"], b"ab", 2), ([b"ab\xf0", b"\x9f", b"x"], b"ab", 2), ([b"abc\xf0\x9f"], b"abc", 3)],
)
def test_strict_writes_the_valid_part_and_names_the_place(
    monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], valid: bytes, where: int
) -> None:
    out = _Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    stream = streams.Stdout("strict")
    *first, last = pieces
    for piece in first:
        stream.write(piece)
    with pytest.raises(BltError, match=f"at byte {where} "):
        stream.write(last, final=True)
    assert out.buffer.getvalue() == valid


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("\\n\\n", b"\n\n"),
        ("a\\tb", b"a\tb"),
        ("\\x00\\xfF", b"\0\xff"),
        ("\\\\n", b"\\n"),
        ("é", "é".encode()),
        ("\\x410", b"A0"),
        ("", b""),
        (os.fsdecode(b"\xff"), b"\xff"),
    ],
)
def test_stop_escapes(text: str, data: bytes) -> None:
    assert streams.unescape(text) == data


@pytest.mark.parametrize("text", ["\\q", "\\", "\\x4", "\\xg0", "a\\é"])
def test_unknown_escapes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no escape"):
        streams.unescape(text)


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "stats.json"
    target.write_text("old")
    streams.write_whole(str(target), b"new")
    assert target.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["stats.json"]


def test_a_link_is_followed_and_a_device_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    streams.write_whole(str(tmp_path / "link"), b"x")
    assert (tmp_path / "real").read_bytes() == b"x"
    streams.write_whole(os.devnull, b"x")
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize("target", ["-", ".", "no/such/folder/stats.json", "pyproject.toml/stats.json"])
def test_statistics_files_that_cannot_be_written_are_refused_early(target: str) -> None:
    with pytest.raises(UsageError, match="--stats-json"):
        streams.check_writable(target, "--stats-json")


def _process(code: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    program = f"import sys; from bltcli import streams\n{code}\nstreams.settle()"
    return subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, timeout=60, check=False, **options  # type: ignore[call-overload]
    )  # fmt: skip


def test_stdin_is_read_as_it_is() -> None:
    data = bytes(range(256)) + b"\r\n\n"
    code = "streams.write_stdout(streams.read_input(None, None, example=''))"
    assert _process(code, input=data, stdout=subprocess.PIPE).stdout == data


def test_a_full_disk_is_one_clear_error_and_no_noise_at_exit() -> None:
    with open("/dev/full", "wb") as full:
        done = _process(FAIL, stdout=full)
    assert done.stderr == b"cannot write to stdout: No space left on device\n"
    assert done.returncode == 0


def test_a_closed_stdout_is_an_error() -> None:
    done = _process(FAIL, stdout=None, preexec_fn=lambda: os.close(1))
    assert done.stderr == b"stdout is closed\n"


def test_a_reader_that_left_leaves_no_noise_at_exit() -> None:
    read, write = os.pipe()
    os.close(read)
    done = _process("try: streams.write_stdout(b'x')\nexcept BrokenPipeError: pass", stdout=write)
    os.close(write)
    assert (done.stderr, done.returncode) == (b"", 0)

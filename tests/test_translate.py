"""bltcli translate: as many lines out as in, in order, whatever they hold and however the run ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bltcli.batch import predictor
from bltcli.batch.ordering import noise_key
from bltcli.bundle import open_bundle
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.pipeline import open_model
from bltcli.sampling import Sampler
from tests.cli_support import here, home, one_line
from tests.toy import ToyModel, chain

#: The tiny model is untrained: sampling ends its translations now and then, greedy decoding never.
TINY = ("translate", "--model", "bundle", "--to", "fr", "--temperature", "1", "-q")
SOURCES = [
    b"One.",
    b"",
    b"  two \t",
    b"en>fr",
    b"\xff\xfe\0",
    "Größe 🙂 e\u0301".encode(),
    b"<EOS> [bold]x[/bold]",
    b" ",
]


def write(name: str, data: bytes) -> str:
    (home() / name).write_bytes(data)
    return name


def alone(source: bytes, max_bytes: int) -> bytes:
    """The translation of one line, by the library, with nothing else in the batch."""
    prompt = b"en>fr\n" + source + b"\n"
    model = open_model(open_bundle(home() / "bundle"))
    texts, _ = generate_texts(
        model, MethodOptions().make(model), [prompt], sampler=Sampler(temperature=1.0),
        stop=Stop(max_bytes=max_bytes, strings=(b"\n",)), records=[noise_key(prompt)],
    )  # fmt: skip
    return texts[0].decode(errors="replace").replace("\r", " ").encode()


def test_each_line_is_what_the_model_says_of_it_alone() -> None:
    done = here(*TINY, "-n", "30", "--batch-size", "3", write("sources", b"\n".join(SOURCES)))
    out = done.stdout.split(b"\n")
    assert done.returncode == 4
    expected = [alone(s.strip(b" \t"), 30) if s.strip() else b"" for s in SOURCES]
    expected[2] = b"  " + expected[2] + b" \t"
    expected[7] = b" "
    assert out == expected


def test_a_line_does_not_depend_on_those_around_it_when_sampled_either() -> None:
    lines = [b"%d %s" % (n % 20, source) for n, source in enumerate(SOURCES * 8)]
    whole = translated(lines, "--batch-size", "16")
    assert translated(lines[::-1], "--batch-size", "3") == whole[::-1]
    parts = [line for part in (lines[:7], lines[7:8], lines[8:]) for line in translated(part)]
    assert parts == whole
    assert translated(lines, "--seed", "1") != whole


def translated(lines: list[bytes], *args: str) -> list[bytes]:
    return here(*TINY, "-n", "8", *args, write("part", b"\n".join(lines))).stdout.split(b"\n")


def test_lines_that_are_the_same_run_once_and_come_out_the_same() -> None:
    args = (*TINY, "-n", "8", "--metrics-file", "same.prom")
    out = here(*args, write("same", b"one line\n  one line\n" * 40)).stdout.split(b"\n")
    assert out == [out[0], b"  " + out[0]] * 40 + [b""]
    assert "\nbltcli_texts_total 1\n" in (home() / "same.prom").read_text()


def test_ends_of_lines_stay_as_they_are() -> None:
    for end in (b"", b"\n", b"\r\n"):
        out = here(*TINY, "-n", "4", write("ends", b"a\r\nb\n\r\n\n \r\nc" + end)).stdout
        assert out.count(b"\n") == 5 + bool(end)
        lines = out.split(b"\n")
        assert [line.endswith(b"\r") for line in lines[:5]] == [True, False, True, False, True]
        assert (lines[2:5], lines[5].endswith(b"\r")) == ([b"\r", b"", b" \r"], end == b"\r\n")
        assert out.endswith(end or lines[5])
    assert here(*TINY, write("nothing", b"")).stdout == b""


def test_hostile_lines_keep_their_number_and_order() -> None:
    rng = np.random.default_rng(0)
    lines = [bytes(rng.integers(0, 256, int(size)).astype(np.uint8)).replace(b"\n", b"") for size in
             rng.integers(0, 120, 60)]  # fmt: skip
    lines[10], lines[20] = b"x" * 3000, b"de>en\r" * 30 + b"."
    lines[30:40] = [b"%d" % n for n in range(10)]
    whole = here(*TINY, "-n", "3", "--jsonl", "--batch-size", "7", write("hostile", b"\n".join(lines) + b"\n"))
    records = [json.loads(line) for line in whole.stdout.splitlines()]
    assert [record["id"] for record in records] == list(range(1, 61))
    assert [record["source"] for record in records] == [line.decode(errors="replace") for line in lines]
    text = here(*TINY, "-n", "3", "--batch-size", "2", "hostile").stdout
    assert [record["output"].encode() for record in records] == [
        line.removesuffix(b"\r") for line in text.split(b"\n")[:-1]
    ]
    assert text.count(b"\n") == 60


def test_a_line_of_100_kB_is_translated_piece_by_piece() -> None:
    line = b"A sentence of some length, once more. " * 2650
    done = here(*TINY, "-n", "2", "--jsonl", write("long", b"short\n" + line + b"\nshort\n"))
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["stats"]["pieces"] for record in records] == [1, 265, 1]
    assert records[1]["output"].endswith(" ")


def test_the_context_bounds_the_pieces() -> None:
    done = here(*TINY, "-n", "4000", "--split-bytes", "9000", "--jsonl", write("piece", b"x" * 200))
    assert json.loads(done.stdout)["stats"]["pieces"] == 3
    done = here(*TINY, "-n", "5000", "piece")
    assert done.returncode == 2
    assert "leaves no room; use at most 4083" in one_line(done)
    assert here(*TINY, "-n", "4083", "--split-bytes", "4", write("one", b"x")).returncode in (0, 4)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--to", "de"], "was trained on en>fr, fr>en"),
        (["--from", "de", "--to", "fr"], "was trained on en>fr, fr>en"),
        (["--to", "fr", "-n", "0"], "--max-bytes is 0"),
        (["--to", "fr", "--resume"], "--resume needs --journal"),
        (["--to", "fr", "--journal", "."], "--journal . is a folder"),
        (["--to", "fr", "-o", "x", "-"], "-o writes a file per input file"),
        (["--to", "fr", "nowhere"], "cannot read nowhere: No such file"),
        (["--to", "fr", "--method", "blt-d", "empty"], "trained on next bytes only"),
        (["--to", "fr", "--engine", "magic"], "magic"),
    ],
)
def test_what_cannot_be_done_is_one_line(args: list[str], says: str) -> None:
    write("empty", b"")
    done = here("translate", "--model", "bundle", *args)
    assert (done.returncode, done.stdout) == (3 if "blt-d" in args else 2, b"")
    assert says in one_line(done)


class Translator(ToyModel):
    """Ends "B" after "A" after any line end; the rest as the law of a chain."""

    engine_name, bundle_sha256, tuned = "toy", "abc", None


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(*ids: int, broken: bytes | None = None) -> None:
        law = chain(*ids)

        class Model(Translator):
            def extend(self, ids: Any) -> Any:
                found = super().extend(ids)
                if broken and any(broken in bytes(max(0, i - 4) for i in text) for text in self.texts):
                    raise RuntimeError("the engine broke")
                return found

        monkeypatch.setattr(predictor, "open_lanes", lambda bundle, *, rows, **_: [Model(law, law, rows=rows)])

    return use


A, B, LF, CR, EOS = 4 + 65, 4 + 66, 4 + 10, 4 + 13, 2
PLAIN = ("translate", "--model", "bundle", "--to", "fr")


def test_a_finished_translation_is_exit_code_0(toy: Any) -> None:
    toy(LF, A, B, EOS)
    done = here(*PLAIN, write("two", b"x\n\ny"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"AB\n\nAB", b"")
    assert b"3 records" in here(*PLAIN, "-v", "two").stderr


def test_a_translation_ends_at_a_line_feed_and_never_breaks_its_line(toy: Any) -> None:
    toy(LF, A, CR, B)
    done = here(*PLAIN, "--jsonl", write("two", b"x\ny\n"))
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["output"], r["status"]) for r in records] == [("A B", "ok")] * 2
    assert done.returncode == 0


def test_a_cut_off_translation_is_kept_counted_and_exit_code_4(toy: Any) -> None:
    toy(LF, A, B)
    assert here(*PLAIN, "-n", "3", write("two", b"x\ny\n")).returncode == 0  # the third byte is a line feed
    done = here(*PLAIN, "-n", "2", "two")
    assert (done.returncode, done.stdout) == (4, b"AB\nAB\n")
    assert b"2 truncated" in done.stderr
    toy(LF, A, 4 + 0xC3, 4 + 0xA9)
    done = here(*PLAIN, "-n", "2", "two")
    assert (done.returncode, done.stdout) == (4, "A\ufffd\nA\ufffd\n".encode())
    assert here(*PLAIN, "-n", "2", "--utf8", "raw", "two").stdout == b"A\xc3\nA\xc3\n"


def test_a_line_that_fails_is_empty_or_its_source_and_said(toy: Any) -> None:
    toy(LF, A, B, EOS, broken=b"bad")
    write("three", b"x\r\n very bad \r\ny\r\n")
    done = here(*PLAIN, "three")
    assert (done.returncode, done.stdout) == (4, b"AB\r\n\r\nAB\r\n")
    assert b"three, line 2: RuntimeError: the engine broke\n" in done.stderr
    assert b"1 failed" in done.stderr
    done = here(*PLAIN, "--on-error", "copy", "-q", "--journal", "failed.jsonl", "three")
    assert done.stdout == b"AB\r\n very bad \r\nAB\r\n"
    assert done.stderr == b"bltcli: three, line 2: RuntimeError: the engine broke\n"
    assert b"the engine broke" in (home() / "failed.jsonl").read_bytes()
    record = json.loads(here(*PLAIN, "--jsonl", "three").stdout.splitlines()[1])
    assert (record["status"], record["output"], record["source"]) == ("failed", "", " very bad ")
    assert record["error"] == "RuntimeError: the engine broke"


def test_files_are_one_text_on_stdout_and_files_of_their_own_in_a_folder(toy: Any, tmp_path: Path) -> None:
    toy(LF, A, B, EOS)
    names = [write(name, data) for name, data in {"f1": b"x", "f2": b"", "f3": b"\ny"}.items()]
    assert here(*PLAIN, *names).stdout == b"AB\n\nAB"
    done = here(*PLAIN, *names, "-o", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (0, b"")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"f1": b"AB", "f2": b"", "f3": b"\nAB"}
    here(*PLAIN, *names, "-o", str(tmp_path / "out"), "--jsonl")
    records = [json.loads(line) for line in (tmp_path / "out" / "f3.jsonl").read_bytes().splitlines()]
    assert [(r["id"], r["file"], r["output"]) for r in records] == [(1, "f3", ""), (2, "f3", "AB")]

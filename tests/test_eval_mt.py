"""Translations of a test set: what is asked, what is scored, and runs that are cut, batched or refused."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bltcli.errors import UsageError
from bltcli.evaluate.bleu import TOKENIZERS, open_bleu, score
from bltcli.evaluate.translation import hypothesis, read_pairs
from bltcli.prompts import Pair, Prompts, check_prompts
from bltcli.train.data import translation
from tests.cli_support import bltcli, here, one_line, start
from tests.conftest import TinyBundle

SOURCES = [
    "Le chat dort.",
    "Il pleut depuis hier soir.",
    "Bonjour.",
    "",
    "Une maison ancienne près de la rivière.",
    "Oui.",
]
TARGETS = ["The cat sleeps.", "It has rained since last night.", "Hello.", "", "An old house by the river.", "Yes."]
SILENT: Callable[[str], None] = lambda line: None  # noqa: E731


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """--source, --reference and --direction of six lines."""
    return _write(tmp_path, SOURCES, TARGETS)


def _write(folder: Path, sources: list[str], targets: list[str]) -> list[str]:
    (folder / "in.fr").write_text("".join(f"{line}\n" for line in sources), encoding="utf-8")
    (folder / "in.en").write_text("".join(f"{line}\n" for line in targets), encoding="utf-8")
    return ["--source", str(folder / "in.fr"), "--reference", str(folder / "in.en"), "--direction", "fr>en"]


def mt(*args: str, n: int = 24) -> tuple[str, ...]:
    return ("eval", "mt", "-m", "bundle", "--tokenize", "13a", "-n", str(n), *args)


def lines_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_bytes().splitlines()]


def without_clocks(file: Path) -> list[bytes]:
    return [line.partition(b',"timing"')[0] for line in file.read_bytes().splitlines()]


def test_lines_are_those_that_line_feeds_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("eins\r\nzwei\x0b\u2028zwei\n\nvier".encode())
    (tmp_path / "b").write_bytes(b"1\n2\n3\n4\n")
    expected = [Pair("eins", "1"), Pair("zwei\x0b\u2028zwei", "2"), Pair("", "3"), Pair("vier", "4")]
    assert read_pairs(tmp_path / "a", tmp_path / "b") == expected
    assert read_pairs(tmp_path / "a", tmp_path / "b", 2) == expected[:2]


@pytest.mark.parametrize(
    ("left", "right", "says"),
    [(b"1\n2\n", b"1\n", "2 lines"), (b"", b"", "no lines"), (b"1\n\xff\n", b"1\n2\n", "line 2 is no valid UTF-8")],
)
def test_files_that_do_not_match_up_are_refused(tmp_path: Path, left: bytes, right: bytes, says: str) -> None:
    (tmp_path / "a").write_bytes(left)
    (tmp_path / "b").write_bytes(right)
    with pytest.raises(UsageError, match=says):
        read_pairs(tmp_path / "a", tmp_path / "b")


def test_own_prompts_are_the_beginning_of_what_is_trained_on() -> None:
    document = translation("fr>en", "Ça va ?".encode(), b"How are you?")
    assert document == Prompts("fr>en").prompt("Ça va ?") + b"How are you?"
    assert Prompts("fr>en").stop == ()


def test_shots_stand_before_the_source_in_the_form_that_it_has() -> None:
    shots = [Pair("Oui.", "Yes."), Pair("Non.", "No.")]
    assert Prompts("fr>en", shots).prompt("Bon.").decode() == (
        "French: Oui.\nEnglish: Yes.\n\nFrench: Non.\nEnglish: No.\n\nFrench: Bon.\nEnglish:"
    )
    assert Prompts("fr>xx", []).prompt("Bon.").decode() == "French: Bon.\nxx:"
    assert Prompts("fr>en", []).stop == (b"\n",)


def test_a_bundle_is_asked_only_what_it_was_trained_for(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup")
    silent = dataclasses.replace(bundle, manifest={**bundle.manifest, "metadata": {}})
    check_prompts(Prompts("en>fr"), bundle)
    check_prompts(Prompts("en>fr", []), silent)
    with pytest.raises(UsageError, match="trained on: en>fr or fr>en"):
        check_prompts(Prompts("en>de"), bundle)
    with pytest.raises(UsageError, match="names no form for translations"):
        check_prompts(Prompts("en>fr"), silent)
    with pytest.raises(UsageError, match="write it as fr>en"):
        Prompts("french to english")


def test_what_is_scored_is_one_line() -> None:
    assert hypothesis(b" Hello\nthere \xff\r\n") == "Hello there \ufffd"


def test_scores_are_sacrebleus_own_and_a_difference_is_as_sure_as_it_is_large() -> None:
    from sacrebleu import corpus_bleu, corpus_chrf

    # 40 lines: `slip` errs in a word of one line, `wrong` in a word of every line
    right = [f"the quick brown fox number {n} jumps over the lazy dog of number {n + 1}" for n in range(40)]
    slip = [right[0].replace("lazy", "small"), *right[1:]]
    wrong = [line.replace("jumps over", "sleeps beside") for line in right]
    outputs = {"wrong": wrong, "right": right, "same": list(right), "slip": slip}
    found = score(open_bleu("13a", SILENT), outputs, right, "right")
    assert list(found.by_setting) == list(outputs)
    for name, texts in outputs.items():
        assert found.by_setting[name]["BLEU"].score == pytest.approx(corpus_bleu(texts, [right]).score)
        assert found.by_setting[name]["chrF++"].score == pytest.approx(corpus_chrf(texts, [right], word_order=2).score)
    p = {name: scores["BLEU"].p for name, scores in found.by_setting.items()}
    assert p["right"] is None
    assert p["same"] == 1.0
    assert p["wrong"] is not None
    assert p["wrong"] < 0.01
    assert p["slip"] is not None
    assert p["slip"] > 0.05
    assert "tok:13a" in found.signatures["BLEU"]
    assert "nw:2" in found.signatures["chrF++"]


def test_a_sentencepiece_tokenizer_in_sacrebleus_folder_is_used(tmp_path: Path, files: list[str]) -> None:
    import sentencepiece

    (tmp_path / "text").write_text("\n".join(SOURCES + TARGETS), encoding="utf-8")
    (tmp_path / "models").mkdir()
    prefix = tmp_path / "models" / "sacrebleu_tokenizer_spm"
    sentencepiece.SentencePieceTrainer.train(input=str(tmp_path / "text"), model_prefix=str(prefix), vocab_size=60,
                                             hard_vocab_limit=False, minloglevel=2)  # fmt: skip
    done = bltcli("eval", "mt", "-m", "bundle", "-n", "8", "--run", "ar", "--format", "json", *files,
                  env={"SACREBLEU": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tok:flores101" in json.loads(done.stdout)["signatures"]["BLEU"]


def test_a_tokenizer_that_cannot_be_fetched_is_refused_before_anything_runs(tmp_path: Path, files: list[str]) -> None:
    nowhere = {"SACREBLEU": str(tmp_path), "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = bltcli("eval", "mt", "-q", "-m", "bundle", *files, "--records", str(tmp_path / "runs"), env=nowhere)
    assert (done.returncode, done.stdout) == (2, b"")
    says = one_line(done)
    assert f"--tokenize flores101 needs {tmp_path / 'models' / 'sacrebleu_tokenizer_spm.model'}" in says
    assert "--tokenize 13a" in says
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sacrebleu_tokenizer_spm.model").write_text("<html>not here</html>")
    done = bltcli("eval", "mt", "-m", "bundle", *files, env={"SACREBLEU": str(tmp_path)})
    assert done.returncode == 2
    assert "is no SentencePiece model" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_without_sacrebleu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, files: list[str]) -> None:
    class Missing:
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "sacrebleu":
                raise ModuleNotFoundError(name=name)

    for name in [name for name in sys.modules if name.split(".")[0] == "sacrebleu"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    done = here(*mt(*files))
    assert done.returncode == 3
    assert "sacrebleu is not installed; pip install 'bltcli[eval]'" in one_line(done)


def test_the_choices_of_tokenizers_are_the_librarys() -> None:
    from bltcli.commands.eval import mt as verb

    assert verb.TOKENIZERS == TOKENIZERS


def test_verified_methods_give_the_bytes_of_ar_and_the_report_says_so(tmp_path: Path, files: list[str]) -> None:
    done = here(*mt(*files, "--run", "ar", "--run", "blt-s k=4", "--records", str(tmp_path), "--paper", "1B"))
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert "blt-s k=4: the same bytes as ar in all 6 texts." in text
    assert "paper: BLT-S 1B k=4" in text
    plain, drafted = (lines_of(tmp_path, name) for name in ("ar", "blt-s_k=4"))
    assert [r["id"] for r in plain[1:]] == list(range(6))
    assert [r["source"] for r in plain[1:]] == SOURCES
    assert [r["reference"] for r in plain[1:]] == TARGETS
    assert [r["output"] for r in plain[1:]] == [r["output"] for r in drafted[1:]]
    assert plain[0]["direction"] == "fr>en"
    # passes differ: plain decoding runs patcher and decoder for each byte it goes on from
    for ours, theirs in zip(plain[1:], drafted[1:], strict=True):
        passes = ours["work"]["nfe"]
        assert passes["patcher"] == passes["decoder"] == ours["new_bytes"] - (ours["finish_reason"] == "length")
        assert theirs["work"]["nfe"]["patcher"] < passes["patcher"]


def test_a_record_counts_as_generate_does(tmp_path: Path, files: list[str]) -> None:
    assert here(*mt(*files, "--run", "blt-s k=4", "--records", str(tmp_path))).returncode == 0
    record = lines_of(tmp_path, "blt-s_k=4")[2]
    stats = tmp_path / "stats.json"
    done = here("generate", "-m", "bundle", "-k", "4", "-n", "24", "-p", f"fr>en\n{SOURCES[1]}\n",
                "--stats-json", str(stats))  # fmt: skip
    expected = json.loads(stats.read_bytes())
    output = bytes.fromhex(record["output_hex"]) if "output_hex" in record else record["output"].encode()
    assert output == done.stdout
    assert record["finish_reason"] == expected["finish_reason"]
    for name in ("nfe", "prefill_nfe", "rounds", "drafted", "accepted", "patches", "weight_bytes_read"):
        assert record["work"][name] == expected[name], name


def test_texts_come_out_the_same_in_any_company(tmp_path: Path, files: list[str]) -> None:
    for rows in ("1", "2", "4"):
        assert (
            here(*mt(*files, "--run", "blt-s k=4", "--rows", rows, "--records", str(tmp_path / rows))).returncode == 0
        )
    alone, pairs, fours = (lines_of(tmp_path / rows, "blt-s_k=4")[1:] for rows in ("1", "2", "4"))
    for records in (pairs, fours):
        assert [r["id"] for r in records] == list(range(6))
        for name in ("output", "finish_reason", "new_bytes"):
            assert [r[name] for r in records] == [r[name] for r in alone]
    # texts of a call are of like length: the empty one and the shortest go together
    assert {r["id"] for r in pairs if r["call"] == pairs[3]["call"]} == {3, 5}


def test_a_source_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    sources = ["Oui.", "x" * 5000, "Non."]
    files = _write(tmp_path, sources, ["Yes.", "x", "No."])
    for rows in ("1", "3"):
        done = here(*mt(*files, "--run", "ar", "--rows", rows, "--records", str(tmp_path / rows)))
        assert done.returncode == 4, done.stderr
        assert "1 records failed, the first is 1 of ar: the prompt has 5007 bytes" in one_line(done)
        assert "1 of 3 texts failed" in done.stdout.decode()
        _, first, second, third = lines_of(tmp_path / rows, "ar")
        assert "error" in second
        assert first["new_bytes"]
        assert third["new_bytes"]


def test_a_killed_run_goes_on_to_the_same_records(tmp_path: Path) -> None:
    files = _write(tmp_path, [f"{n} {SOURCES[n % 3]}" for n in range(20)], [TARGETS[n % 3] for n in range(20)])
    args = mt(*files, "--run", "ar", "--run", "blt-s k=4", "--rows", "2", n=80)
    file = tmp_path / "cut" / "blt-s_k=4.jsonl"
    with start(*args, "--records", str(tmp_path / "cut")) as process:
        while not (file.exists() and file.read_bytes().count(b"\n") > 8) and process.poll() is None:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    cut = file.read_bytes()
    assert 8 < cut.count(b"\n") < 21
    plain = (tmp_path / "cut" / "ar.jsonl").read_bytes()
    for folder in ("cut", "whole"):
        assert here(*args, "--records", str(tmp_path / folder)).returncode == 0
    assert file.read_bytes().startswith(cut[: cut.rfind(b"\n") + 1])  # what was there was kept, clocks and all
    assert (tmp_path / "cut" / "ar.jsonl").read_bytes() == plain
    for name in ("ar.jsonl", "blt-s_k=4.jsonl"):
        assert without_clocks(tmp_path / "cut" / name) == without_clocks(tmp_path / "whole" / name)


def test_settings_are_added_to_a_folder_and_other_runs_refused(tmp_path: Path, files: list[str]) -> None:
    folder = ("--records", str(tmp_path / "runs"))
    assert here(*mt(*files, "--run", "ar", *folder)).returncode == 0
    before = (tmp_path / "runs" / "ar.jsonl").read_bytes()
    assert here(*mt(*files, "--run", "ar", "--run", "blt-s", *folder)).returncode == 0
    assert (tmp_path / "runs" / "ar.jsonl").read_bytes() == before
    for more, field in (
        (["--temperature", "1"], "sampling"),
        (["--limit", "2"], "input_sha256"),
        (["--no-exact"], "exact"),
        (["-n", "25"], "max_bytes 24, this run has 25"),
    ):
        done = here(*mt(*files, "--run", "ar", *folder, *more))
        assert (done.returncode, done.stdout) == (2, b"")
        assert f"was begun with {field}" in one_line(done)
    assert (tmp_path / "runs" / "ar.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--run", "blt-x"], "--method is 'blt-x'"),
        (["--run", "ar", "--run", "ar"], "the setting 'ar' is there 2 times"),
        (["--shots", "2"], "--shots 2 needs --examples"),
        (["--examples", "in.fr", "in.en"], "--examples needs --shots"),
        (["--run", "blt-d"], "blt-d needs one trained on blocks"),
        (["--direction", "en>de"], "trained on: en>fr"),
        (["--reference", "nowhere"], "cannot read nowhere"),
    ],
)
def test_what_cannot_be_run_is_one_line(files: list[str], args: list[str], says: str) -> None:
    done = here(*mt(*files, *args))
    assert done.returncode in (2, 3)
    assert done.stdout == b""
    assert says in one_line(done)


def test_shots_come_from_the_first_lines_and_end_at_a_line(tmp_path: Path, files: list[str]) -> None:
    examples = ["--shots", "2", "--examples", files[1], files[3]]
    done = here(*mt(*files, *examples, "--run", "ar", "--format", "json", "--records", str(tmp_path / "runs"), n=60))
    assert done.returncode == 0, done.stderr
    assert "2 of the examples shown are lines of the test set" in one_line(done)
    header, *records = lines_of(tmp_path / "runs", "ar")
    assert (header["shots"], header["stop"]) == (2, ["\n"])
    assert all("\n" not in record["output"] for record in records)


def test_settings_in_the_environment_are_separated_by_semicolons(files: list[str]) -> None:
    done = bltcli(*mt(*files, "--limit", "1", "--format", "csv"), env={"BLTCLI_EVAL_MT_RUN": "ar; blt-s k=2"})
    assert [line.split(b",")[0] for line in done.stdout.splitlines()] == [b"setting", b"ar", b"blt-s k=2"]

"""Log-likelihoods equal Hugging Face's, suites are read and scored as lm-evaluation-harness does. Items are our own."""

from __future__ import annotations

import importlib.machinery
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bltcli.bundle import Bundle, open_bundle
from bltcli.checkpoint import open_checkpoint
from bltcli.commands.eval import likelihood
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.evaluate import suites
from bltcli.evaluate.generating import Generator
from bltcli.evaluate.loglikelihood import fitted, plan, score
from bltcli.evaluate.suites import Item, read_suite
from bltcli.pipeline import open_model
from bltcli.vocab import encode
from bltcli_export.exporter import export_checkpoint
from tests.cli_support import bltcli, environment, here, home, one_line
from tests.conftest import TinyBundle
from tests.helpers import hf_logits, load_hf, random_text
from tests.toy import ToyModel, random_law

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from bltcli.evaluate import lm_harness
from bltcli.evaluate.lm_harness import HarnessModel, run_suite, to_bytes, to_text

WORDS = (
    "what",
    "why",
    "a",
    "the",
    "water",
    "moves",
    "sand",
    "é",
    "light",
    "grows",
    "水",
    "3",
    "melts",
    "Ä",
    "plant,",
    "over",
)


def write(file: Path, *records: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def own_items(file: Path, count: int, choices: int, seed: int) -> Path:
    """A suite file of nonsense in several scripts."""
    rng = np.random.default_rng(seed)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))

    def record() -> dict[str, Any]:
        found = list(dict.fromkeys(words(4) + str(n) for n in range(choices)))
        return {"query": f"Question: {words(8)}", "choices": found, "gold": int(rng.integers(choices))}

    return write(file, *(record() for _ in range(count)))


def requests_of(pairs: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


@pytest.fixture(scope="module")
def hf_bundle(hf_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("likelihood") / "bundle"
    return open_bundle(export_checkpoint(open_checkpoint(hf_checkpoint), out, precision="fp32", check=False))


# Hugging Face


@torch.no_grad()
def hugging_face(model: Any, context: str, continuation: str) -> tuple[float, float, bool, bool]:
    """Log-likelihood over all 260 outputs; over the 256 bytes; greedy; whether a byte is so close to the threshold that
    rounding decides whether it ends its patch."""
    ids, n = encode(to_bytes(context + continuation)), len(to_bytes(continuation))
    logits = hf_logits(model, ids[None])[0, -n - 1 : -1].double()
    targets, rows = torch.from_numpy(ids[-n:]), torch.arange(n)
    threshold = model.config.patching_threshold
    entropies = model.model.patcher(torch.from_numpy(ids[None]), patch_size=4, threshold=threshold)[0]
    return (
        logits.log_softmax(-1)[rows, targets].sum().item(),
        logits[:, 4:].log_softmax(-1)[rows, targets - 4].sum().item(),
        bool((logits.argmax(-1) == targets).all()),
        bool(((entropies.double() - threshold).abs() < 5e-6).any()),
    )


@pytest.mark.parametrize(("suite", "choices"), [("arc_easy", 4), ("piqa", 2)])
def test_loglikelihoods_are_those_of_hugging_face(
    suite: str, choices: int, hf_checkpoint: Path, hf_bundle: Bundle, tmp_path: Path
) -> None:
    items = read_suite(suite, own_items(tmp_path / "items", 100, choices, seed=choices))
    pairs = [(item.query, f" {choice}") for item in items for choice in item.choices]
    assert len(pairs) == 100 * choices
    ours = HarnessModel(Generator(hf_bundle, rows=3)).loglikelihood(requests_of(pairs))
    model = load_hf(hf_checkpoint)
    compared, missed_without_four = 0, 0
    for (nats, greedy), pair in zip(ours, pairs, strict=True):
        all_outputs, bytes_only, likeliest, near_tie = hugging_face(model, *pair)
        if not near_tie:
            compared += 1
            assert abs(nats - all_outputs) < 1e-4, pair
            assert greedy == likeliest
            missed_without_four += abs(nats - bytes_only) > 1e-4
    assert compared >= 0.98 * len(pairs)
    assert missed_without_four == compared  # the bound is tight enough to tell what is normalised over


def test_scores_do_not_depend_on_what_is_scored_together(hf_bundle: Bundle, tmp_path: Path) -> None:
    items = read_suite("piqa", own_items(tmp_path / "items", 12, 3, seed=9))
    requests = [(to_bytes(i.query), to_bytes(f" {choice}")) for i in items for choice in i.choices]
    requests += [(b"", b"alone"), (requests[0][0], b"")]
    alone = open_model(hf_bundle)
    expected = [score(alone, [request])[0] for request in requests]
    for rows in (2, 5):
        model = open_model(hf_bundle, rows=rows)
        found = {n: s for group in plan(requests, rows)
                 for n, s in zip(group, score(model, [requests[n] for n in group]), strict=True)}  # fmt: skip
        assert [found[n] for n in range(len(requests))] == expected  # to the last bit


def test_long_texts_are_scored_as_if_alone_though_windows_slide(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup")
    text = random_text(4000, seed=5)
    # contexts on both sides of where the buffers let go; continuations of one call, of several, and one again
    requests = [
        (text[start : start + size], text[at : at + length])
        for start, size in enumerate((300, 520, 560, 600, 1150))
        for at, length in ((2000, 20), (2100, 600), (2300, 90), (3000, 1), (3100, 129), (3300, 130), (3500, 40))
    ]
    alone = open_model(bundle)
    expected = [score(alone, [request])[0] for request in requests]
    for rows in (1, 3):
        model = open_model(bundle, rows=rows)
        for group in plan(requests, rows):
            assert score(model, [requests[n] for n in group]) == [expected[n] for n in group]


@pytest.mark.parametrize("size", [480, 900])
def test_long_texts_have_hugging_faces_likelihoods(size: int, hf_checkpoint: Path, hf_bundle: Bundle) -> None:
    text = random_text(2000, seed=size).decode()
    pairs = [(text[:size], text[size : size + length]) for length in (150, 400, 30)]
    model = load_hf(hf_checkpoint)
    for (nats, _), pair in zip(
        HarnessModel(Generator(hf_bundle)).loglikelihood(requests_of(pairs)), pairs, strict=True
    ):
        all_outputs, _, _, near_tie = hugging_face(model, *pair)
        assert not near_tie
        assert abs(nats - all_outputs) < 1e-4


# scoring, on a model whose law is written down

LAW = random_law(3)
LOG_LAW = LAW.astype(np.float64) - np.log(np.exp(LAW.astype(np.float64)).sum(-1, keepdims=True))


def true_nats(context: bytes, continuation: bytes) -> float:
    ids = encode(context + continuation)
    return float(LOG_LAW[ids[:-1], ids[1:]][len(context) :].sum())


def toy(rows: int = 1, context: int = 4096) -> Any:
    """What `Generator` offers, over the toy model."""
    model = ToyModel(LAW, LAW, rows=rows, context=context)
    return SimpleNamespace(rows=rows, model=lambda _: model, header=lambda: {"bundle_sha256": "toy"})


def test_scores_are_the_laws_own() -> None:
    rng = np.random.default_rng(0)
    requests = [(rng.bytes(rng.integers(0, 30)), rng.bytes(rng.integers(0, 20))) for _ in range(40)]
    model = toy().model(1)
    for request in requests:
        assert score(model, [request])[0].nats == pytest.approx(true_nats(*request), abs=1e-9)
    likeliest = bytes([int(LAW[ord("a") + 4, 4:].argmax())])
    greedy = bool(LAW[ord("a") + 4].argmax() == likeliest[0] + 4)
    assert score(model, [(b"a", likeliest)])[0].greedy == greedy
    assert not score(model, [(b"a", bytes([(likeliest[0] + 1) % 256]))])[0].greedy
    assert score(model, [(b"a", b"")])[0] == score(model, [(b"", b"")])[0]
    assert score(model, [(b"a", b"")])[0].greedy


@pytest.mark.parametrize("rows", [1, 3])
def test_any_bytes_pass_through_the_harness(rows: int) -> None:
    every = bytes(range(256))
    assert to_bytes(to_text(every)) == every
    assert to_bytes("é水") == "é水".encode()
    found = HarnessModel(toy(rows)).loglikelihood(requests_of([(to_text(every), to_text(every[::-1]))]))
    assert found[0][0] == pytest.approx(true_nats(every, every[::-1]), abs=1e-9)


def test_spaces_stay_where_they_are() -> None:
    pairs = [("a ", "b"), ("a", " b")]
    found = HarnessModel(toy()).loglikelihood(requests_of(pairs))
    assert [nats for nats, _ in found] == [pytest.approx(true_nats(*map(str.encode, pair))) for pair in pairs]
    assert found[0][0] != pytest.approx(found[1][0])


def test_long_contexts_lose_their_beginning_and_long_continuations_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = HarnessModel(toy(context=12))
    assert model.max_length == 10
    found = model.loglikelihood(requests_of([("x" * 50 + "abc", "de")] * 2))
    assert found[0][0] == pytest.approx(true_nats(b"abc", b"de"))
    assert capsys.readouterr().err.count("longer than the model's") == 1
    assert fitted((b"0123456789", b"abc"), 10) == (b"23456789", b"abc")
    assert fitted((b"0123456789", b"a"), 10) == (b"0123456789", b"a")
    assert fitted((b"x", b"0123456789a"), 10) == (b"", b"0123456789a")
    with pytest.raises(UsageError, match="a continuation has 12 bytes, the model's context holds 11"):
        fitted((b"", b"0123456789ab"), 10)


def test_a_context_that_is_full_of_patches_is_refused(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup", max_patches=40)
    model = open_model(bundle)
    assert score(model, [(b"abcd" * 5, b"efg")])[0].nats < 0
    with pytest.raises(UsageError, match=r"a text has \d+ bytes, the model's context is full of patches after \d+"):
        score(model, [(b"abcd" * 5, bytes(range(32, 127)) * 10)])


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 100])
def test_rolling_scores_each_byte_once(size: int) -> None:
    text = np.random.default_rng(size).bytes(size)
    rolled = HarnessModel(toy(rows=2, context=12)).loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (to_text(text),), 0)] * 2
    )
    assert rolled == [pytest.approx(true_nats(b"", text), abs=1e-9)] * 2  # a chain needs no more context than a byte


def test_generation_goes_on_until_its_ends(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup")
    prompts = ["Once", "upon a", "tïme"]
    plain = open_model(bundle)
    method = MethodOptions(method="ar").make(plain)
    expected = [generate_texts(plain, method, [p.encode()], stop=Stop(max_bytes=30))[0][0] for p in prompts]
    end = to_text(expected[0][10:12])
    model = HarnessModel(Generator(bundle, rows=2))

    def until(**how: Any) -> list[str]:
        return model.generate_until([Instance("generate_until", {}, (prompt, how), 0) for prompt in prompts])

    assert [to_bytes(text) for text in until(until=[], max_gen_toks=30, do_sample=False, temperature=1.0)] == expected
    cut = [text.split(to_bytes(end))[0] for text in expected]
    assert [to_bytes(text) for text in until(until=end, max_gen_toks=30)] == cut
    drawn = until(until=[end], max_gen_toks=30, temperature=1.5, do_sample=True)
    assert drawn != until(until=[end], max_gen_toks=30)
    with pytest.raises(UsageError, match="'num_beams' is unknown"):
        until(num_beams=4)
    with pytest.raises(UsageError, match="max_gen_toks is 9999"):
        until(max_gen_toks=9999)


# suites


class Answers(HarnessModel):
    """Likelihoods by hand."""

    def __init__(self, by_choice: dict[str, float]) -> None:
        super().__init__(toy())
        self.by_choice = by_choice

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(self.by_choice[request.args[1]], False) for request in requests]


def test_choices_are_normalised_by_their_bytes() -> None:
    nats = {" eee": -8.0, " ééé": -9.0, " no": -7.0}
    items = [Item("q", ("eee", "ééé", "no"), gold) for gold in (0, 1, 1, 2)]
    found = run_suite(Answers(nats), "piqa", items)
    # the likeliest is "no"; per byte "ééé" (-1.5), per character it would be "eee" (-2.67)
    assert (found.items, found.acc, found.acc_norm) == (4, 25.0, 50.0)
    assert found.acc_error == pytest.approx(100 * np.std([0, 0, 0, 1], ddof=1) / 2)


def test_accuracy_is_that_of_the_likelihoods(hf_bundle: Bundle, tmp_path: Path) -> None:
    items = read_suite("arc_easy", own_items(tmp_path / "items", 30, 4, seed=1))
    model = HarnessModel(Generator(hf_bundle), records=tmp_path / "runs" / "scores.jsonl")
    right = by_bytes = 0
    scorer = open_model(hf_bundle)
    for item in items:
        nats = [score(scorer, [(to_bytes(item.query), to_bytes(f" {c}"))])[0].nats for c in item.choices]
        right += int(np.argmax(nats)) == item.gold
        by_bytes += int(np.argmax([x / len(to_bytes(c)) for x, c in zip(nats, item.choices, strict=True)])) == item.gold
    found = run_suite(model, "arc_easy", items)
    assert (found.acc, found.acc_norm) == (pytest.approx(100 * right / 30), pytest.approx(100 * by_bytes / 30))
    assert 0 < right < 30

    # another run takes the scores that are there
    def never(*_: Any) -> None:
        raise AssertionError("scored again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_harness, "score", never)
        assert run_suite(model, "arc_easy", items) == found
    with pytest.raises(UsageError, match="input_sha256"):
        run_suite(model, "arc_easy", items[:-1])


QUESTION = "Question: What is wet?\nAnswer:"
FORMS: list[tuple[str, dict[str, Any], Item]] = [
    ("arc_easy", {"query": "Question: What is wet?", "choices": ["sand", "water"], "gold": 1},
     Item(QUESTION, ("sand", "water"), 1)),
    ("arc_challenge", {"question": "What is wet?", "choices": {"text": ["sand", "water"], "label": ["1", "2"]},
                       "answerKey": "2"}, Item(QUESTION, ("sand", "water"), 1)),
    ("piqa", {"query": "Question: What is wet?\n", "choices": ["sand", "water"], "gold": 1},
     Item(QUESTION, ("sand", "water"), 1)),
    ("piqa", {"goal": "What is wet?", "sol1": "sand", "sol2": "water", "label": 1},
     Item(QUESTION, ("sand", "water"), 1)),
    ("hellaswag", {"activity_label": "Rain", "ctx_a": "It rains [title] now.", "ctx_b": "a man",
                   "endings": ["runs [step] off.", "sleeps."], "label": "0"},
     Item("Rain: It rains. now. A man", ("runs off.", "sleeps."), 0)),
    ("mmlu", {"subject": "high_school_physics", "question": " What is wet? ", "choices": ["a", "b", "c", "d"],
              "answer": "C"},
     Item("The following are multiple choice questions (with answers) about high school physics.\n\n"
          "What is wet?\nA. a\nB. b\nC. c\nD. d\nAnswer:", ("A", "B", "C", "D"), 2)),
]  # fmt: skip


@pytest.mark.parametrize(("suite", "record", "item"), FORMS)
def test_suites_are_worded_as_in_the_harness(suite: str, record: dict[str, Any], item: Item, tmp_path: Path) -> None:
    assert read_suite(suite, write(tmp_path / "items", record, record)) == [item, item]
    assert read_suite(suite, tmp_path / "items", limit=1) == [item]


def test_hellaswag_is_read_as_plain_text_too(tmp_path: Path) -> None:
    (tmp_path / "items").write_text("Rain: A man\u2028 then\n3\nruns.\nsleeps.\nsits.\nstands.\n" * 2)
    items = read_suite("hellaswag", tmp_path / "items")
    assert items == [Item("Rain: A man\u2028 then", ("runs.", "sleeps.", "sits.", "stands."), 3)] * 2


def test_mmlu_shows_five_examples_of_the_subject(tmp_path: Path) -> None:
    def record(subject: str, number: int) -> dict[str, Any]:
        return {"subject": subject, "question": f"{subject} {number}?", "choices": list("wxyz"), "answer": number % 4}

    examples = write(tmp_path / "dev", *(record(s, n) for n in range(7) for s in ("law", "art")))
    items = read_suite("mmlu", write(tmp_path / "test", record("law", 9)), examples=examples)
    head, *shown, asked = items[0].query.split("\n\n")
    assert head.endswith("about law.")
    assert shown == [f"law {n}?\nA. w\nB. x\nC. y\nD. z\nAnswer: {'ABCD'[n % 4]}" for n in range(5)]
    assert asked == "law 9?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    with pytest.raises(UsageError, match="no examples of biology"):
        read_suite("mmlu", write(tmp_path / "other", record("biology", 1)), examples=examples)


@pytest.mark.parametrize(
    ("suite", "content", "says"),
    [
        ("arc_easy", b"{", "arc_easy"),
        ("arc_easy", b"", "empty"),
        ("arc_easy", b"\xff\n", "arc_easy"),
        ("arc_easy", b"[1]\n", "arc_easy"),
        ("piqa", b'{"goal": "x", "sol1": "y"}\n', "no 'sol2'"),
        ("piqa", b'{"query": "x", "choices": ["y", ""], "gold": 0}\n', "choices"),
        ("piqa", b'{"query": "x", "choices": ["y", "z"], "gold": 2}\n', "answer 2"),
        ("hellaswag", b"a\n1\nb\n", "six per item"),
    ],
)
def test_files_of_another_kind_are_refused(suite: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "items").write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read_suite(suite, tmp_path / "items")


# the command line


def eval_likelihood(*args: str) -> Any:
    return here("eval", "likelihood", "--model", "bundle", *args)


def test_accuracies_stand_above_the_papers(tmp_path: Path) -> None:
    arc, piqa = (str(own_items(tmp_path / name, 9, n, seed=n)) for name, n in (("arc", 4), ("piqa", 2)))
    done = bltcli("eval", "likelihood", "--model", "bundle", "--suite", "arc_easy", "--file", arc,
                  "--suite", "piqa", "--file", piqa, "--limit", "7")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    head, *lines = done.stdout.decode().splitlines()
    assert head.split() == ["ARC-E", "PIQA"]
    assert [line.split()[:2] for line in lines[:2]] == [["bundle", "acc"], ["bundle", "acc_norm"]]
    assert "paper: BLT 3B" in lines[2]
    assert lines[2].split()[-2:] == ["74.33", "79.38"]
    assert lines[-1].split() == ["items", "7", "7"]


def test_json_says_the_same_and_scores_are_kept(tmp_path: Path) -> None:
    arc = str(own_items(tmp_path / "arc", 9, 4, seed=0))
    args = ("--suite", "arc_easy", "--file", arc, "--json", "--records", str(tmp_path / "runs"), "--no-progress")
    done = eval_likelihood(*args)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["suites"]["arc_easy"]["items"] == 9
    lines = (tmp_path / "runs" / "arc_easy.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 36
    (tmp_path / "runs" / "arc_easy.jsonl").write_text("\n".join(lines[:20]))  # interrupted
    assert eval_likelihood(*args).stdout == done.stdout
    assert (tmp_path / "runs" / "arc_easy.jsonl").read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--suite", "piqa", "--suite", "mmlu", "--file", "x"], "each suite needs a file"),
        (["--suite", "piqa", "--file", "x", "--suite", "piqa", "--file", "x"], "give each suite once"),
        (["--suite", "piqa", "--file", "x", "--examples", "x"], "--examples are for mmlu"),
        (["--suite", "piqa", "--file", "nowhere"], "cannot read nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(args: list[str], says: str) -> None:
    done = eval_likelihood(*args)
    assert done.returncode == 2
    assert says in one_line(done)


def test_without_the_harness_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bltcli.evaluate.lm_harness")
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    found = importlib.machinery.PathFinder.find_spec
    absent = SimpleNamespace(find_spec=lambda name, *more: None if name == "lm_eval" else found(name, *more))
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if f is not importlib.machinery.PathFinder])
    sys.meta_path.append(absent)
    done = eval_likelihood("--suite", "piqa", "--file", str(own_items(tmp_path / "piqa", 2, 2, seed=0)))
    assert done.returncode == 3
    assert "bltcli[eval]" in one_line(done)


def test_names_agree() -> None:
    assert tuple(suites.SUITES) == likelihood.SUITES
    assert all(list(scores) == list(suites.SUITES.values()) for scores in suites.PAPER.values())
    assert get_model("bltcli") is lm_harness.RegisteredModel


@pytest.mark.slow
def test_the_harness_runs_us_by_name(tmp_path: Path) -> None:
    items = own_items(tmp_path / "items.jsonl", 5, 3, seed=2)
    task = {"task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(items)}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "query", "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}  # fmt: skip
    (tmp_path / "own.yaml").write_text(json.dumps(task))
    done = subprocess.run(
        [sys.executable, "-m", "bltcli.evaluate.lm_harness", "run", "--model", "bltcli",
         "--model_args", "bundle=bundle,method=blt-s k=4", "--tasks", "own", "--include_path", str(tmp_path)],
        env=environment(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf")), cwd=home(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "own" in done.stdout

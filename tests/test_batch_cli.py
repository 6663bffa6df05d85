"""bltcli batch: an answer per record, in its own form or in OpenAI's, whatever a record holds."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from bltcli.batch.jsonl import record_key
from bltcli.bundle import open_bundle
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.pipeline import open_model
from bltcli.sampling import Sampler
from tests.cli_support import bltcli, here, home, one_line

TINY = ("batch", "--model", "bundle", "--temperature", "1", "--ignore-eos", "-q")


def write(name: str, *records: Any) -> str:
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    (home() / name).write_bytes(b"\n".join(lines) + b"\n")
    return name


def answers(*args: str, **more: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in here(*TINY, *args).stdout.splitlines()]


def alone(name: Any, prompt: bytes, max_bytes: int, *stop: bytes) -> tuple[bytes, str]:
    model = open_model(open_bundle(home() / "bundle"))
    texts, stats = generate_texts(
        model, MethodOptions().make(model), [prompt], sampler=Sampler(temperature=1.0, ignore_eos=True),
        stop=Stop(max_bytes=max_bytes, strings=stop), records=[record_key(name)],
    )  # fmt: skip
    return texts[0], "length" if stats.new_bytes == max_bytes else "stop"


RAW = b"\xff\0\xfe"
RECORDS = [
    {"id": "a", "prompt": "Größe\n"},
    {"id": 2, "prompt_base64": base64.b64encode(RAW).decode(), "max_bytes": 33},
    {"id": None, "prompt": "", "stop": ["e", "t"]},
    {"prompt": "no name"},
    {"custom_id": "o1", "method": "POST", "url": "/v1/completions",
     "body": {"model": "mine", "prompt": "abc", "max_tokens": 12, "stop": None, "temperature": 1, "n": 1, "seed": 0}},
    {"custom_id": "o2", "body": {"prompt": ["abc"], "stop": "e"}},
]  # fmt: skip


def test_each_answer_is_what_the_model_says_of_its_record_alone() -> None:
    found = answers("-n", "20", "--batch-size", "3", write("in.jsonl", *RECORDS))
    expected = [
        alone("a", "Größe\n".encode(), 20), alone(2, RAW, 33), alone(None, b"", 20, b"e", b"t"),
        alone(4, b"no name", 20), alone("o1", b"abc", 12), alone("o2", b"abc", 20, b"e"),
    ]  # fmt: skip
    assert [answer["id"] for answer in found[:4]] == ["a", 2, None, 4]
    for answer, (text, reason) in zip(found[:4], expected, strict=False):
        assert answer["text"] == text.decode(errors="replace")
        assert ("text_base64" in answer) == ("\ufffd" in answer["text"])
        if "text_base64" in answer:
            assert base64.b64decode(answer["text_base64"]) == text
        assert (answer["finish_reason"], answer["new_bytes"]) == (reason, len(text))
    for answer, (text, reason) in zip(found[4:], expected[4:], strict=True):
        body = answer["response"]["body"]
        choice = body["choices"][0]
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        assert choice["text"] == text.decode(errors="replace")
        assert (choice["index"], choice["finish_reason"]) == (0, reason)
        assert body["usage"] == {
            "prompt_tokens": 3, "completion_tokens": len(text), "total_tokens": 3 + len(text)
        }  # fmt: skip
    assert [answer["custom_id"] for answer in found[4:]] == ["o1", "o2"]
    assert [answer["response"]["body"]["model"] for answer in found[4:]] == ["mine", "bltcli"]


def test_answers_do_not_depend_on_order_company_or_file() -> None:
    whole = {json.dumps(a["id"]): a for a in answers("-n", "20", write("in.jsonl", *RECORDS[:3]))}
    turned = answers("-n", "20", "--batch-size", "1", write("turned.jsonl", *RECORDS[2::-1]))
    assert [whole[json.dumps(a["id"])] for a in turned] == turned
    assert answers("-n", "20", write("one.jsonl", RECORDS[1])) == [whole["2"]]
    assert answers("-n", "20", "--seed", "1", "one.jsonl") != [whole["2"]]
    twice = answers("-n", "20", write("twice.jsonl", RECORDS[1], RECORDS[1], RECORDS[1]))
    assert twice == [whole["2"]] * 3


def test_the_context_ends_what_asks_for_more_than_any_counter_holds() -> None:
    (found,) = answers("-n", "9" * 30, write("endless.jsonl", {"prompt": "x" * 4090, "max_bytes": 10**30}))
    assert (found["finish_reason"], 1 <= found["new_bytes"] <= 6) == ("context", True)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (b"hey", "line 1 is no JSON"),
        (b"\xff", "line 1 is no JSON"),
        (b"[" * 100_000, "line 1 is no JSON"),
        ([1], "the record is no JSON object"),
        ({"id": 1}, "there is no prompt"),
        ({"id": 1, "prompt": 5}, "prompt is no text"),
        ({"id": 1, "prompt": "a", "prompt_base64": "YQ=="}, "there are two prompts"),
        ({"id": 1, "prompt_base64": "?"}, "prompt_base64 is no base64"),
        ({"id": "\ud800", "prompt": "\ud800"}, "half a surrogate pair"),
        ({"id": 1, "prompt": "a", "max_byte": 5}, 'has a field "max_byte"; the fields are id, prompt'),
        ({"id": 1, "prompt": "a", "max_bytes": 0}, "the most bytes to generate are 0"),
        ({"id": 1, "prompt": "a", "max_bytes": True}, "the most bytes to generate are true"),
        ({"id": 1, "prompt": "a", "stop": 5}, "stop is 5"),
        ({"id": 1, "prompt": "a", "stop": [""]}, "--stop is empty"),
        ({"id": 1, "prompt": "x" * 5000}, "the prompt has 5000 bytes"),
        ({"custom_id": 1}, "body is no JSON object"),
        ({"custom_id": 1, "body": {"prompt": ["a", "b"]}}, "prompt is no text"),
        ({"custom_id": 1, "body": {"messages": []}}, 'body has a field "messages"'),
        ({"custom_id": 1, "body": {"prompt": "a", "n": 2}}, "n is 2, which is not done here"),
        ({"custom_id": 1, "body": {"prompt": "a", "temperature": 0.5}}, "temperature is 0.5, this run has 1.0"),
    ],
)  # fmt: skip
def test_a_record_that_asks_for_nothing_possible_is_answered_by_an_error(record: Any, says: str) -> None:
    done = here(*TINY, "-n", "5", write("bad.jsonl", record, {"id": "good", "prompt": "a"}))
    bad, good = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 4
    assert good["id"] == "good"
    assert good["text"]
    openai = isinstance(record, dict) and "custom_id" in record
    error = bad["error"]["message"] if openai else bad["error"]
    assert says in error
    assert (bad.get("response"), bad.get("text")) == (None, None)
    assert says in one_line(done)


def test_blank_lines_are_no_records() -> None:
    done = bltcli(*TINY, "-n", "2", data=b'\n{"prompt":"a"}\r\n \n{"prompt":"b"}')
    assert done.returncode == 0
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [2, 4]


def test_a_file_appears_when_it_is_whole_and_a_journal_brings_it_back() -> None:
    args = (*TINY, "-n", "30", "--journal", "batch.journal", "-o", "out.jsonl", write("in.jsonl", *RECORDS))
    done = here(*args)
    assert (done.returncode, done.stdout) == (0, b"")
    whole = (home() / "out.jsonl").read_bytes()
    data = (home() / "batch.journal").read_bytes()
    (home() / "batch.journal").write_bytes(data[: len(data) * 2 // 3])
    (home() / "out.jsonl").unlink()
    assert here(*args, "--resume").returncode == 0
    assert (home() / "out.jsonl").read_bytes() == whole
    assert sorted((home() / "batch.journal").read_bytes().splitlines()) == sorted(data.splitlines())
    done = here(*args[:-1], "--resume", write("other.jsonl", *RECORDS[:2]))
    assert done.returncode == 2
    assert "begun with input_sha256" in one_line(done)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["in.jsonl", "-o", "in.jsonl"], "-o in.jsonl is the input itself"),
        (["in.jsonl", "-o", "."], "is a folder"),
        (["nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["in.jsonl", "-n", "0"], "--max-bytes is 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(args: list[str], says: str) -> None:
    write("in.jsonl", *RECORDS)
    done = here("batch", "--model", "bundle", *args)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in one_line(done)

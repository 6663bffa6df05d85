"""Multiple-choice suites from files of one's own: ARC, PIQA, HellaSwag and MMLU as questions with choices.

In the wording of lm-evaluation-harness. Knows no model and no harness.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bltcli.errors import UsageError
from bltcli.streams import read_file

#: Suites by name, with the paper's names for them.
SUITES: Final = {
    "arc_easy": "ARC-E", "arc_challenge": "ARC-C", "piqa": "PIQA", "hellaswag": "HellaSwag", "mmlu": "MMLU",
}  # fmt: skip
#: Accuracy in percent of the 3B models of Fast BLT (arXiv 2605.08044), the decoder run byte by byte. The paper does not
#: say how choices were normalised.
PAPER: Final[dict[str, dict[str, float]]] = {
    "BLT 3B": {"ARC-E": 74.33, "ARC-C": 45.75, "PIQA": 79.38, "HellaSwag": 74.98, "MMLU": 41.15},
    "BLT-D-4 3B": {"ARC-E": 72.39, "ARC-C": 41.46, "PIQA": 79.60, "HellaSwag": 71.86, "MMLU": 39.07},
    "BLT-D-8 3B": {"ARC-E": 70.95, "ARC-C": 41.03, "PIQA": 78.02, "HellaSwag": 70.56, "MMLU": 38.29},
    "BLT-D-16 3B": {"ARC-E": 66.89, "ARC-C": 40.43, "PIQA": 76.93, "HellaSwag": 69.12, "MMLU": 37.08},
}
LETTERS: Final = "ABCD"
MMLU_SHOTS: Final = 5


@dataclass(frozen=True)
class Item:
    """A question; a space and the choice follow it."""

    query: str
    choices: tuple[str, ...]
    gold: int


def read_suite(suite: str, file: Path, limit: int | None = None, *, examples: Path | None = None) -> list[Item]:
    """The items of a file, the first `limit` of them. JSON lines: a query, choices and gold, or the fields that the
    suite's authors gave; HellaSwag also as plain text, six lines an item. `examples`, for MMLU, are questions of which
    the first five of the same subject are shown before each. UsageError for anything else."""
    if examples is not None and suite != "mmlu":
        raise UsageError(f"--examples are for mmlu; {suite} is asked without")
    data = read_file(str(file))
    try:
        if suite == "hellaswag" and not data.startswith(b"{"):
            items = _plain(data.decode().removesuffix("\n").split("\n"))
        else:
            shown = _shown(_records(read_file(str(examples)))) if examples else {}
            read = _READERS.get(suite) or (lambda record: _mmlu(record, shown))
            items = [read(record) for record in _records(data)]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"{file} holds no items of {suite}: {what}") from None
    if not items:
        raise UsageError(f"{file} is empty")
    return items[:limit]


def _records(data: bytes) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in data.splitlines() if line]


def _item(query: str, choices: Sequence[str], gold: int) -> Item:
    if not all(isinstance(choice, str) and choice for choice in choices) or not 0 <= gold < len(choices):
        raise ValueError(f"item {query[:40]!r} has choices {list(choices)} and answer {gold}")
    return Item(query, tuple(choices), gold)


def _arc(record: Mapping[str, Any]) -> Item:
    if "query" in record:
        question, choices, gold = record["query"].removeprefix("Question: "), record["choices"], int(record["gold"])
    else:
        question, choices = record["question"], record["choices"]["text"]
        gold = record["choices"]["label"].index(record["answerKey"])
    return _item(f"Question: {question.rstrip()}\nAnswer:", choices, gold)


def _piqa(record: Mapping[str, Any]) -> Item:
    if "query" in record:
        return _arc(record)
    return _item(f"Question: {record['goal']}\nAnswer:", (record["sol1"], record["sol2"]), int(record["label"]))


def _hellaswag(record: Mapping[str, Any]) -> Item:
    if "query" in record:
        return _item(record["query"], record["choices"], int(record["gold"]))
    query = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    return _item(_without_marks(query), [_without_marks(x) for x in record["endings"]], int(record["label"]))


def _without_marks(text: str) -> str:
    """Text without the marks in brackets that HellaSwag's sources left in it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _plain(lines: Sequence[str]) -> list[Item]:
    if len(lines) % 6:
        raise ValueError(f"{len(lines)} lines are not six per item")
    return [_item(lines[n], lines[n + 2 : n + 6], int(lines[n + 1])) for n in range(0, len(lines), 6)]


def _mmlu(record: Mapping[str, Any], shown: Mapping[str, str]) -> Item:
    subject = str(record["subject"])
    if shown and subject not in shown:
        raise ValueError(f"there are no examples of {subject}")
    about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    return _item(about + shown.get(subject, "") + _asked(record), tuple(LETTERS), _answer(record))


def _shown(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By subject, its first questions with their answers."""
    by_subject: dict[str, list[str]] = {}
    for record in records:
        text = f"{_asked(record)} {LETTERS[_answer(record)]}\n\n"
        by_subject.setdefault(str(record["subject"]), []).append(text)
    return {subject: "".join(texts[:MMLU_SHOTS]) for subject, texts in by_subject.items()}


def _asked(record: Mapping[str, Any]) -> str:
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, record["choices"], strict=True))
    return f"{record['question'].strip()}\n{choices}Answer:"


def _answer(record: Mapping[str, Any]) -> int:
    answer = record["answer"]
    return LETTERS.index(answer) if isinstance(answer, str) and answer in LETTERS else int(answer)


_READERS: Final[dict[str, Callable[[Mapping[str, Any]], Item]]] = {
    "arc_easy": _arc, "arc_challenge": _arc, "piqa": _piqa, "hellaswag": _hellaswag,
}  # fmt: skip

"""HumanEval and MBPP: their files, the prompts made of them, and the programs that a completion makes. Runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bltcli.atomic import write_atomically
from bltcli.errors import UsageError
from bltcli.evaluate.generating import Task, output_of
from bltcli.records import Record
from bltcli.streams import read_file

TASKS: Final = ("humaneval", "mbpp")
#: Fast BLT's tables name them so, and generate so many bytes.
PAPER_TASKS: Final = {"humaneval": "HumanEval", "mbpp": "MBPP"}
MAX_BYTES: Final = {"humaneval": 512, "mbpp": 256}
#: A function ends where something else begins at the left margin; MBPP's examples show an end of their own.
STOPS: Final = {"humaneval": (b"\ndef", b"\nclass", b"\nif", b"\nprint", b"\n#"), "mbpp": (b"[DONE]",)}
#: MBPP's own split: what is tested, and the examples that are shown before it (arXiv 2108.07732).
MBPP_TESTED: Final = range(11, 511)
MBPP_SHOWN: Final = (2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A prompt, and the source that stands around its completion to make a program that tests it."""

    task_id: str
    prompt: str
    before: str  # of the solution: HumanEval's prompt is a part of it
    setup: str
    tests: str

    def solution(self, completion: str) -> str:
        return self.before + completion

    def program(self, completion: str) -> str:
        """Passes if its last line is reached."""
        return f"{self.setup}\n{self.solution(completion)}\n{self.tests}\n"


def read_problems(task: str, file: Path, limit: int | None = None) -> list[Problem]:
    """The problems of a HumanEval or MBPP file, JSON lines or one JSON array; the first `limit` of them. UsageError for
    a file that holds something else."""
    items = _read_items(file)
    problems = _human_eval(items, file) if task == "humaneval" else _mbpp(items, file)
    if not problems:
        raise UsageError(f"{file} holds no task of {PAPER_TASKS[task]} that is tested")
    return problems[:limit]


def task_of(task: str, problems: Sequence[Problem], samples: int) -> Task:
    """`samples` texts of each problem, one after another: text n is of problem n // samples."""
    return Task(
        name=f"code {task}",
        prompts=[problem.prompt.encode() for problem in problems for _ in range(samples)],
        facts=[{"task_id": p.task_id, "sample": sample} for p in problems for sample in range(samples)],
        header={"samples": samples},
    )


def completion_of(record: Record) -> str:
    """A record's output as source."""
    return output_of(record).decode(errors="replace")


def write_samples(file: Path, problems: Sequence[Problem], records: Sequence[Record]) -> None:
    """One JSON line per text, as evalplus and human-eval read them: task_id, completion, solution."""
    by_id = {problem.task_id: problem for problem in problems}
    lines = []
    for record in records:
        completion, task_id = completion_of(record), record["task_id"]
        sample = {"task_id": task_id, "completion": completion, "solution": by_id[task_id].solution(completion)}
        lines.append(json.dumps(sample, ensure_ascii=False) + "\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(lines).encode())


def _human_eval(items: Sequence[Mapping[str, Any]], file: Path) -> list[Problem]:
    def problem(item: Mapping[str, Any]) -> Problem:
        prompt, tests = _text(item, "prompt", file), _text(item, "test", file)
        tests += f"\ncheck({_text(item, 'entry_point', file)})"
        return Problem(task_id=_text(item, "task_id", file), prompt=prompt, before=prompt, setup="", tests=tests)

    return [problem(item) for item in items]


def _mbpp(items: Sequence[Mapping[str, Any]], file: Path) -> list[Problem]:
    by_number = {int(_text(item, "task_id", file)): item for item in items}
    missing = [number for number in MBPP_SHOWN if number not in by_number]
    if missing:
        raise UsageError(f"{file} lacks task {missing[0]}; tasks {MBPP_SHOWN} are shown as examples")
    shown = [_asked(by_number[n], file) + _lines(by_number[n], "code", file) + "\n[DONE]\n" for n in MBPP_SHOWN]

    def problem(number: int, item: Mapping[str, Any]) -> Problem:
        imports = "\n".join(map(str, item.get("test_imports") or ()))
        # its setup may use what the solution defines
        tests = "\n".join([str(item.get("test_setup_code") or ""), *_list(item, "test_list", file)])
        prompt = "".join([*shown, _asked(item, file)])
        return Problem(task_id=f"Mbpp/{number}", prompt=prompt, before="", setup=imports, tests=tests)

    return [problem(number, item) for number, item in sorted(by_number.items()) if number in MBPP_TESTED]


def _asked(item: Mapping[str, Any], file: Path) -> str:
    """A task as its authors ask it, up to where the code begins."""
    text = _lines(item, "text" if "text" in item else "prompt", file)
    tests = "\n".join(_list(item, "test_list", file))
    return (
        f"You are an expert Python programmer, and here is your task: {text} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _read_items(file: Path) -> list[Mapping[str, Any]]:
    data = read_file(str(file))
    try:
        whole = json.loads(data) if data.lstrip().startswith(b"[") else [json.loads(x) for x in data.splitlines() if x]
    except ValueError as error:
        raise UsageError(f"{file} is no JSON: {error}") from None
    if not all(isinstance(item, dict) for item in whole):
        raise UsageError(f"{file} must hold JSON objects, one per line or in an array")
    return list(whole)


def _text(item: Mapping[str, Any], name: str, file: Path) -> str:
    if not isinstance(item.get(name), str | int):
        raise UsageError(f"{file}: a task has no {name!r}; it has {', '.join(map(repr, item))}")
    return str(item[name])


def _lines(item: Mapping[str, Any], name: str, file: Path) -> str:
    """Text whose lines end in a line feed alone."""
    return _text(item, name, file).replace("\r\n", "\n")


def _list(item: Mapping[str, Any], name: str, file: Path) -> list[str]:
    found = item.get(name)
    if not isinstance(found, list):
        raise UsageError(f"{file}: a task has no list {name!r}; it has {', '.join(map(repr, item))}")
    return list(map(str, found))

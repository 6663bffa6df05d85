"""HumanEval and MBPP: prompts, programs, pass@k, and `bltcli eval code` from end to end. Tasks here are our own."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bltcli.errors import UsageError
from bltcli.evaluate import code_tasks, jail
from bltcli.evaluate.code_tasks import Problem, read_problems, task_of, write_samples
from bltcli.evaluate.pass_at_k import pass_at_k, run_tests, scores_of
from bltcli.evaluate.sandbox import Limits, Sandbox
from bltcli.records import Record
from tests.cli_support import Done, here, one_line

DOUBLE = {
    "task_id": "Own/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate('a') == 'aa'\n",
}
LAST = {
    "task_id": "Own/1",
    "prompt": "def last(items):\n",
    "entry_point": "last",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 2\n",
}


def mbpp(number: int) -> dict[str, Any]:
    return {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\r\n    return x + {number}",
        "test_setup_code": "y = add(0)",
        "test_list": [f"assert add(1) == {number + 1}", f"assert y == {number}"],
    }


def write_tasks(file: Path, *tasks: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return file


@pytest.fixture
def human_eval(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "HumanEval.jsonl", DOUBLE, LAST)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(Limits(seconds=5, memory_bytes=256 << 20))


# pass@k


@pytest.mark.parametrize(("samples", "passed"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 3), (7, 7)])
def test_pass_at_k_is_the_share_of_choices_that_hold_a_pass(samples: int, passed: int) -> None:
    for k in range(1, samples + 1):
        choices = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
        assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-12)


def test_pass_at_k_is_unbiased_and_the_plain_estimate_is_not() -> None:
    p, n, k, runs = 0.15, 10, 5, 20_000
    passed = np.random.default_rng(0).binomial(n, p, runs)
    truth = 1 - (1 - p) ** k
    ours = np.array([pass_at_k(n, int(c), k) for c in passed])
    bound = 5 * ours.std() / math.sqrt(runs)
    assert abs(ours.mean() - truth) < bound
    assert abs((1 - (1 - passed / n) ** k).mean() - truth) > bound


def test_scores_average_over_problems() -> None:
    outcomes = [{"reason": reason} for reason in ("passed", "wrong", "time", "time")]
    assert scores_of(outcomes, 2, [1, 2]) == {"pass@1": 25.0, "pass@2": 50.0}


# tasks


def test_human_eval_prompts_are_continued_as_they_are(human_eval: Path) -> None:
    problems = read_problems("humaneval", human_eval)
    assert [p.prompt for p in problems] == [DOUBLE["prompt"], LAST["prompt"]]
    assert len(read_problems("humaneval", human_eval, limit=1)) == 1
    solution = problems[0].solution(DOUBLE["canonical_solution"])
    assert solution == DOUBLE["prompt"] + DOUBLE["canonical_solution"]
    for completion, passes in ((DOUBLE["canonical_solution"], True), ("    return x\n", False)):
        try:
            exec(problems[0].program(completion), {})
        except AssertionError:
            assert not passes
        else:
            assert passes


@pytest.mark.parametrize("form", ["lines", "array"])
def test_mbpp_asks_after_three_worked_examples(form: str, tmp_path: Path) -> None:
    tasks = [mbpp(n) for n in (1, 2, 3, 4, 10, 11, 12, 510, 511)]
    file = write_tasks(tmp_path / "mbpp", *tasks)
    if form == "array":  # as the sanitised file is
        for task in tasks:
            task["prompt"], task["test_imports"] = task.pop("text"), ["import math"]
        file.write_text(json.dumps(tasks))
    problems = read_problems("mbpp", file)
    assert [p.task_id for p in problems] == ["Mbpp/11", "Mbpp/12", "Mbpp/510"]
    *shown, asked = problems[0].prompt.split("[DONE]\n")
    for number, example in zip((2, 3, 4), shown, strict=True):
        assert example.endswith(f"[BEGIN]\ndef add(x):\n    return x + {number}\n")
    assert asked == (
        "You are an expert Python programmer, and here is your task: Write a function to add 11. Your code should pass "
        "these tests:\n\nassert add(1) == 12\nassert y == 11\n[BEGIN]\n"
    )
    exec(problems[0].program("def add(x): return x + 11\n"), {})
    with pytest.raises(AssertionError):
        exec(problems[0].program("def add(x): return x + 12\n"), {})
    assert ("import math" in problems[0].program("")) == (form == "array")


@pytest.mark.parametrize(
    ("task", "tasks", "says"),
    [
        ("humaneval", [{**DOUBLE, "test": None}], "no 'test'"),
        ("humaneval", [], "holds no task"),
        ("mbpp", [mbpp(2), mbpp(3), mbpp(11)], "lacks task 4"),
        ("mbpp", [mbpp(2), mbpp(3), mbpp(4), {**mbpp(11), "test_list": "x"}], "no list 'test_list'"),
        ("mbpp", [mbpp(2), mbpp(3), mbpp(4)], "holds no task"),
    ],
)
def test_files_of_another_kind_are_refused(task: str, tasks: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        read_problems(task, write_tasks(tmp_path / "tasks", *tasks))


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_files_that_are_no_tasks_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tasks").write_bytes(content)
    with pytest.raises(UsageError, match="JSON"):
        read_problems("humaneval", tmp_path / "tasks")


def test_samples_are_written_as_other_programs_read_them(human_eval: Path, tmp_path: Path) -> None:
    problems = read_problems("humaneval", human_eval)
    task = task_of("humaneval", problems, samples=2)
    assert [prompt.decode() for prompt in task.prompts] == [DOUBLE["prompt"]] * 2 + [LAST["prompt"]] * 2
    records = [{"id": n, **fact, "output": f"  # {n}é"} for n, fact in enumerate(task.facts)]
    write_samples(tmp_path / "new" / "ar.jsonl", problems, records)
    lines = [json.loads(line) for line in (tmp_path / "new" / "ar.jsonl").read_text().splitlines()]
    assert [line["task_id"] for line in lines] == ["Own/0", "Own/0", "Own/1", "Own/1"]
    assert [line["completion"] for line in lines] == [f"  # {n}é" for n in range(4)]
    assert lines[3]["solution"] == LAST["prompt"] + "  # 3é"


# running


PASSING = "    return 2 * x\n"
COMPLETIONS = {
    PASSING: "passed",
    "    return x\n": "wrong",
    "    while True: pass\n": "time",
    "    import os\n    while True: os.fork()\n": "processes",
    "    return bytearray(10 << 30)\n": "memory",
    "    return open('/usr/probe', 'w')\n": "files",
    "    import socket\n    socket.create_connection(('192.0.2.1', 80))\n": "network",
    "    import os\n    os._exit(0)\n": "exit",
    "    return 2 * y\n": "error",
    "    return x + x\n": "passed",
}


def records_of(problems: list[Problem], completions: list[str]) -> list[Record]:
    return [{"id": n, "task_id": problems[0].task_id, "output": text} for n, text in enumerate(completions)]


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.namespaces
def test_what_goes_wrong_in_one_program_leaves_the_rest_scored(jobs: int, sandbox: Sandbox, human_eval: Path) -> None:
    problems = read_problems("humaneval", human_eval)
    sandbox.limits = Limits(seconds=1.5, memory_bytes=256 << 20)
    told: list[int] = []
    found = run_tests(
        sandbox, problems, {"ar": records_of(problems, list(COMPLETIONS))}, jobs=jobs, advance=told.append
    )
    assert [outcome["reason"] for outcome in found["ar"]] == list(COMPLETIONS.values())
    assert all(bool(outcome["detail"]) == (outcome["reason"] != "passed") for outcome in found["ar"])
    assert told[-1] == len(COMPLETIONS)
    assert scores_of(found["ar"], len(COMPLETIONS), [1]) == {"pass@1": pytest.approx(20)}


class Counting(Sandbox):
    """Runs nothing, passes everything."""

    def __init__(self) -> None:
        self.limits, self.programs = Limits(), 0

    def run(self, program: str) -> Any:
        self.programs += 1
        return type("Passed", (), {"reason": "passed", "detail": ""})


def test_tests_that_were_run_are_not_run_again(human_eval: Path, tmp_path: Path) -> None:
    problems = read_problems("humaneval", human_eval)
    records = {name: records_of(problems, ["a", "b", "c"]) for name in ("ar", "blt-s k=4")}
    first, again = Counting(), Counting()
    found = run_tests(first, problems, records, folder=tmp_path)
    assert first.programs == 6
    lines = (tmp_path / "blt-s_k=4.tests.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "blt-s_k=4.tests.jsonl").write_text("".join(lines[:-1]))
    assert run_tests(again, problems, records, folder=tmp_path) == found
    assert again.programs == 1
    records["ar"][1]["output"] = "other"
    with pytest.raises(UsageError, match="programs_sha256"):
        run_tests(again, problems, records, folder=tmp_path)


def test_a_text_that_was_not_generated_has_not_passed(human_eval: Path) -> None:
    problems = read_problems("humaneval", human_eval)
    sandbox = Counting()
    failed = {"ar": [{"id": 0, "task_id": "Own/0", "error": "the prompt is too long"}]}
    assert run_tests(sandbox, problems, failed)["ar"][0]["reason"] == "error"
    assert sandbox.programs == 0


# the command line


def eval_code(file: Path, *args: str) -> Done:
    return here("eval", "code", "--tasks", "humaneval", "--file", str(file), "--model", "bundle", "-n", "12", *args)


def test_methods_stand_side_by_side_and_nothing_runs_unasked(
    human_eval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a sandbox was opened")

    monkeypatch.setattr(Sandbox, "__init__", never)
    out = ("--samples-folder", str(tmp_path / "samples"), "--format", "json")
    done = eval_code(human_eval, "--run", "ar", "--run", "blt-s k=4", *out)
    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    assert [row["setting"] for row in report["settings"]] == ["ar", "blt-s k=4"]
    assert all(row["scores"] == {} and row["nfe"]["decoder"] > 0 for row in report["settings"])
    assert any("--execute" in note for note in report["notes"])
    files = {file.name: file.read_text() for file in (tmp_path / "samples").iterdir()}
    assert files["ar.jsonl"] == files["blt-s_k=4.jsonl"]
    assert len(files["ar.jsonl"].splitlines()) == 2


@pytest.mark.namespaces
@pytest.mark.usefixtures("sandbox")
def test_sampled_completions_are_run_and_scored(human_eval: Path, tmp_path: Path) -> None:
    sampling = ("--samples", "3", "--temperature", "1", "--pass-at", "1", "--pass-at", "3", "--seconds", "5")
    folder = ("--records", str(tmp_path / "runs"), "--format", "json", "--run", "ar", "--rows", "2")
    done = eval_code(human_eval, *sampling, *folder, "--execute")
    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    assert report["settings"][0]["scores"] == {"pass@1": 0.0, "pass@3": 0.0}  # a random model writes no programs
    assert sum(report["outcomes"]["ar"].values()) == 6
    records = [json.loads(line) for line in (tmp_path / "runs" / "ar.jsonl").read_text().splitlines()[1:]]
    assert [(r["task_id"], r["sample"]) for r in records] == [(f"Own/{t}", s) for t in range(2) for s in range(3)]
    assert len({r["output"] for r in records[:3]}) == 3
    assert eval_code(human_eval, *sampling, *folder, "--execute").stdout == done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--samples", "4"], "--temperature"),
        (["--samples", "4", "--temperature", "1", "--pass-at", "5"], "--pass-at is 5, --samples 4"),
        (["--execute", "--seconds", "0"], "use 0.1 to 3600"),
        (["--execute", "--memory", "1"], "64 MiB"),
    ],
)
def test_what_makes_no_sense_is_refused(args: list[str], says: str, human_eval: Path) -> None:
    done = eval_code(human_eval, *args)
    assert done.returncode == 2
    assert says in one_line(done)


def test_without_a_sandbox_nothing_is_generated_or_run(
    human_eval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blunt = Path(jail.__file__).read_text().replace('call("unshare",', "raise OSError(1, 'not permitted'); (")
    (tmp_path / "jail.py").write_text(blunt)
    monkeypatch.setattr(jail, "__file__", str(tmp_path / "jail.py"))
    done = eval_code(human_eval, "--execute", "--records", str(tmp_path / "runs"))
    assert (done.returncode, done.stdout) == (2, b"")
    assert "no sandbox on this machine" in one_line(done)
    assert not (tmp_path / "runs").exists()


def test_the_names_of_tasks_agree() -> None:
    from bltcli.commands.eval import code
    from bltcli.paper import TASKS

    choices = next(p.type for p in code.command.params if p.name == "tasks")
    assert tuple(getattr(choices, "choices", ())) == code_tasks.TASKS
    assert set(code_tasks.PAPER_TASKS.values()) < set(TASKS)

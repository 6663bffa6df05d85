"""Runs completions against their tests in the sandbox, and says how likely one of k is to pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from math import comb
from pathlib import Path

from bltcli.bundle import Bundle
from bltcli.evaluate.code_tasks import PAPER_TASKS, Problem, completion_of
from bltcli.evaluate.generating import Setting, summarise
from bltcli.evaluate.report import Report, Row, notes_on, paper_row, with_decreases
from bltcli.evaluate.sandbox import Sandbox
from bltcli.records import Record, collect, digest

#: By setting, an outcome of each of its records: id, reason, detail.
Outcomes = Mapping[str, Sequence[Record]]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """How likely one of k samples passes, estimated without bias from `samples` >= k of which `passed` did: the share
    of the ways to choose k of them that hold one that passed (Chen et al., arXiv 2107.03374)."""
    assert 0 <= passed <= samples
    assert 1 <= k <= samples
    return 1 - comb(samples - passed, k) / comb(samples, k)


def run_tests(
    sandbox: Sandbox,
    problems: Sequence[Problem],
    records: Mapping[str, Sequence[Record]],
    *,
    jobs: int = 1,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, list[Record]]:
    """An outcome for each record of each setting, `jobs` at a time; with `folder`, kept in a file per setting there,
    which a later call goes on with. A text that could not be generated has not passed, and nothing is run for it."""
    by_id = {problem.task_id: problem for problem in problems}
    found: dict[str, list[Record]] = {}
    with ThreadPoolExecutor(jobs) as pool:

        def judge(record: Record) -> Record:
            if "error" in record:
                return {"id": record["id"], "reason": "error", "detail": "not generated"}
            outcome = sandbox.run(by_id[record["task_id"]].program(completion_of(record)))
            return {"id": record["id"], "reason": outcome.reason, "detail": outcome.detail}

        def make(group: Sequence[Record]) -> list[Record]:
            return list(pool.map(judge, group))

        for name, own in records.items():
            programs = [by_id[record["task_id"]].program(completion_of(record)).encode() for record in own]
            header = {"task": "tests", "programs_sha256": digest(programs), "limits": asdict(sandbox.limits)}
            path = None if folder is None else folder / f"{name.replace(' ', '_')}.tests.jsonl"
            groups = [own[start : start + jobs] for start in range(0, len(own), jobs)]
            before = sum(map(len, found.values()))

            def done(count: int, before: int = before) -> None:
                advance(before + count)

            found[name] = collect(path, header, groups, make, done)
    return found


def scores_of(outcomes: Sequence[Record], samples: int, ks: Sequence[int]) -> dict[str, float]:
    """pass@k in percent for each k, averaged over problems of `samples` outcomes each."""
    passed = [record["reason"] == "passed" for record in outcomes]
    counts = [sum(passed[start : start + samples]) for start in range(0, len(passed), samples)]
    return {f"pass@{k}": 100 * sum(pass_at_k(samples, c, k) for c in counts) / len(counts) for k in ks}


def make_report(
    bundle: Bundle,
    settings: Sequence[Setting],
    records: Mapping[str, Sequence[Record]],
    outcomes: Outcomes | None,
    *,
    task: str,
    samples: int,
    ks: Sequence[int],
    paper: str | None = None,
) -> Report:
    """Scores (where programs were run) and costs of each setting. `paper` "1B" or "3B" adds the rows of Fast BLT's
    tables where it has them."""
    name, block = PAPER_TASKS[task], bundle.config.block_size
    rows = [
        Row(
            setting=s.name,
            scores={} if outcomes is None else scores_of(outcomes[s.name], samples, ks),
            summary=summarise(records[s.name], bundle.parameters),
            paper=paper_row(paper, name, s.options, block) if paper and outcomes is not None else None,
        )
        for s in settings
    ]
    counts = {s.name: Counter(r["reason"] for r in outcomes[s.name]) for s in settings} if outcomes else {}
    notes = notes_on(settings, records)
    notes += [f"{n}: {', '.join(f'{c} {reason}' for reason, c in found.most_common())}." for n, found in counts.items()]
    if outcomes is None:
        notes.append("No program was run: add --execute for scores.")
    problems = len(next(iter(records.values()))) // samples
    details = {"task": f"code {task}", "samples": samples, "bundle_sha256": bundle.sha256, "outcomes": counts}
    title = f"{name}, {problems} tasks, {samples} each, {bundle.path.name}"
    return Report(title=title, rows=with_decreases(rows), notes=notes, details=details)

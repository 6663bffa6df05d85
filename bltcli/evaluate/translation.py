"""Translation: line-aligned test sets, what counts as an output, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bltcli.errors import UsageError
from bltcli.evaluate.bleu import Score, Scores, score
from bltcli.evaluate.generating import Generator, Setting, Task, output_of, summarise
from bltcli.evaluate.report import Report, Row, baseline_of, notes_on, paper_row, with_decreases
from bltcli.prompts import Pair, Prompts
from bltcli.records import Record
from bltcli.streams import read_file

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

#: The paper's tasks by direction.
PAPER_TASKS: Final = {"fr>en": "FR-EN", "de>en": "DE-EN"}


def read_pairs(source: Path, target: Path, limit: int | None = None) -> list[Pair]:
    """The lines of two files, side by side; the first `limit` of them. UsageError when they do not match up."""
    lines = [_lines(path) for path in (source, target)]
    if len(lines[0]) != len(lines[1]):
        raise UsageError(f"{source} has {len(lines[0])} lines, {target} {len(lines[1])}; they must match line by line")
    if not lines[0]:
        raise UsageError(f"{source} has no lines")
    return [Pair(*pair) for pair in zip(*lines, strict=True)][:limit]


def hypothesis(output: bytes) -> str:
    """An output as the one line that is scored: U+FFFD for what is no UTF-8, spaces for line ends."""
    return " ".join(output.decode(errors="replace").splitlines()).strip()


def task_of(prompts: Prompts, pairs: Sequence[Pair]) -> Task:
    return Task(
        name="mt",
        prompts=[prompts.prompt(pair.source) for pair in pairs],
        facts=[{"source": pair.source, "reference": pair.target} for pair in pairs],
        header={"direction": prompts.direction, "shots": None if prompts.shots is None else len(prompts.shots)},
    )


def make_report(
    generator: Generator,
    settings: Sequence[Setting],
    pairs: Sequence[Pair],
    records: Mapping[str, Sequence[Record]],
    bleu: BLEU,
    *,
    direction: str,
    paper: str | None = None,
) -> Report:
    """Scores and costs of each setting. `paper` "1B" or "3B" adds the rows of Fast BLT's tables where it has them."""
    bundle, base = generator.bundle, baseline_of(settings)
    outputs = {name: [hypothesis(output_of(r)) for r in found] for name, found in records.items()}
    scores = score(bleu, outputs, [pair.target for pair in pairs], base.name)
    rows = [
        Row(
            setting=s.name,
            scores={metric: found.score for metric, found in scores.by_setting[s.name].items()},
            summary=summarise(records[s.name], bundle.parameters),
            paper=paper_row(paper, PAPER_TASKS.get(direction, ""), s.options, bundle.config.block_size)
            if paper
            else None,
        )
        for s in settings
    ]
    notes = notes_on(settings, records) + _score_notes(scores, settings, base.name)
    if paper and direction not in PAPER_TASKS:
        notes.append(f"The paper has no {direction}; it has {', '.join(PAPER_TASKS)}.")
    elif paper:
        notes.append("The paper's rows: FLORES-101, 4 examples shown, flores101 tokens, 512 bytes per text.")
    details = {
        "task": "mt",
        "direction": direction,
        "bundle_sha256": bundle.sha256,
        "signatures": scores.signatures,
        "significance": {name: {m: asdict(x) for m, x in found.items()} for name, found in scores.by_setting.items()},
    }
    title = f"Translation {direction}, {len(pairs)} lines, {bundle.path.name}"
    return Report(title=title, rows=with_decreases(rows), notes=notes, details=details)


def _score_notes(scores: Scores, settings: Sequence[Setting], base: str) -> list[str]:
    """Intervals, p-values and signatures as lines."""

    def told(metric: str, found: Score) -> str:
        against = "" if found.p is None else f" (p = {found.p:.3f} against {base})"
        return f"{metric} {found.mean:.2f} ± {found.interval:.2f}{against}"

    lines = [f"{s.name}: {', '.join(told(*item) for item in scores.by_setting[s.name].items())}" for s in settings]
    return [f"{line}, by paired bootstrap." for line in lines] + [f"{m}: {s}" for m, s in scores.signatures.items()]


def _lines(path: Path) -> list[str]:
    lines = read_file(str(path)).split(b"\n")
    if not lines[-1]:
        lines.pop()
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError:
            raise UsageError(f"{path}: line {number} is no valid UTF-8") from None
    return texts

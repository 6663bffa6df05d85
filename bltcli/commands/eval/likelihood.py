"""`bltcli eval likelihood`: multiple-choice suites through lm-evaluation-harness."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bltcli import render, settings, streams
from bltcli.commands import json_option, options
from bltcli.commands.eval.shared import GeneratorOptions, generator_options, take_generator
from bltcli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bltcli.evaluate.lm_harness import Accuracy

SUITES: Final = ("arc_easy", "arc_challenge", "piqa", "hellaswag", "mmlu")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `eval likelihood`."""

    suite: tuple[str, ...]
    file: tuple[str, ...]
    examples: str | None
    limit: int | None
    generator: GeneratorOptions
    records: str | None
    json: bool
    progress: bool | None


@click.command(
    epilog="""
A file holds JSON lines: a query, choices and gold, or the fields of the suite's authors (HellaSwag also plain text, six
lines an item). Nothing is fetched.

acc takes the likeliest choice, acc_norm the likeliest for its length in bytes; the paper does not say which of them it
prints. Probabilities are the full model's, byte after byte, over all its 260 outputs.

Any other task of the harness, with its own command line:
python -m bltcli.evaluate.lm_harness run --model bltcli --model_args bundle=BUNDLE --tasks TASK

\b
Examples:
  echo '{"query": "Question: What is wet?", "choices": ["water", "sand"], "gold": 0}' > items.jsonl
  bltcli eval likelihood --suite arc_easy --file items.jsonl
  bltcli eval likelihood --suite arc_easy --file items.jsonl --suite piqa --file items.jsonl --json""",
)
@options(
    click.option("--suite", type=click.Choice(SUITES), multiple=True, required=True,
                 help="What a file holds. Repeatable, with a --file each."),
    click.option("--file", metavar="FILE", type=click.Path(), multiple=True, required=True,
                 help="The items of the suite before it."),
    click.option("--examples", metavar="FILE", type=click.Path(), default=None,
                 help="Questions of mmlu: the first five of a subject are shown before each of its items."),
    click.option("--limit", type=click.IntRange(min=1), default=None, metavar="N",
                 help="Take the first N items of each file."),
    generator_options,
    click.option("--records", metavar="FOLDER", type=click.Path(), default=None,
                 help="Keep every score, in a JSONL file per suite. Run again with the same folder, an interrupted "
                      "evaluation goes on."),
    json_option,
    click.option("--progress/--no-progress", default=None,
                 help="Show progress on stderr.  [default: if stderr is a terminal and stdout is not]"),
    settings.verbosity_options,
)  # fmt: skip
def command(**values: Any) -> None:
    """Answer multiple-choice questions by likelihood; accuracy, with the figures of Fast BLT's 3B models below."""
    run(Options(generator=take_generator(values), **values))


def run(o: Options) -> None:
    # everything that can be refused without a model
    if len(o.suite) != len(o.file):
        raise UsageError(f"--suite is there {len(o.suite)} times, --file {len(o.file)}; each suite needs a file")
    for name in o.suite:
        if o.suite.count(name) > 1:
            raise UsageError(f"--suite {name} is there {o.suite.count(name)} times; give each suite once")
    if o.examples is not None and "mmlu" not in o.suite:
        raise UsageError(f"--examples are for mmlu; --suite is {', '.join(o.suite)}")

    from bltcli.evaluate.suites import read_suite

    examples = None if o.examples is None else Path(o.examples)
    items = {
        name: read_suite(name, Path(file), o.limit, examples=examples if name == "mmlu" else None)
        for name, file in zip(o.suite, o.file, strict=True)
    }

    # scores
    os.environ.setdefault("TQDM_DISABLE", "1")  # read on import; the harness draws bars wherever it runs
    from bltcli.evaluate.lm_harness import HarnessModel, run_suite

    generator = o.generator.open()
    found: dict[str, Accuracy] = {}
    for name, own in items.items():
        records = None if o.records is None else Path(o.records) / f"{name}.jsonl"
        with render.progress(sum(len(item.choices) for item in own), o.progress, unit="choices") as advance:
            model = HarnessModel(generator, records=records, advance=advance)
            found[name] = run_suite(model, name, own)

    # report
    if o.json:
        report = {"bundle_sha256": generator.bundle.sha256, "suites": {name: asdict(a) for name, a in found.items()}}
        streams.write_stdout(render.to_json(report))
    else:
        streams.write_stdout(table(generator.bundle.path.name, found).encode())


def table(model: str, found: Mapping[str, Accuracy]) -> str:
    """A column per suite: our accuracies, then the paper's."""
    from bltcli.evaluate.suites import PAPER, SUITES

    def shown(value: float, error: float | None) -> str:
        return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"

    columns = [SUITES[name] for name in found]
    rows = [["", *columns]]
    rows.append([f"{model} acc", *(shown(a.acc, a.acc_error) for a in found.values())])
    rows.append([f"{model} acc_norm", *(shown(a.acc_norm, a.acc_norm_error) for a in found.values())])
    rows += [[f"paper: {name}", *(f"{scores[column]:.2f}" for column in columns)] for name, scores in PAPER.items()]
    rows.append(["items", *(str(a.items) for a in found.values())])
    return render.table(rows)

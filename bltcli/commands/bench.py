"""`bltcli bench`: methods side by side on one input; `bltcli bench compare`: two such reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bltcli import render, settings, streams
from bltcli.commands import engine_option, model_option, options, precision_option
from bltcli.commands.decoding import sampling_options, take_sampler, threads_option
from bltcli.errors import UsageError

if TYPE_CHECKING:
    from bltcli.bench.hugging_face import HuggingFace
    from bltcli.bench.measure import Task
    from bltcli.graphs import Precision
    from bltcli.sampling import Sampler

FORMATS: Final = ("table", "md", "csv", "json", "html")
EXAMPLE: Final = "bltcli bench -p 'Once upon a time' -n 64"
BROKEN: Final = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `bench`."""

    prompt_file: str | None
    prompt: str | None
    run: tuple[str, ...]
    model: str | None
    precision: Precision | None
    engine: str
    threads: int
    max_bytes: int
    sampler: Sampler
    repeats: int
    paper: str
    baseline: str | None
    checkpoint: str | None
    profile: bool
    format: str
    output: str | None
    progress: bool | None


class RunList(click.ParamType[str]):
    """A setting; in the environment several, separated by semicolons."""

    name = "setting"

    def split_envvar_value(self, rv: str) -> list[str]:
        return [part.strip() for part in rv.split(";") if part.strip()]


class PromptFile(click.Argument):
    """An argument that the usage lines of verbs below do not repeat."""

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        return []


class Bench(click.Group):
    """A verb with an argument of its own and verbs below it: what is no such verb is PROMPT_FILE."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        below = bool(args) and args[0] in self.commands
        ctx.allow_interspersed_args = not below
        return super().parse_args(ctx, ["-", *args] if below else args)


@click.group(
    cls=Bench,
    invoke_without_command=True,
    subcommand_metavar="[PROMPT_FILE | compare A B]",
    epilog="""
A setting is a method and its options in one line, as in --run "blt-d block=8 unmask=confidence alpha=0.7". Its keys are
k, block, unmask, alpha, gamma, commit, trust, ngram=yes|no, and engine=NAME, precision=NAME, exact=yes|no. A value with
commas stands for one setting each: --run "blt-s k=4,8,16 engine=ort-cpu,torch". In the environment (BLTCLI_BENCH_RUN)
semicolons separate settings. Without --run: ar, ar exact=no, blt-s with 4, 8 and 16 drafted bytes, auto and, for a
model trained on blocks, blt-d, blt-dv and blt-h.

Settings take turns, so that ratios hold on a machine whose speed varies. Every row says whether its bytes are those of
ar, which runs in any case; a row that is promised to equal ar and does not ends the command with exit code 5. A
PROMPT_FILE that ends in .jsonl holds one {"prompt": TEXT} per line; they are continued one after another.

\b
Examples:
  bltcli bench -p 'Once upon a time' -n 32 --repeats 2
  bltcli bench -p 'Once upon a time' -n 32 --repeats 2 --run 'blt-s k=1,2,4 ngram=yes,no' --format md
  bltcli bench -p 'Once upon a time' -n 64 --run ar --profile""",
)
@click.argument("prompt_file", cls=PromptFile, required=False, type=click.Path())
@options(
    click.option("-p", "--prompt", metavar="TEXT", default=None, help="The prompt itself, instead of a file or stdin."),
    click.option("--run", type=RunList(), multiple=True, metavar="'METHOD KEY=VALUE...'",
                 help="A setting to run; see below. Repeatable."),
    model_option,
    engine_option,
    precision_option,
    threads_option,
    click.option("-n", "--max-bytes", type=int, default=256, show_default=True, metavar="N",
                 help="Bytes to generate at most, per prompt."),
    sampling_options,
    click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True,
                 help="Runs of each setting that are measured, after one that is not."),
    click.option("--paper", metavar="'SIZE TASK'", default="3B FR-EN", show_default=True,
                 help="Table of the Fast BLT paper to set beside: 1B or 3B, FR-EN, DE-EN, HumanEval or MBPP."),
    click.option("--baseline", type=click.Choice(["hf"]), default=None,
                 help="Also run Hugging Face's generate on the same weights (greedy, float32; needs --checkpoint, "
                      "torch and transformers)."),
    click.option("--checkpoint", metavar="DIR", default=None,
                 help="The Hugging Face folder that the bundle was exported from, for --baseline."),
    click.option("--profile", is_flag=True,
                 help="For developers: a table of where the time goes, per graph and outside them."),
    click.option("--format", type=click.Choice(FORMATS), default="table", show_default=True,
                 help="html is one file with plots, and needs bokeh."),
    click.option("-o", "--output", metavar="FILE", default=None, help="Write there instead of to stdout."),
    click.option("--progress/--no-progress", default=None,
                 help="Show progress on stderr.  [default: if stderr is a terminal and stdout is not]"),
    settings.verbosity_options,
)  # fmt: skip
@click.pass_context
def command(ctx: click.Context, /, **values: Any) -> int | None:
    """Run several settings on the prompt in PROMPT_FILE, in -p TEXT, or on stdin ("-"), in turns, and say how fast each
    is, what it read, and whether its bytes are those of plain decoding.

    `bltcli bench compare` sets two such reports side by side."""
    if ctx.invoked_subcommand is not None:
        return None
    return run(Options(sampler=take_sampler(values), **values))


def run(o: Options) -> int:
    from bltcli.bench.measure import Task
    from bltcli.bench.paper import parse_paper
    from bltcli.bench.prompts import read_prompts
    from bltcli.bench.report import broken_promises
    from bltcli.bench.run import open_bundles, run_bench
    from bltcli.bench.settings import default_settings, parse_settings, with_reference
    from bltcli.decoding.stop import Stop

    # options: everything that can be refused without a model
    paper = parse_paper(o.paper)
    chosen = parse_settings(o.run)
    stop = Stop(max_bytes=o.max_bytes)
    check_output(o.output)
    check_drawing(o.format)
    if o.profile and o.format not in ("table", "md"):
        raise UsageError(
            f"--profile is a table, --format is {o.format}; use table or md (json and csv have its figures)"
        )
    data = streams.read_input(o.prompt, o.prompt_file, example=EXAMPLE)
    task = Task(read_prompts(data, o.prompt_file), o.sampler, stop)

    # measure
    bundle_of = open_bundles(o.model, o.precision, render.notice)
    default = bundle_of(None)
    others = [hugging_face(o, default.manifest, task)] if o.baseline else []
    chosen = chosen or default_settings(default.config.block_size)
    total = (len(with_reference(chosen)) + len(others)) * (o.repeats + 1)
    with render.progress(total, o.progress, unit="runs") as advance:
        report = run_bench(
            chosen, bundle_of, task, engine=o.engine, threads=o.threads, repeats=o.repeats, paper=paper, others=others,
            advance=advance,
        )  # fmt: skip

    # render
    emit(o.output, written(report, o.format, profile=o.profile))
    broken = broken_promises(report["rows"])
    if broken:
        streams.complain(f"{'; '.join(broken)}: not the bytes of ar, which were promised; see bltcli verify")
    return BROKEN if broken else 0


def written(report: dict[str, Any], form: str, *, profile: bool = False) -> bytes:
    """The report in one of FORMATS; `profile`: with the table of where the time goes."""
    if form == "json":
        return render.to_json(report)
    if form == "html":
        from bltcli.bench.page import as_html

        return as_html(report).encode()
    from bltcli.bench import formats
    from bltcli.bench.where import time_table

    if form == "csv":
        return formats.as_csv(report).encode()
    make = {"table": formats.as_text, "md": formats.as_markdown}[form]
    return make(report, *([time_table(report)] if profile else [])).encode()


def check_output(file: str | None) -> None:
    if file is not None:
        streams.check_writable(file, "--output")


def check_drawing(form: str) -> None:
    """Refuse before minutes of measuring what cannot be drawn after them."""
    if form == "html":
        from bltcli.bench.page import check_bokeh

        check_bokeh()


def emit(file: str | None, data: bytes) -> None:
    if file is None:
        streams.write_stdout(data)
    else:
        streams.write_whole(file, data)


def hugging_face(o: Options, manifest: dict[str, Any], task: Task) -> HuggingFace:
    if o.checkpoint is None:
        raise UsageError("--baseline hf needs the folder that the bundle was exported from; name it with --checkpoint")
    from bltcli.bench.hugging_face import HuggingFace

    return HuggingFace(Path(o.checkpoint), manifest, task)


@command.command(
    "compare",
    short_help="Compare two reports of bltcli bench --format json.",
    epilog="""\b
Examples:
  bltcli bench -p 'Once' -n 16 --run ar,blt-s --format json -o before.json
  bltcli bench -p 'Once' -n 16 --run ar,blt-s --format json -o after.json
  bltcli bench compare before.json after.json""",
)
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@options(
    click.option("--format", type=click.Choice(["table", "md", "json"]), default="table", show_default=True,
                 help="How to write the comparison."),
    click.option("-o", "--output", metavar="FILE", default=None, help="Write there instead of to stdout."),
    settings.verbosity_options,
)  # fmt: skip
def compare(a: str, b: str, format: str, output: str | None) -> None:
    """Compare the settings that the reports A and B share: ratios of their speeds, and which differ by more than noise.

    Refused where the two did not do the same work on the same bundle."""
    from bltcli.bench.compare import compare_reports, comparison_notes, comparison_table, read_report
    from bltcli.bench.formats import markdown_table

    check_output(output)
    found = compare_reports(read_report(a), read_report(b))
    if format == "json":
        return emit(output, render.to_json(found))
    table = comparison_table(found)
    text = markdown_table(table.head, table.rows) if format == "md" else render.table([table.head, *table.rows])
    emit(output, (text + "\n" + "\n".join(comparison_notes(found)) + "\n").encode())

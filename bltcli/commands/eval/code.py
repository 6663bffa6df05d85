"""`bltcli eval code`: complete programs under several settings and run them against their tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bltcli import render, settings
from bltcli.commands import options
from bltcli.commands.decoding import sampling_options, take_sampler
from bltcli.commands.eval.shared import (
    GeneratorOptions,
    finish,
    generator_options,
    report_options,
    run_option,
    take_generator,
)
from bltcli.errors import UsageError

if TYPE_CHECKING:
    from bltcli.decoding import MethodOptions
    from bltcli.evaluate.sandbox import Sandbox
    from bltcli.sampling import Sampler


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `eval code`."""

    tasks: str
    file: str
    limit: int | None
    run: tuple[MethodOptions, ...]
    max_bytes: int | None
    samples: int
    pass_at: tuple[int, ...]
    samples_folder: str | None
    sampler: Sampler
    execute: bool
    seconds: float
    memory: int
    jobs: int
    generator: GeneratorOptions
    paper: str | None
    records: str | None
    format: str
    progress: bool | None


@click.command(
    epilog="""
The files are those of their authors: HumanEval's prompts are continued as they are, up to the next thing at the left
margin; MBPP's tasks 11 to 510 are asked after tasks 2, 3 and 4 with their solutions.

Nothing that a model wrote is run without --execute. With it, each program runs by itself on Linux, in namespaces of its
own, as a user without rights, without a network, and with limits on time, memory, processes and files. That is proved
on this machine before the first program runs, and where it cannot be, nothing is run. A program could still forge its
own test result.

\b
Examples:
  printf '%s\\n' '{"task_id": "one/1", "prompt": "def one():\\n", "entry_point": "one",
  "test": "def check(f):\\n    assert f() == 1"}' | tr -d '\\n' > tasks.jsonl
  bltcli eval code --tasks humaneval --file tasks.jsonl -n 40
  bltcli eval code --tasks humaneval --file tasks.jsonl -n 40 --run 'blt-s k=4' \\
    --samples 4 --temperature 0.8 --samples-folder samples""",
)
@options(
    click.option("--tasks", type=click.Choice(("humaneval", "mbpp")), required=True, help="What the file holds."),
    click.option("--file", metavar="FILE", required=True, type=click.Path(), help="The tasks, in JSON."),
    click.option("--limit", type=click.IntRange(min=1), default=None, metavar="N", help="Take the first N tasks."),
    run_option("ar", "blt-s k=8"),
    click.option("-n", "--max-bytes", type=int, default=None, metavar="N",
                 help="Bytes per completion at most.  [default: 512 for HumanEval, 256 for MBPP]"),
    click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
                 help="Completions per task; more than one need --temperature."),
    click.option("--pass-at", type=click.IntRange(min=1), multiple=True, default=(1,), metavar="K",
                 help="Say how likely one of K completions passes, estimated from all. Repeatable.  [default: 1]"),
    click.option("--samples-folder", metavar="FOLDER", type=click.Path(), default=None,
                 help="Write the completions here, in a JSONL file per setting that evalplus and human-eval read."),
    sampling_options,
    click.option("--execute", is_flag=True, help="Run the completions against their tests, in a sandbox."),
    click.option("--seconds", type=float, default=10.0, show_default=True, help="Time for each program."),
    click.option("--memory", type=int, default=1024, show_default=True, metavar="MIB",
                 help="Memory for each of a program's at most 4 processes."),
    click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
                 help="Programs to run at a time."),
    click.option("--paper", type=click.Choice(("1B", "3B")), default=None,
                 help="Print the figures of Fast BLT's model of this size below ours; with --execute."),
    generator_options,
    report_options,
    settings.verbosity_options,
)  # fmt: skip
def command(**values: Any) -> int:
    """Complete the programs of HumanEval or MBPP; with --execute, run them and print how many pass their tests."""
    return run(Options(generator=take_generator(values), sampler=take_sampler(values), **values))


def run(o: Options) -> int:
    # everything that can be refused without a model
    from bltcli.decoding.stop import Stop
    from bltcli.evaluate import code_tasks, pass_at_k
    from bltcli.evaluate.generating import run_settings, settings_of
    from bltcli.evaluate.report import unequal_settings

    ks = checked_ks(o)
    stop = Stop(max_bytes=o.max_bytes or code_tasks.MAX_BYTES[o.tasks], strings=code_tasks.STOPS[o.tasks])
    problems = code_tasks.read_problems(o.tasks, Path(o.file), o.limit)
    sandbox = open_sandbox(o) if o.execute else None

    # completions
    generator = o.generator.open()
    chosen = settings_of(o.run, generator.bundle, o.sampler, stop)
    folder = None if o.records is None else Path(o.records)
    task = code_tasks.task_of(o.tasks, problems, o.samples)
    total = len(chosen) * len(task.prompts)
    with render.progress(total, o.progress, unit="texts") as advance:
        records = run_settings(generator, chosen, task, folder, advance)
    if o.samples_folder is not None:
        for name, found in records.items():
            file = Path(o.samples_folder) / f"{name.replace(' ', '_')}.jsonl"
            code_tasks.write_samples(file, problems, found)

    # tests
    outcomes = None
    if sandbox is not None:
        with render.progress(total, o.progress, unit="programs") as advance:
            outcomes = pass_at_k.run_tests(sandbox, problems, records, jobs=o.jobs, folder=folder, advance=advance)

    # report
    report = pass_at_k.make_report(
        generator.bundle, chosen, records, outcomes, task=o.tasks, samples=o.samples, ks=ks, paper=o.paper
    )
    unequal = unequal_settings(chosen, records) if generator.promises_equality else []
    return finish(report, o.format, records, unequal)


def checked_ks(o: Options) -> list[int]:
    if o.samples > 1 and not o.sampler.temperature:
        raise UsageError(f"--samples {o.samples} would be {o.samples} times the same without --temperature")
    for k in o.pass_at:
        if k > o.samples:
            raise UsageError(f"--pass-at is {k}, --samples {o.samples}; it needs at least as many samples")
    return sorted(set(o.pass_at))


def open_sandbox(o: Options) -> Sandbox:
    """Proved, or UsageError."""
    from bltcli.evaluate.sandbox import Limits, Sandbox

    return Sandbox(Limits(seconds=o.seconds, memory_bytes=o.memory << 20))

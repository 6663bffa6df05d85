"""What `translate` and `batch` share: their options, and the way from these to finished items."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from bltcli import render, streams
from bltcli.commands import engine_option, model_option, options, precision_option
from bltcli.commands.decoding import (
    exact_option,
    method_options,
    sampling_options,
    take_method,
    take_sampler,
    threads_option,
)
from bltcli.errors import UsageError

if TYPE_CHECKING:
    from bltcli.batch.metrics import Meter
    from bltcli.batch.ordering import Item, Result, Source
    from bltcli.batch.predictor import Predictor

FAILED = 4

predictor_options = options(
    model_option,
    click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, metavar="N",
                 help="Texts that are decoded together. As one ends, the next takes its place. The output does not "
                      "depend on it."),
    method_options,
    sampling_options,
    exact_option,
    engine_option,
    precision_option,
    threads_option,
)  # fmt: skip
run_options = options(
    click.option("--journal", metavar="FILE", default=None,
                 help="Keep every finished text in this file, so that a run that was interrupted can go on."),
    click.option("--resume", is_flag=True,
                 help="Go on with the --journal of an earlier run, or begin it; the input must be the same, and the "
                      "whole output is written again."),
    click.option("--ray", is_flag=True,
                 help="Run on a Ray cluster: the one that RAY_ADDRESS names, else the processors of this machine. The "
                      "bundle must be in the same folder everywhere."),
    click.option("--ray-actors", type=click.IntRange(min=1), default=None, metavar="N",
                 help="Models to open on the cluster.  [default: one per processor, or per --threads]"),
    click.option("--metrics-file", metavar="FILE", default=None,
                 help="Write counters for Prometheus' textfile collector, every few seconds."),
    click.option("--progress/--no-progress", default=None,
                 help="Show progress and a summary on stderr.  [default: if stderr is a terminal and stdout is not; "
                      "the summary also if records failed]"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The values of `run_options`."""

    journal: str | None
    resume: bool
    ray: bool
    ray_actors: int | None
    metrics_file: str | None
    progress: bool | None

    def check(self, named: Sequence[tuple[str, str]]) -> None:
        """Refuse early what cannot be written, and a file in two roles. `named`: the run's inputs and outputs, each
        with what it is."""
        if self.resume and self.journal is None:
            raise UsageError("--resume needs --journal FILE, the file of the run to go on with")
        own = [("--journal", self.journal), ("--metrics-file", self.metrics_file)]
        given = [(option, file) for option, file in own if file is not None]
        for option, file in given:
            streams.check_writable(file, option)
        roles: dict[str, str] = {}
        for role, name in (*named, *given):
            path = os.path.realpath(name)
            if os.path.isfile(path) or not os.path.exists(path):
                other = roles.setdefault(path, role)
                if other != role:
                    raise UsageError(f"{role} {name} is {other} itself; name another file")


def take_run(values: dict[str, Any]) -> RunOptions:
    """Take the values of `run_options` out of a verb's."""
    return RunOptions(**{field.name: values.pop(field.name) for field in fields(RunOptions)})


def take_predictor(values: dict[str, Any]) -> Predictor:
    """Take the values of `predictor_options` out of a verb's. UsageError for what no method accepts."""
    from bltcli.batch.predictor import Predictor

    method, sampler, rows = take_method(values), take_sampler(values), values.pop("batch_size")
    names = ("model", "precision", "engine", "threads", "exact")
    how = {name: values.pop(name) for name in names}
    return Predictor(**how, method=method, sampler=sampler, rows=rows, notice=render.notice)


@contextmanager
def running(
    o: RunOptions, predictor: Predictor, meter: Meter, *, longest: int, header: Mapping[str, Any], text_on_stdout: bool
) -> Iterator[Callable[[Source], Iterator[Item]]]:
    """Yields a function from a source to its finished items, under the journal, the progress and the metrics asked for.
    `longest`: bytes of the longest text to be expected; `header`: what the output depends on besides the model."""
    from bltcli.batch.journal import Journal
    from bltcli.batch.ordering import AHEAD_BYTES, AHEAD_PER_ROW, Window
    from bltcli.batch.progress import reported
    from bltcli.batch.run import Runner, run_items
    from bltcli.stats import DecodeStats

    facts, stats = {**header, **model_facts(predictor, longest)}, DecodeStats()
    with ExitStack() as stack:
        journal = None
        if o.journal is not None:
            journal = stack.enter_context(Journal(Path(o.journal), facts, resume=o.resume))
        tick = stack.enter_context(
            reported(meter, progress=o.progress, metrics_file=o.metrics_file, text_on_stdout=text_on_stdout)
        )

        runner: Runner = lambda requests: predictor.results(requests, stats)  # noqa: E731
        bounds = AHEAD_PER_ROW * predictor.rows, AHEAD_BYTES
        if o.ray:
            from bltcli.batch import ray

            predictor.close()
            runner, bounds = ray.ray_runner(predictor, o.ray_actors), ray.BOUNDS
        else:
            meter.stats = stats

        def done(result: Result, finished: Sequence[Item]) -> None:
            meter.texts += 1
            meter.new_bytes += len(result.output)
            for item in finished:
                meter.finish(item)
            tick()

        def items(source: Source) -> Iterator[Item]:
            known = None if journal is None else journal.known
            window = Window(source, ahead=bounds[0], ahead_bytes=bounds[1], known=known)
            for item in run_items(window, runner, journal=journal, done=done):
                if not item.ran:
                    meter.finish(item)
                yield item
                meter.resumed = journal.used if journal else 0
                tick()

        yield items


def model_facts(predictor: Predictor, longest: int) -> dict[str, Any]:
    """Open the model, so that whatever is wrong with it is said before any input is read; what of it the output depends
    on."""
    model = predictor.open(longest)[0]
    used = predictor.method.resolved(model)
    used.make(model)
    render.detail(f"{predictor.bundle.path} on {model.engine_name}, {used.method}, {predictor.rows} texts at a time")
    return {
        "bundle_sha256": model.bundle_sha256,
        "engine": model.engine_name,
        "exact": predictor.exact,
        **used.settings(model.block_size),
        "sampling": asdict(predictor.sampler),
    }


def opened_input(file: str, example: str) -> Callable[[], IO[bytes]]:
    """What opens `file` ("-": stdin). UsageError when it cannot be read, or when stdin is a terminal."""
    from bltcli.batch.lines import opener

    if file != "-":
        return opener(Path(file))
    if sys.stdin is None or streams.is_terminal(sys.stdin):
        raise UsageError(f"there is no input; pipe it in, name a file, or try: {example}")
    return lambda: sys.stdin.buffer


def input_hashes(o: RunOptions, files: Sequence[str]) -> list[str] | None:
    """SHA-256 of each input, for the header of the journal, if there is one and the inputs can be read twice. Without
    them the journal compares record by record."""
    from bltcli.bundle import sha256_of

    if o.journal is None or not all(file != "-" and Path(file).is_file() for file in files):
        return None
    return [sha256_of(Path(file)) for file in files]


def input_size(files: Sequence[str]) -> int | None:
    """Bytes of the input ("-": stdin), where all of it are files."""
    try:
        found = [os.fstat(sys.stdin.fileno()) if file == "-" else os.stat(file) for file in files]
    except (OSError, ValueError):
        return None
    return sum(entry.st_size for entry in found) if all(stat.S_ISREG(entry.st_mode) for entry in found) else None

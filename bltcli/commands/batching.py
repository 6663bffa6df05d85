"""What `translate` and `batch` share: their options, and the way from these to finished items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, metavar="N",
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
    click.option("--metrics-file", metavar="FILE", default=None,
                 help="Write counters for Prometheus' textfile collector, every few seconds."),
    click.option("--progress/--no-progress", default=None,
                 help="Show progress on stderr.  [default: if stderr is a terminal and stdout is not]"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The values of `run_options`."""

    journal: str | None
    resume: bool
    metrics_file: str | None
    progress: bool | None

    def check(self) -> None:
        """Refuse early what cannot be written."""
        if self.resume and self.journal is None:
            raise UsageError("--resume needs --journal FILE, the file of the run to go on with")
        for option, file in (("--journal", self.journal), ("--metrics-file", self.metrics_file)):
            if file is not None:
                streams.check_writable(file, option)


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
    from bltcli.batch.progress import reported
    from bltcli.batch.run import run_items
    from bltcli.stats import DecodeStats

    model = predictor.open(longest)  # whatever is wrong with it is said before any input is read
    used = predictor.method.resolved(model)
    used.make(model)
    stats = meter.stats = DecodeStats()
    render.detail(f"{predictor.bundle.path} on {model.engine_name}, {used.method}, {predictor.rows} texts at a time")
    facts = {
        **header,
        "bundle_sha256": model.bundle_sha256,
        "engine": model.engine_name,
        "exact": predictor.exact,
        **used.settings(model.block_size),
        "sampling": asdict(predictor.sampler),
    }
    with ExitStack() as stack:
        journal = None
        if o.journal is not None:
            journal = stack.enter_context(Journal(Path(o.journal), facts, resume=o.resume))
        tick = stack.enter_context(
            reported(meter, progress=o.progress, metrics_file=o.metrics_file, text_on_stdout=text_on_stdout)
        )

        def done(result: Result) -> None:
            meter.texts += 1
            meter.new_bytes += len(result.output)
            tick()

        def items(source: Source) -> Iterator[Item]:
            for item in run_items(
                source, lambda requests: predictor.results(requests, stats), rows=predictor.rows, journal=journal,
                done=done,
            ):  # fmt: skip
                yield item
                tick()
            meter.resumed = journal.used if journal else 0

        yield items

"""`bltcli generate`: continue one prompt."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import click

from bltcli import render, settings, streams
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
    from bltcli.bundle import Bundle
    from bltcli.decoding import MethodOptions
    from bltcli.decoding.driver import Chunk, CountedModel
    from bltcli.graphs import Precision
    from bltcli.pipeline import Pipeline
    from bltcli.sampling import Sampler
    from bltcli.stats import DecodeStats
    from bltcli.trace import Emit, Event

UTF8: Final = ("raw", "replace", "strict")
EXAMPLE: Final = "printf 'Once upon a time' | bltcli generate"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `generate`."""

    prompt_file: str | None
    prompt: str | None
    model: str | None
    precision: Precision | None
    method: MethodOptions
    sampler: Sampler
    max_bytes: int
    stop: tuple[str, ...]
    exact: bool
    engine: str
    threads: int
    echo: bool
    utf8: streams.Utf8 | None
    stats: bool
    stats_json: str | None
    visual: bool
    trace: str | None
    progress: bool | None


@click.command(
    epilog="""
The prompt is read as bytes and continued as bytes: nothing is decoded, no newline is added, removed or translated. A
newline at the end of piped input is part of the prompt.

In --stop, \\n \\t \\r \\0 \\\\ and \\xNN stand for one byte each. In the environment (BLTCLI_GENERATE_STOP) spaces
separate stop strings; write a space as \\x20.

The object of --stats-json says in finish_reason why the text ended: eos, stop, length, context (the model's context is
full), or null when the program was interrupted.

\b
Examples:
  printf 'Once upon a time' | bltcli generate -n 80
  bltcli generate -p 'Once upon a time' --echo --stop '\\n'
  bltcli generate -p 'Once upon a time' --temperature 0.8 --seed 7 --stats
  printf 'Once upon a time' > prompt.txt
  bltcli generate prompt.txt --method ar --stats-json stats.json > out.txt""",
)
@click.argument("prompt_file", required=False, type=click.Path())
@options(
    click.option("-p", "--prompt", metavar="TEXT", default=None, help="The prompt itself, instead of a file or stdin."),
    model_option,
    method_options,
    click.option("-n", "--max-bytes", type=int, default=512, show_default=True, metavar="N",
                 help="Bytes to generate at most."),
    click.option("--stop", multiple=True, metavar="TEXT",
                 help="End before this text; it is not part of the output. Repeatable."),
    sampling_options,
    exact_option,
    engine_option,
    precision_option,
    threads_option,
    click.option("--echo", is_flag=True, help="Write the prompt before its continuation."),
    click.option("--utf8", type=click.Choice(UTF8), default=None,
                 help="raw: write bytes as they are. replace: whole characters, U+FFFD for invalid bytes. strict: "
                      "whole characters, exit 1 at invalid bytes.  [default: replace on a terminal, else raw]"),
    click.option("--stats", is_flag=True, help="Say on stderr what the generation took."),
    click.option("--stats-json", metavar="FILE", default=None, help="Write the same as one JSON object."),
    click.option("--visual", is_flag=True,
                 help="Watch on the terminal how bytes are drafted, denoised, verified and kept; slowed down, and the "
                      "text is written at the end."),
    click.option("--trace", metavar="FILE", default=None,
                 help="Record the same, one JSON object per line; bltcli replay shows it."),
    click.option("--progress/--no-progress", default=None,
                 help="Show progress on stderr.  [default: if stderr is a terminal and stdout is not]"),
    settings.verbosity_options,
)  # fmt: skip
def command(**values: Any) -> None:
    """Continue the text in PROMPT_FILE, in -p TEXT, or on stdin ("-"), and write the continuation to stdout."""
    run(Options(method=take_method(values), sampler=take_sampler(values), **values))


def run(o: Options) -> None:
    # options: everything that can be refused without a model
    from bltcli.decoding.stop import Stop
    from bltcli.stats import DecodeStats

    stop = Stop(max_bytes=o.max_bytes, strings=tuple(map(streams.unescape, o.stop)))
    if o.stats_json is not None:
        streams.check_writable(o.stats_json, "--stats-json")
    if o.trace is not None:
        streams.check_writable(o.trace, "--trace")
    if o.visual and not streams.is_terminal(sys.stderr):
        raise UsageError("--visual draws on stderr, which is no terminal; use --trace FILE and bltcli replay")
    if o.visual and (o.stats or o.stats_json is not None):
        raise UsageError("--visual slows the generation down, so that its statistics say nothing; leave one out")
    prompt = streams.read_input(o.prompt, o.prompt_file, example=EXAMPLE)

    # model
    from bltcli.bundle import open_bundle
    from bltcli.decoding.driver import generate
    from bltcli.decoding.setting import format_setting
    from bltcli.models import resolve_bundle
    from bltcli.pipeline import open_model

    bundle = open_bundle(resolve_bundle(o.model, o.precision, render.notice))
    pipeline = open_model(bundle, engine=o.engine, rows=1, threads=o.threads, exact=o.exact)
    engine, used = pipeline.engine_name, o.method.resolved(pipeline)
    name = format_setting(used) if used == o.method else f"auto: {format_setting(used)}"
    render.detail(f"{bundle.path} ({bundle.precision}) on {engine}, {name}, {len(prompt)} prompt bytes")

    # generation
    stats = DecodeStats()
    with watched(o, pipeline, stats, prompt) as (model, watchers):
        chunks = generate(model, used.make(model), [prompt], sampler=o.sampler, stop=stop, stats=stats)
        if o.visual:
            chunks = drawn_first(chunks, watchers, prompt)
        reason: str | None = None
        try:
            with closing(cast("Generator[Chunk]", chunks)):  # its clocks stop when it is closed
                reason = write(chunks, o, echo=prompt if o.echo else b"")
        except UsageError:
            raise  # the prompt was refused, there is nothing to report
        except BaseException:
            report(o, bundle, engine, used, stats, None)
            raise
    report(o, bundle, engine, used, stats, reason)
    if reason == "context":
        patches = bundle.config.global_model.max_positions
        render.notice(f"stopped at the end of the model's context ({bundle.config.max_bytes} bytes, {patches} patches)")


@contextmanager
def watched(
    o: Options, pipeline: Pipeline, stats: DecodeStats, prompt: bytes
) -> Iterator[tuple[CountedModel, list[Emit]]]:
    """The model, and who is told what it does after the prompt: the file of --trace, and whom else the caller adds."""
    if not o.visual and o.trace is None:
        yield pipeline, []
        return
    from bltcli.trace import TracingModel, begin, to_line
    from bltcli.vocab import encode

    watchers: list[Emit] = []

    def emit(event: Event) -> None:
        if pipeline.ledger.work is stats.decode:
            if event["event"] == "keep":
                event |= {"drafted": stats.drafted, "accepted": stats.accepted}
            for watcher in watchers:
                watcher(event)

    with ExitStack() as stack:
        if o.trace is not None:
            file = stack.enter_context(open(o.trace, "w", encoding="utf-8"))
            file.write(to_line(begin(method=o.method.method, prompt=encode(prompt).tolist())))
            watchers.append(lambda event: file.write(to_line(event)))
        yield TracingModel(pipeline, emit), watchers


def drawn_first(chunks: Iterator[Chunk], watchers: list[Emit], prompt: bytes) -> Iterator[Chunk]:
    """Draw the whole generation on the terminal, then hand the chunks out; also what an interrupt left."""
    from bltcli.visual import screen
    from bltcli.vocab import encode

    held: list[Chunk] = []
    stopped: KeyboardInterrupt | None = None
    with screen(encode(prompt).tolist()) as draw:
        watchers.append(draw)
        try:
            for chunk in chunks:
                held.append(chunk)
        except KeyboardInterrupt as interrupt:
            stopped = interrupt
    yield from held
    if stopped is not None:
        raise stopped


def write(chunks: Iterator[Chunk], o: Options, *, echo: bytes) -> str | None:
    """Write the chunks as they come; why the text ended."""
    out = streams.Stdout(o.utf8 or ("replace" if streams.is_terminal(sys.stdout) else "raw"))
    reason: str | None = None
    done = 0
    with render.progress(o.max_bytes, o.progress) as advance:
        try:
            out.write(echo)
            for chunk in chunks:
                out.write(chunk.data)
                done += len(chunk.data)
                reason = chunk.finish_reason
                advance(done)
            out.finish()
        except KeyboardInterrupt:
            with suppress(Exception):
                out.finish()
            raise
        finally:
            if not out.ends_line and streams.is_terminal(sys.stdout) and streams.is_terminal(sys.stderr):
                sys.stderr.write("\n")  # a terminal's next line; not part of the output
    return reason


def report(
    o: Options, bundle: Bundle, engine: str, used: MethodOptions, stats: DecodeStats, reason: str | None
) -> None:
    """--stats and --stats-json; `used` is what --method auto stands for."""
    if not o.stats and o.stats_json is None:
        return
    from bltcli.bandwidth import paper_gb

    facts = stats.to_dict()
    facts |= {
        "paper_gb": paper_gb(facts["nfe"], bundle.parameters),
        "peak_rss_bytes": render.peak_rss_bytes(),
        "engine": engine,
        "precision": bundle.precision,
        **used.settings(bundle.config.block_size),
        "method": o.method.method,
        "seed": o.sampler.seed,
        "bundle_sha256": bundle.sha256,
        "finish_reason": reason,
    }
    if o.stats_json is not None:
        streams.write_whole(o.stats_json, render.to_json(facts))
    if o.stats:
        sys.stderr.write(render.statistics(facts))
        sys.stderr.flush()

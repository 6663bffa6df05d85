"""`bltcli generate`: continue one prompt."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import click

from bltcli import render, settings, streams
from bltcli.commands import engine_option, model_option, options, precision_option
from bltcli.errors import UsageError

if TYPE_CHECKING:
    from bltcli.bundle import Bundle
    from bltcli.decoding.driver import Chunk
    from bltcli.stats import DecodeStats

METHODS: Final = ("ar", "blt-s", "blt-dv")
UNMASK: Final = ("one-step", "confidence", "entropy", "entropy-max")
UTF8: Final = ("raw", "replace", "strict")
EXAMPLE: Final = "printf 'Once upon a time' | bltcli generate"
MOST_BYTES: Final = 2**62  # what a counter of bytes holds


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `generate`, one field per option."""

    prompt_file: str | None
    prompt: str | None
    model: str | None
    precision: Literal["fp32", "fp16", "bf16"] | None
    method: str
    draft_bytes: int
    block: int | None
    unmask: str
    alpha: float
    gamma: float
    max_bytes: int
    stop: tuple[str, ...]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    ignore_eos: bool
    exact: bool
    engine: str
    threads: int
    echo: bool
    utf8: streams.Utf8 | None
    stats: bool
    stats_json: str | None
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
    click.option("--method", type=click.Choice(METHODS), default="blt-s", show_default=True,
                 help="ar: one byte per pass. blt-s: the model drafts bytes with its small decoder and keeps those "
                      "that the full model confirms; the same bytes in fewer passes. blt-dv: as blt-s, with the "
                      "bytes of a block drafted together; needs a model trained on blocks."),
    click.option("-k", "--draft-bytes", type=int, default=8, show_default=True, metavar="K",
                 help="Bytes drafted per round of blt-s, 1 to 64."),
    click.option("--block", type=int, default=None, metavar="B",
                 help="Bytes drafted per round of blt-dv.  [default: as many as the model was trained with]"),
    click.option("--unmask", type=click.Choice(UNMASK), default="one-step", show_default=True,
                 help="Which bytes of a block are settled per pass. confidence: those likelier than --alpha. entropy: "
                      "the surest, up to --gamma nats together; entropy-max: the last of them not counted."),
    click.option("--alpha", type=float, default=0.3, show_default=True, help="Probability for --unmask confidence."),
    click.option("--gamma", type=float, default=1.5, show_default=True, help="Nats for --unmask entropy."),
    click.option("-n", "--max-bytes", type=int, default=512, show_default=True, metavar="N",
                 help="Bytes to generate at most."),
    click.option("--stop", multiple=True, metavar="TEXT",
                 help="End before this text; it is not part of the output. Repeatable."),
    click.option("--temperature", type=float, default=0.0, show_default=True,
                 help="0 takes the likeliest byte; higher draws more freely."),
    click.option("--top-p", type=float, default=1.0, show_default=True,
                 help="Draw only from the likeliest bytes that hold this share of the probability."),
    click.option("--top-k", type=int, default=0, show_default=True,
                 help="Draw only from this many of the likeliest bytes; 0 for all."),
    click.option("--min-p", type=float, default=0.0, show_default=True,
                 help="Draw only bytes at least this likely, as a share of the likeliest one's probability."),
    click.option("--seed", type=int, default=0, show_default=True,
                 help="The same seed draws the same bytes, under every method."),
    click.option("--ignore-eos", is_flag=True, help="Do not let the model end the text."),
    click.option("--exact/--no-exact", default=True, show_default=True,
                 help="--no-exact skips the padding that makes methods agree to the last bit: faster, and a near tie "
                      "may then come out differently under another method."),
    engine_option,
    precision_option,
    click.option("--threads", type=click.IntRange(min=0), default=0, show_default=True,
                 help="Processor threads; 0 lets the engine choose."),
    click.option("--echo", is_flag=True, help="Write the prompt before its continuation."),
    click.option("--utf8", type=click.Choice(UTF8), default=None,
                 help="raw: write bytes as they are. replace: whole characters, U+FFFD for invalid bytes. strict: "
                      "whole characters, exit 1 at invalid bytes.  [default: replace on a terminal, else raw]"),
    click.option("--stats", is_flag=True, help="Say on stderr what the generation took."),
    click.option("--stats-json", metavar="FILE", default=None, help="Write the same as one JSON object."),
    click.option("--progress/--no-progress", default=None,
                 help="Show progress on stderr.  [default: if stderr is a terminal and stdout is not]"),
    settings.verbosity_options,
)  # fmt: skip
def command(**values: Any) -> None:
    """Continue the text in PROMPT_FILE, in -p TEXT, or on stdin ("-"), and write the continuation to stdout."""
    run(Options(**values))


def run(o: Options) -> None:
    # options: everything that can be refused without a model
    from bltcli.decoding.denoise import make_unmask
    from bltcli.decoding.stop import Stop
    from bltcli.sampling import Sampler
    from bltcli.stats import DecodeStats

    sampler = Sampler(temperature=o.temperature, top_k=o.top_k, top_p=o.top_p, min_p=o.min_p, seed=o.seed,
                      ignore_eos=o.ignore_eos)  # fmt: skip
    stop = Stop(max_bytes=min(o.max_bytes, MOST_BYTES), strings=tuple(map(streams.unescape, o.stop)))
    unmask = make_unmask(o.unmask, o.alpha, o.gamma)
    if o.stats_json is not None:
        streams.check_writable(o.stats_json)
    prompt = streams.read_input(o.prompt, o.prompt_file, example=EXAMPLE)

    # model
    from bltcli.bundle import open_bundle
    from bltcli.decoding import make_method
    from bltcli.decoding.driver import generate
    from bltcli.models import resolve_bundle
    from bltcli.pipeline import open_model

    bundle = open_bundle(resolve_bundle(o.model, o.precision, render.notice))
    model = open_model(bundle, engine=o.engine, rows=1, threads=o.threads, exact=o.exact)
    method = make_method(o.method, model, o.draft_bytes, block=o.block, unmask=unmask)
    render.detail(f"{bundle.path} ({bundle.precision}) on {model.engine_name}, {o.method}, {len(prompt)} prompt bytes")

    # generation
    stats = DecodeStats()
    chunks = generate(model, method, [prompt], sampler=sampler, stop=stop, stats=stats)
    reason: str | None = None
    try:
        with closing(cast("Generator[Chunk]", chunks)):  # its clocks stop when it is closed
            reason = write(chunks, o, echo=prompt if o.echo else b"")
    except UsageError:
        raise  # the prompt was refused, there is nothing to report
    except BaseException:
        report(o, bundle, model.engine_name, stats, None)
        raise
    report(o, bundle, model.engine_name, stats, reason)
    if reason == "context":
        patches = bundle.config.global_model.max_positions
        render.notice(f"stopped at the end of the model's context ({bundle.config.max_bytes} bytes, {patches} patches)")


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


def report(o: Options, bundle: Bundle, engine: str, stats: DecodeStats, reason: str | None) -> None:
    """--stats and --stats-json."""
    if not o.stats and o.stats_json is None:
        return
    from bltcli.bandwidth import paper_gb

    facts = stats.to_dict()
    facts |= {
        "paper_gb": paper_gb(facts["nfe"], bundle.parameters),
        "peak_rss_bytes": render.peak_rss_bytes(),
        "engine": engine,
        "precision": bundle.precision,
        "method": o.method,
        "k": o.draft_bytes if o.method == "blt-s" else None,
        "block": (o.block or bundle.config.block_size) if o.method == "blt-dv" else None,
        "seed": o.seed,
        "bundle_sha256": bundle.sha256,
        "finish_reason": reason,
    }
    if o.stats_json is not None:
        streams.write_whole(o.stats_json, render.to_json(facts))
    if o.stats:
        sys.stderr.write(render.statistics(facts))
        sys.stderr.flush()

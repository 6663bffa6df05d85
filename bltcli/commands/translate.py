"""`bltcli translate`: a line in is a line out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from bltcli import settings, streams
from bltcli.commands import options
from bltcli.commands.batching import (
    FAILED,
    RunOptions,
    input_hashes,
    input_size,
    opened_input,
    predictor_options,
    run_options,
    running,
    take_predictor,
    take_run,
)
from bltcli.errors import UsageError

if TYPE_CHECKING:
    from bltcli.batch.outputs import Sink
    from bltcli.batch.predictor import Predictor
    from bltcli.batch.translate import Translation

EXAMPLE = "printf 'Hello.\\n' | bltcli translate --to fr"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `translate`."""

    files: tuple[str, ...]
    to: str
    from_: str | None
    output: str | None
    max_bytes: int
    split_bytes: int
    on_error: Literal["empty", "copy"]
    utf8: Literal["raw", "replace"]
    jsonl: bool
    predictor: Predictor
    run: RunOptions


@click.command(
    epilog="""
Lines are bytes that a line feed ends. Empty lines and lines of white space stay as they are, so do white space at both
ends of a line, carriage returns before line feeds, and a last line without a line feed. A long line is split at
sentence ends, where there is none at spaces, and put together again. A translation ends where the model ends it, or at
a line feed.

A line whose translation was cut off at --max-bytes is kept as far as it goes; a line that failed is empty, or its
source with --on-error copy. Either is counted, and the exit code is 4.

On ONNX Runtime's CPU with --exact a line's translation depends on nothing but the line, the model and the method (and
when sampling, on the seed): not on the lines around it.

\b
Examples:
  printf 'Hello.\\nThank you.\\n' > in.txt
  bltcli translate --to fr -n 60 < in.txt
  bltcli translate --to fr -n 60 in.txt --jsonl --method ar
  bltcli translate --to fr -n 60 in.txt -o translated --journal run.jsonl --resume && cat translated/in.txt""",
)
@click.argument("files", nargs=-1, type=click.Path())
@options(
    click.option("--to", metavar="LANGUAGE", required=True, help="Language to translate into, such as fr."),
    click.option("--from", metavar="LANGUAGE", default=None,
                 help="Language of the input; needed where the model knows several."),
    click.option("-o", "--output", metavar="DIR", default=None,
                 help="Write a file per input into this folder, under the input's name, once it is whole."),
    click.option("-n", "--max-bytes", type=int, default=512, show_default=True, metavar="N",
                 help="Bytes to generate at most, for each piece of a line."),
    click.option("--split-bytes", type=click.IntRange(min=4), default=400, show_default=True, metavar="N",
                 help="Split lines that are longer."),
    click.option("--on-error", type=click.Choice(("empty", "copy")), default="empty", show_default=True,
                 help="What to write for a line that failed: an empty line, or the source."),
    click.option("--utf8", type=click.Choice(("raw", "replace")), default="replace", show_default=True,
                 help="Bytes of the model that are no valid UTF-8: as they are, or as U+FFFD."),
    click.option("--jsonl", is_flag=True,
                 help="Write an object per line: id, source, output, status (ok, truncated, failed), stats."),
    predictor_options,
    run_options,
    settings.verbosity_options,
)  # fmt: skip
def command(**values: Any) -> int:
    """Translate the lines of FILES, or of stdin, in order: as many lines out as in."""
    from_ = values.pop("from")
    return run(Options(from_=from_, predictor=take_predictor(values), run=take_run(values), **values))


def run(o: Options) -> int:
    # options: everything that can be refused without a model
    from bltcli.batch.lines import opened
    from bltcli.batch.metrics import Meter
    from bltcli.batch.outputs import ToFiles, ToStdout, in_folder
    from bltcli.batch.translate import LineSource, direction, piece_bytes, translation
    from bltcli.decoding.stop import Stop
    from bltcli.prompts import Prompts

    Stop(max_bytes=o.max_bytes)
    files = o.files or ("-",)
    if o.output is not None and "-" in files:
        raise UsageError("-o writes a file per input file; name the files, or leave -o out")
    inputs = [opened_input(file, EXAMPLE) for file in files]
    outputs: list[Path] = []
    if o.output is not None:
        outputs = in_folder(Path(o.output), [Path(file) for file in files], ".jsonl" if o.jsonl else "")
    o.run.check([*(("the input", file) for file in files if file != "-"), *(("-o", str(path)) for path in outputs)])

    # model
    bundle = o.predictor.bundle
    prompts = Prompts(direction(bundle, o.to, o.from_))
    limit = piece_bytes(bundle, prompts, o.split_bytes, o.max_bytes)
    header = {
        "task": "translate", "direction": prompts.direction, "max_bytes": o.max_bytes, "split_bytes": limit,
        "input_sha256": input_hashes(o.run, files),
    }  # fmt: skip
    longest = len(prompts.prompt(b"")) + limit + o.max_bytes

    # translation
    meter = Meter(total_bytes=input_size(files))
    with ExitStack() as stack:
        sink: Sink = ToStdout() if o.output is None else stack.enter_context(ToFiles(outputs, alone=o.run.resume))
        items = stack.enter_context(
            running(o.run, o.predictor, meter, longest=longest, header=header, text_on_stdout=o.output is None)
        )
        lines = stack.enter_context(opened(inputs))
        for item in items(LineSource(lines, prompts, limit=limit, max_bytes=o.max_bytes)):
            done = translation(item, on_error=o.on_error, raw=o.utf8 == "raw")
            if done.error is not None:
                streams.complain(f"{place(files, done)}: {done.error}")
            sink.write(done.source.line.file, rendered(done, o))
            meter.count(item, done.status, len(done.output) + len(done.source.line.end))
        sink.finish()
    return FAILED if meter.failed else 0


def place(files: tuple[str, ...], done: Translation) -> str:
    file = files[done.source.line.file]
    return f"line {done.source.number}" if file == "-" else f"{file}, line {done.source.number}"


def rendered(done: Translation, o: Options) -> bytes:
    """What is written for one line."""
    if not o.jsonl:
        return done.output + done.source.line.end
    from bltcli.batch.jsonl import to_line

    file = {"file": o.files[done.source.line.file]} if len(o.files) > 1 else {}
    return to_line({"id": done.source.number, **file, **done.to_dict()})

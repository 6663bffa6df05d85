"""`bltcli batch`: prompts as records, continuations as records."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from bltcli.batch.outputs import Sink
    from bltcli.batch.predictor import Predictor

EXAMPLE = """printf '{"id": 1, "prompt": "Once"}' | bltcli batch"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `batch`."""

    records: str | None
    output: str | None
    max_bytes: int
    stop: tuple[str, ...]
    predictor: Predictor
    run: RunOptions


@click.command(
    epilog="""
A record is a line of JSON with id, prompt (a text) or prompt_base64 (any bytes), and perhaps max_bytes and stop (a text
or a list of texts). Its answer has the id, text, finish_reason (eos, stop, length, context) and new_bytes, or error.
Where the text is no valid UTF-8, text has U+FFFD and text_base64 the bytes. The noise of sampling is keyed by the id.

A record with custom_id and body is a completion request of OpenAI's batch files: body.prompt, body.max_tokens (bytes)
and body.stop are read, and the answer has the form of OpenAI's output files. A request for what is not done here is
answered by an error.

There is an answer to each record, in the same order; blank lines are left out. If one failed, the exit code is 4.

\b
Examples:
  echo '{"id": "a", "prompt": "Once upon a time"}' > in.jsonl
  echo '{"custom_id": "b", "body": {"prompt": "It was", "max_tokens": 20}}' >> in.jsonl
  bltcli batch in.jsonl -n 40
  bltcli batch in.jsonl -o out.jsonl --journal run.jsonl --resume -n 40 && cat out.jsonl""",
)
@click.argument("records", required=False, type=click.Path())
@options(
    click.option("-o", "--output", metavar="FILE", default=None,
                 help="Write here, once it is whole.  [default: stdout, as answers come]"),
    click.option("-n", "--max-bytes", type=int, default=512, show_default=True, metavar="N",
                 help="Bytes to generate at most, for records that do not say."),
    click.option("--stop", multiple=True, metavar="TEXT",
                 help="End before this text, for records that do not say. Repeatable; escapes as in "
                      "bltcli generate."),
    predictor_options,
    run_options,
    settings.verbosity_options,
)  # fmt: skip
def command(**values: Any) -> int:
    """Continue the prompts in RECORDS, a JSONL file, or on stdin: an answer per record, in order."""
    return run(Options(predictor=take_predictor(values), run=take_run(values), **values))


def run(o: Options) -> int:
    # options: everything that can be refused without a model
    from bltcli.batch.jsonl import RecordSource, answer, to_line
    from bltcli.batch.lines import opened
    from bltcli.batch.metrics import Meter
    from bltcli.batch.outputs import ToFiles, ToStdout
    from bltcli.decoding.stop import Stop

    stop = Stop(max_bytes=o.max_bytes, strings=tuple(map(streams.unescape, o.stop)))
    file = o.records or "-"
    source = opened_input(file, EXAMPLE)
    named = [] if file == "-" else [("the input", file)]
    if o.output is not None:
        streams.check_writable(o.output, "-o")
        named.append(("-o", o.output))
    o.run.check(named)
    header = {
        "task": "batch", "max_bytes": stop.max_bytes, "stop": list(map(repr, stop.strings)),
        "input_sha256": input_hashes(o.run, [file]),
    }  # fmt: skip

    # answers
    meter, longest = Meter(total_bytes=input_size([file])), longest_line(Path(file)) + stop.max_bytes
    with ExitStack() as stack:
        sink: Sink = ToStdout()
        if o.output is not None:
            sink = stack.enter_context(ToFiles([Path(o.output)], alone=o.run.resume))
        items = stack.enter_context(
            running(o.run, o.predictor, meter, longest=longest, header=header, text_on_stdout=o.output is None)
        )
        lines = stack.enter_context(opened([source]))
        for item in items(RecordSource(lines, stop, o.predictor.sampler)):
            record, failed = answer(item)
            if failed:
                error = record["error"]["message"] if isinstance(record["error"], dict) else record["error"]
                streams.complain(f"record {item.number + 1}, {json.dumps(item.content.id)}: {error}")
            data = to_line(record)
            sink.write(0, data)
            meter.count(item, "failed" if failed else "ok", len(data))
        sink.finish()
    return FAILED if meter.failed else 0


def longest_line(file: Path) -> int:
    """Bytes of the longest line, and so of the longest prompt; of a stream that cannot be read twice, a guess."""
    if not file.is_file():
        return 4096
    with file.open("rb") as stream:
        return max(map(len, stream), default=0)

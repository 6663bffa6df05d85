"""`bltcli replay`: watch a generation that was traced."""

from __future__ import annotations

import sys

import click

from bltcli import settings, streams
from bltcli.commands import options
from bltcli.errors import UsageError


@click.command(
    epilog="""
Where stderr is no terminal nothing is drawn.

\b
Examples:
  bltcli generate -p 'Once upon a time' -n 40 --trace trace.jsonl
  bltcli replay trace.jsonl""",
)
@click.argument("trace", type=click.Path())
@options(
    click.option("--frame", type=click.FloatRange(min=0), default=0.06, show_default=True, metavar="SECONDS",
                 help="How long each event is shown."),
    settings.verbosity_options,
)  # fmt: skip
def command(trace: str, frame: float) -> None:
    """Show on the terminal (on stderr) what `bltcli generate --trace` recorded, and write the bytes that had been run
    through the model by its end to stdout."""
    from bltcli.trace import read_trace
    from bltcli.visual import Picture, screen
    from bltcli.vocab import decode

    events = list(read_trace(streams.read_file(trace), trace))
    if not events:
        raise UsageError(f"{trace} holds no trace; make one with bltcli generate --trace")
    prompt = events[0]["prompt"]
    picture = Picture(prompt)
    if streams.is_terminal(sys.stderr):
        with screen(prompt, frame_s=frame) as draw:
            for event in events[1:]:
                draw(event)
    for event in events[1:]:
        if event.get("row", 0) == 0:
            picture.follow(event)
    streams.write_stdout(decode(picture.text[len(prompt) :]))

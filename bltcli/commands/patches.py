"""`bltcli patches`: how the patcher splits a text."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from bltcli import render, settings, streams
from bltcli.commands import engine_option, json_option, model_option, options, precision_option

EXAMPLE: Final = "printf 'Once upon a time' | bltcli patches"

Patches = list[tuple[bytes, list[float]]]


@click.command(
    epilog="""
In a pipe the text comes out unchanged except that | stands between patches, and that | and backslash in the text have
a backslash before them. On a terminal patches are coloured, from blue (the model was sure where the text goes on) to
red (it was not); the colour is that of the patch's first byte.

\b
Examples:
  printf 'Once upon a time' | bltcli patches
  printf 'Once upon a time' | bltcli patches --json""",
)
@click.argument("file", required=False, type=click.Path())
@options(model_option, precision_option, engine_option, json_option, settings.verbosity_options)
def command(file: str | None, model: str | None, precision: str | None, engine: str, json: bool) -> None:
    """Show where the model's patches begin in the text of FILE or stdin ("-"), and how unsure it was of each byte.

    A byte's entropy, in nats, says how hard it was to guess from the bytes before it; a hard byte begins a patch.
    """
    data = streams.read_input(None, file, example=EXAMPLE)
    from bltcli.bundle import open_bundle
    from bltcli.models import resolve_bundle
    from bltcli.pipeline import patch_text

    bundle = open_bundle(resolve_bundle(model, precision, render.notice))
    patches: Patches = patch_text(bundle, data, engine=engine)
    if json:
        facts = describe(patches, bundle.config.patcher.threshold_nats)
        streams.write_stdout(render.to_json(facts))
    elif streams.is_terminal(sys.stdout):
        show(patches)
    else:
        streams.write_stdout(b"|".join(escape(patch) for patch, _ in patches))
    if patches:
        render.detail(f"{len(patches)} patches of {len(data) / len(patches):.2f} bytes")


def escape(patch: bytes) -> bytes:
    """Undone by removing bare | and then the backslash of every pair."""
    return patch.replace(b"\\", b"\\\\").replace(b"|", b"\\|")


def describe(patches: Patches, threshold_nats: float) -> dict[str, Any]:
    """The --json object; `hex` holds the bytes, `text` shows them."""
    rows, start = [], 0
    for patch, entropies in patches:
        rows.append({"start": start, "bytes": len(patch), "hex": patch.hex(), "text": patch.decode(errors="replace"),
                     "entropies_nats": entropies})  # fmt: skip
        start += len(patch)
    return {"bytes": start, "patches": rows, "threshold_nats": threshold_nats}


def show(patches: Patches) -> None:
    """Write patches to a terminal, each on a background that shows its first byte's entropy; without colours, with |
    between them. A character that is split between patches shows with its last byte."""
    import codecs

    from rich.console import Console
    from rich.text import Text

    characters = codecs.getincrementaldecoder("utf-8")("replace")
    between = "" if render.colours(sys.stdout) else "|"
    highest = max((e for _, entropies in patches for e in entropies), default=0.0) or 1.0
    text = Text()
    for patch, entropies in patches:
        heat = entropies[0] / highest
        text.append(between if text else "")
        text.append(characters.decode(patch), style=f"white on rgb({int(200 * heat)},40,{int(200 * (1 - heat))})")
    text.append(characters.decode(b"", final=True))
    Console(highlight=False, soft_wrap=True).print(text)

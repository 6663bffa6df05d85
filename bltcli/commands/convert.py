"""`bltcli convert`: any readable checkpoint becomes one in bltcli's own format."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bltcli import render, settings
from bltcli.commands import options
from bltcli.errors import ModelError, UsageError

if TYPE_CHECKING:
    from bltcli.checkpoint import Checkpoint


@click.command(
    epilog="""
A pickle (.pth, .pt, .bin) can run code when it is loaded. With --allow-pickle it is read in a process of its own, by
an unpickler that accepts tensors only; use it for files you trust all the same. It needs PyTorch.

\b
Examples:
  bltcli convert itazap/blt-1b-hf -o blt-1b
  bltcli convert facebook-blt/blt_1b -o blt-1b --allow-pickle""",
)
@click.argument("checkpoint")
@options(
    click.option("-o", "--output", metavar="DIR", default=None, help="Folder to write; it must be new or empty."),
    click.option("--allow-pickle", is_flag=True, help="Also read weights that are only there as a pickle."),
    settings.verbosity_options,
)
def command(checkpoint: str, output: str | None, allow_pickle: bool) -> None:
    """Write CHECKPOINT in bltcli's own format: config.json and model.safetensors.

    CHECKPOINT is a folder in bltcli's, Hugging Face's or Meta's format, or a name on the Hugging Face Hub, owner/model
    or owner/model@revision, which is downloaded.
    """
    if output is None:
        raise UsageError("there is no folder to write to; name one with -o DIR")
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not empty; choose another folder")
    from bltcli.checkpoint import open_checkpoint
    from bltcli.checkpoint.hub import fetch, is_hub_name

    source = fetch(checkpoint) if is_hub_name(checkpoint) else Path(checkpoint)
    if allow_pickle and source.is_dir():
        from bltcli.checkpoint.pickles import open_unpickled

        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            _write(open_unpickled(source, Path(scratch)), target)
    else:
        _write(open_checkpoint(source), target)
    render.notice(f"wrote {target}")


def _write(checkpoint: Checkpoint, target: Path) -> None:
    from bltcli.checkpoint import write_checkpoint

    try:
        write_checkpoint(
            target, checkpoint.config, checkpoint.weights, licence=checkpoint.licence, metadata=checkpoint.metadata
        )
    except OSError as error:
        raise ModelError(f"{target}: cannot be written: {error.strerror or error}") from error

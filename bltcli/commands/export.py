"""`bltcli export`: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bltcli import render, settings, streams
from bltcli.commands import PRECISIONS, options
from bltcli.errors import UsageError

if TYPE_CHECKING:
    from bltcli.checkpoint import Checkpoint
    from bltcli.graphs import Precision


@click.command(
    epilog="""
The graphs are compared with the PyTorch model before the bundle appears under its name; a difference is an error. A
bundle that is already there is replaced, any other folder is not.

\b
Examples:
  bltcli export --dry-run
  bltcli export --precision fp32 -o bundle
  bltcli generate --model bundle -p 'Once upon a time' -n 40""",
)
@click.argument("checkpoint", required=False)
@options(
    click.option("-o", "--output", metavar="DIR", default=None, help="Folder to write."),
    click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
                 help="Number format of the graphs. int8 and int4: of their weights alone, in blocks of 128 with a "
                      "scale each. The patcher is always fp32."),
    click.option("--check/--no-check", default=True, show_default=True,
                 help="Compare the graphs with the PyTorch model."),
    click.option("--engine", type=click.Choice(["tensorrt"]), default=None,
                 help="Also build the bundle's engines, as bltcli build does with its defaults."),
    click.option("--dry-run", is_flag=True,
                 help="Print the sizes of files and of memory at every precision, and write nothing. The config.json "
                      "of a checkpoint is enough for it."),
    click.option("--context", type=click.IntRange(min=1), default=4096, show_default=True, metavar="BYTES",
                 help="Length of the text whose memory --dry-run tells."),
    settings.verbosity_options,
)  # fmt: skip
def command(
    checkpoint: str | None, output: str | None, precision: Precision, check: bool, engine: str | None, dry_run: bool,
    context: int,
) -> None:  # fmt: skip
    """Export CHECKPOINT to four ONNX graphs and a manifest: a bundle.

    CHECKPOINT is a folder or a name on the Hugging Face Hub, owner/model or owner/model@revision, which is downloaded.
    Without it, the model that comes with bltcli is exported.
    """
    if output is None and not dry_run:
        raise UsageError("there is no folder to write to; name one with -o DIR, or use --dry-run")
    if dry_run:
        from bltcli_export.plan import plan, tables_of

        shapes = open_source(checkpoint, weights=False)
        context = min(context, shapes.config.max_bytes)
        found = tables_of(plan(shapes, context), context)
        streams.write_stdout("\n".join(map(render.table, found)).encode())
        return
    from bltcli_export import exporter

    source = open_source(checkpoint)
    if engine:
        from bltcli_engines.tensorrt_build import find_library

        find_library()  # before the work, not after it
    assert output is not None
    path = exporter.export_checkpoint(source, Path(output), precision=precision, check=check, notice=render.notice)
    render.notice(f"wrote {path}")
    if engine:
        from bltcli.building import make_profile
        from bltcli.bundle import open_bundle
        from bltcli.commands.build import build

        bundle = open_bundle(path)
        build(bundle, make_profile(bundle.config))


def open_source(name: str | None, *, weights: bool = True) -> Checkpoint:
    """The checkpoint that a user means: a folder, a Hub name, or (None) the built-in one. Without `weights`, only what
    they look like: they need not be there, and are not downloaded."""
    from bltcli.checkpoint import open_checkpoint
    from bltcli.checkpoint.hub import fetch, is_hub_name
    from bltcli.checkpoint.opening import open_shapes
    from bltcli.models import builtin_checkpoint

    if name is None:
        return open_checkpoint(builtin_checkpoint())
    if is_hub_name(name):
        return open_checkpoint(fetch(name)) if weights else open_shapes(fetch(name, ("config.json",)))
    return open_checkpoint(Path(name)) if weights else open_shapes(Path(name))

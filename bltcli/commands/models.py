"""`bltcli models`: the built-in model, and what was exported from it."""

from __future__ import annotations

from pathlib import Path

import click

from bltcli import render, settings, streams
from bltcli.commands import json_option, model_option, options, precision_option
from bltcli.errors import ModelError


@click.group(
    epilog="""\b
Examples:
  bltcli models list
  bltcli models path
  bltcli models verify""",
)
def command() -> None:
    """List, locate and check the built-in model and the bundles made from it.

    The built-in model is exported into the cache folder the first time it is used. The cache folder may be deleted at
    any time.
    """


@command.command(
    name="list",
    short_help="List the built-in model and cached bundles.",
    epilog="\b\nExample:\n  bltcli models list --json",
)
@options(json_option, settings.verbosity_options)
def list_(json: bool) -> None:
    """List the built-in model and the bundles in the cache folder."""
    from bltcli.models import builtin_checkpoint, cached_bundles

    paths = [("built-in", builtin_checkpoint()), *(("cached", path) for path in cached_bundles())]
    rows = [(kind, folder_bytes(path), str(path)) for kind, path in paths]
    if json:
        text = render.to_json([{"kind": kind, "bytes": count, "path": path} for kind, count, path in rows])
    else:
        text = render.table([(kind, render.size(count), path) for kind, count, path in rows]).encode()
    streams.write_stdout(text)


@command.command(
    short_help="Print the folder of the bundle that generate uses.",
    epilog='\b\nExample:\n  bltcli inspect "$(bltcli models path)"',
)
@options(model_option, precision_option, settings.verbosity_options)
def path(model: str | None, precision: str | None) -> None:
    """Print the folder of the bundle that generate uses, exporting the built-in model first if need be."""
    from bltcli.models import cache_dir, resolve_bundle

    bundle = resolve_bundle(model, precision, render.notice)
    if model is None and not bundle.is_relative_to(cache_dir()):
        raise ModelError(f"the cache folder {cache_dir()} cannot be written, so no bundle is kept")
    streams.write_stdout(f"{bundle}\n".encode())


@command.command(short_help="Check bundles against their hashes.", epilog="\b\nExample:\n  bltcli models verify")
@click.argument("bundles", nargs=-1, type=click.Path(), metavar="[BUNDLE]...")
@options(settings.verbosity_options)
def verify(bundles: tuple[str, ...]) -> int:
    """Check every file of the BUNDLEs against its hash; without any, of all bundles in the cache folder."""
    from bltcli.bundle import open_bundle
    from bltcli.models import cached_bundles

    failed = 0
    for folder in map(Path, bundles) if bundles else cached_bundles():
        try:
            open_bundle(folder).verify_files()
            streams.write_stdout(f"ok  {folder}\n".encode())
        except ModelError as error:
            streams.complain(str(error))
            failed += 1
    return 3 if failed else 0


def folder_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())

"""`bltcli build`: TensorRT engines of a bundle."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from bltcli import render, settings, streams
from bltcli.commands import model_option, options, precision_option

if TYPE_CHECKING:
    from bltcli.bundle import Bundle
    from bltcli_engines.tensorrt_build import Profile


@click.command(
    epilog="""
Engines are kept in the cache folder: an engine is executable code, so none is ever taken from a bundle. TensorRT-RTX
builds them ahead of time, for any GPU that it supports, and needs none; TensorRT builds for the GPU of this machine.
Run them with --engine tensorrt.

\b
Examples:
  bltcli build
  bltcli build --draft-bytes 16 --max-bytes 4096
  bltcli build --precision fp16 --max-batch 8""",
)
@options(
    model_option,
    precision_option,
    click.option("--max-batch", type=click.IntRange(min=1), default=1, show_default=True, help="Texts at a time."),
    click.option("-n", "--max-bytes", type=int, default=None,
                 help="Longest text, prompt included.  [default: the model's context]"),
    click.option("-k", "--draft-bytes", type=int, default=16, show_default=True,
                 help="Longest draft or block that verification must take in one pass."),
    click.option("--fresh", is_flag=True, help="Build all engines anew."),
    settings.verbosity_options,
)  # fmt: skip
def command(
    model: str | None, precision: Any, max_batch: int, max_bytes: int | None, draft_bytes: int, fresh: bool
) -> None:
    """Build a TensorRT engine for each graph of a bundle; engines that are there and still good are kept."""
    from bltcli.building import make_profile
    from bltcli.bundle import open_bundle
    from bltcli.models import resolve_bundle

    bundle = open_bundle(resolve_bundle(model, precision, render.notice))
    profile = make_profile(bundle.config, max_batch=max_batch, max_bytes=max_bytes, draft_bytes=draft_bytes)
    build(bundle, profile, fresh=fresh)


def build(bundle: Bundle, profile: Profile, *, fresh: bool = False) -> None:
    """Build what is missing, and print what became of each graph."""
    from bltcli.building import build_bundle

    with building_bar() as progress:
        for built in build_bundle(bundle, profile, fresh=fresh, progress=progress):
            if built.reasons:
                reasons = "; ".join(built.reasons)
                line = f"{built.graph}: built, {render.size(built.bytes)} in {built.seconds:.1f} s ({reasons})"
            else:
                line = f"{built.graph}: kept"
            streams.write_stdout(f"{line}\n".encode())


@contextmanager
def building_bar() -> Iterator[Callable[..., None] | None]:
    """TensorRT's own progress as a bar on a terminal; None elsewhere."""
    if not streams.is_terminal(sys.stderr) or settings.verbosity() < 0:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("{task.fields[graph]}: {task.description}"), BarColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", graph="")

        def show(graph: str, phase: str, done: int, total: int) -> None:
            bar.update(task, graph=graph, description=phase, completed=done, total=total or None)

        yield show

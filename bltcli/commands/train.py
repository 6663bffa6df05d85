"""`bltcli train`: a recipe to a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

import click

from bltcli import render, settings
from bltcli.commands import options
from bltcli.errors import UsageError


@click.command(
    epilog="""
A run may be stopped at any time: it keeps its state in --out, and --resume goes on from the last saved step with the
very losses of a run that was never stopped.

\b
Examples:
  bltcli train examples/train-builtin.toml --data corpora --out runs/builtin
  bltcli train examples/train-builtin.toml --data corpora --out runs/builtin --resume
  bltcli train examples/train-builtin-blocks.toml --data corpora --init runs/translation/checkpoint --out runs/blocks
""",
)
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options(
    click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/train"),
                 show_default=True, help="Folder for the run's state, log.jsonl and checkpoint/."),
    click.option("--data", envvar="BLTCLI_DATA", type=click.Path(exists=True, file_okay=False, path_type=Path),
                 help="Root of the recipe's files (else data.root of the recipe). [env: BLTCLI_DATA]"),
    click.option("--init", type=click.Path(exists=True, file_okay=False, path_type=Path),
                 help="Begin the second phase from this checkpoint, with its entropy model and threshold; the first "
                      "phase is left out."),
    click.option("--resume/--fresh", default=None, help="Go on with the run in --out, or discard it."),
    click.option("--steps", type=click.IntRange(min=1), help="Steps of the second phase, in place of the recipe's."),
    click.option("--minutes", type=click.FloatRange(min=0, min_open=True),
                 help="Stop after the step that ends past this time, saved; go on with --resume."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                 help="Where to train; auto: on a GPU if PyTorch finds one. torchrun starts it on several."),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads."),
    settings.verbosity_options,
)  # fmt: skip
def command(
    config: Path,
    out: Path,
    data: Path | None,
    init: Path | None,
    resume: bool | None,
    steps: int | None,
    minutes: float | None,
    device: str,
    threads: int | None,
) -> None:
    """Train a model from the recipe CONFIG (TOML): first the entropy model, then the rest with it frozen.

    The checkpoint, in bltcli's own format, is in the folder checkpoint of --out.
    """
    started = time.monotonic()
    import torch

    from bltcli.train.config import load_config
    from bltcli.train.recipe import discard, train
    from bltcli.train.world import join_world

    recipe = load_config(config)
    if steps is not None:
        recipe = dataclasses.replace(recipe, blt=dataclasses.replace(recipe.blt, steps=steps))
    root = data or (Path(recipe.data.root) if recipe.data.root else None)
    if root is None:
        raise UsageError("no data root; set --data, BLTCLI_DATA or data.root in the recipe")
    if threads is not None:
        torch.set_num_threads(threads)
    with join_world(device) as world:
        if resume is False and world.first:
            discard(out)
        world.wait()
        show = render.notice if world.first else _silent
        until = started + 60 * minutes if minutes is not None else math.inf
        figures = train(recipe, root, out, resume=bool(resume), show=show, init=init, world=world, until=until)
    if world.first:
        render.notice("stopped and saved; go on with --resume" if figures is None else json.dumps(figures, indent=2))


def _silent(line: str) -> None:
    """What all processes but the first show."""

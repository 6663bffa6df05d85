"""`bltcli train`: a recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="train")
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/train"), show_default=True,
              help="Folder for states, log.jsonl and checkpoint/.")  # fmt: skip
@click.option("--data", envvar="BLTCLI_DATA", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Root of the recipe's files (else data.root of the recipe). [env: BLTCLI_DATA]")  # fmt: skip
@click.option("--resume/--fresh", default=None, help="Go on with the run in --out, or discard it.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the second phase, in place of the recipe's.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
def command(
    config: Path, out: Path, data: Path | None, resume: bool | None, steps: int | None, threads: int | None
) -> None:
    """Train a model from the recipe CONFIG (TOML): the entropy model first, then the rest with it frozen."""
    import dataclasses

    import torch

    from bltcli.errors import UsageError
    from bltcli.train.config import load_config
    from bltcli.train.recipe import train

    recipe = load_config(config)
    if steps is not None:
        recipe = dataclasses.replace(recipe, blt=dataclasses.replace(recipe.blt, steps=steps))
    root = data or (Path(recipe.data.root) if recipe.data.root else None)
    if root is None:
        raise UsageError("no data root; set --data, BLTCLI_DATA or data.root in the recipe")
    if threads is not None:
        torch.set_num_threads(threads)
    if resume is False:
        for state in ("patcher.pt", "blt.pt", "log.jsonl"):
            (out / state).unlink(missing_ok=True)
    train(recipe, root, out, resume=bool(resume), show=lambda line: click.echo(line, err=True))

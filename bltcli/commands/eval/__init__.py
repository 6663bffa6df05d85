"""`bltcli eval`: the evaluations, one file each in this folder."""

from __future__ import annotations

from pathlib import Path

import click

from bltcli.cli import LazyGroup

EVALUATIONS = {
    "mt": "Translate a test set and score the translations.",
    "diversity": "Weigh how varied free text is against its decoder passes.",
    "code": "Write programs and count those that pass their tests.",
    "likelihood": "Score texts and choices by their likelihood.",
}


class EvalGroup(LazyGroup):
    verbs = {name: line for name, line in EVALUATIONS.items() if Path(__file__).with_name(f"{name}.py").exists()}  # noqa: RUF012
    package = "bltcli.commands.eval"


@click.group(
    cls=EvalGroup,
    no_args_is_help=True,
    epilog="""\b
Examples:
  bltcli eval --help""",
)
def command() -> None:
    """Score a model on a task, under one or several decoding methods."""

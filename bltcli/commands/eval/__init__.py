"""`bltcli eval`: the evaluations, one file each in this folder."""

from __future__ import annotations

import click

from bltcli.cli import LazyGroup

EVALUATIONS = {
    "mt": "Translate a test set and score the translations.",
    "diversity": "Weigh how varied free text is against its decoder passes.",
    "code": "Write programs and count those that pass their tests.",
    "likelihood": "Score texts and choices by their likelihood.",
}


class EvalGroup(LazyGroup):
    verbs = EVALUATIONS
    package = "bltcli.commands.eval"


@click.group(
    cls=EvalGroup,
    no_args_is_help=True,
    epilog="""\b
Examples:
  printf 'Bonjour.\\n' > in.fr; printf 'Hello.\\n' > in.en
  bltcli eval mt --source in.fr --reference in.en --direction 'fr>en' --tokenize 13a -n 40
  bltcli eval diversity --run ar --samples 2 -n 60 --top-p 0.9""",
)
def command() -> None:
    """Score a model on a task, under one or several decoding methods."""

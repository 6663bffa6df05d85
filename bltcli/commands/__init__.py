"""One file per verb: options -> config -> one library call -> render. Each module's click object is named `command`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8", "int4")
ENGINES: Final = ("auto", "ort-cpu", "ort-cuda", "tensorrt", "torch")

model_option = click.option(
    "-m", "--model", metavar="BUNDLE", default=None,
    help="Folder of a bundle (see bltcli export). Without it, or as 'builtin', the model that comes with bltcli.",
)  # fmt: skip
precision_option = click.option(
    "--precision", type=click.Choice(PRECISIONS), default=None,
    help="Number format of the built-in model. A bundle has the one that it was exported in.",
)  # fmt: skip
engine_option = click.option(
    "--engine", type=click.Choice(ENGINES), default="auto", show_default=True,
    help="What runs the graphs; see docs/gpu.md. auto: the first of tensorrt (after bltcli build), ort-cuda and "
         "ort-cpu that works here. torch is slow, for reference.",
)  # fmt: skip
json_option = click.option("--json", is_flag=True, help="Print JSON.")


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Apply click options in the order in which --help shows them."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply

"""`bltcli eval diversity`: free text under several settings, how varied it is, and what it took."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click

from bltcli import render, settings
from bltcli.commands import options
from bltcli.commands.eval.shared import finish, generator_options, report_options, run_option, take_generator

#: The grid of Fast BLT: entropy bounds in nats, and shares of probability that bytes are drawn from.
GAMMAS = (0.5, 0.8, 1.0, 1.2)
TOP_PS = (0.8, 0.9, 0.95, 1.0)


@click.command(
    epilog="""
By default the grid of Fast BLT: blt-d with --unmask entropy at four gammas, and ar, each at four values of --top-p. It
needs a bundle trained on blocks. Samples do not end before they have all their bytes, as the ratio falls with length.

\b
Examples:
  bltcli eval diversity --run ar --samples 2 -n 60 --top-p 0.9
  bltcli eval diversity --run ar --run 'blt-s k=4' --samples 2 -n 60 --top-p 0.8 --top-p 1.0 --format csv""",
)
@options(
    run_option("ar", *(f"blt-d unmask=entropy gamma={gamma}" for gamma in GAMMAS)),
    click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True, metavar="N",
                 help="Texts per setting."),
    click.option("-n", "--max-bytes", type=int, default=1000, show_default=True, metavar="N", help="Bytes per text."),
    click.option("--top-p", type=float, multiple=True, default=TOP_PS, show_default=True,
                 help="Draw only from the likeliest bytes that hold this share of the probability. Repeatable."),
    click.option("--temperature", type=float, default=1.0, show_default=True, help="Higher draws more freely."),
    click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same bytes."),
    generator_options,
    report_options,
    settings.verbosity_options,
)  # fmt: skip
def command(**values: Any) -> int:
    """Write texts from an empty prompt and print their word type-token ratio beside the decoder passes."""
    from bltcli.evaluate import diversity
    from bltcli.evaluate.generating import run_settings
    from bltcli.evaluate.report import unequal_settings

    generator = take_generator(values).open()
    chosen = diversity.grid(
        generator, values["run"], values["top_p"], sample_bytes=values["max_bytes"],
        temperature=values["temperature"], seed=values["seed"],
    )  # fmt: skip
    every = list(itertools.chain(*chosen))
    folder = None if values["records"] is None else Path(values["records"])
    with render.progress(len(every) * values["samples"], values["progress"], unit="texts") as advance:
        records = run_settings(generator, every, diversity.task_of(values["samples"]), folder, advance)
    broken = [unequal_settings(together, records) for together in chosen] if generator.promises_equality else []
    report = diversity.make_report(generator, chosen, records)
    return finish(report, values["format"], records, list(itertools.chain(*broken)))

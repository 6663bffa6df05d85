"""`bltcli eval mt`: translate a test set under one or several settings and score it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bltcli import render, settings
from bltcli.commands import options
from bltcli.commands.decoding import sampling_options, take_sampler
from bltcli.commands.eval.shared import (
    GeneratorOptions,
    finish,
    generator_options,
    report_options,
    run_option,
    take_generator,
)
from bltcli.errors import UsageError

if TYPE_CHECKING:
    from bltcli.decoding import MethodOptions
    from bltcli.prompts import Pair
    from bltcli.sampling import Sampler

TOKENIZERS = ("flores101", "flores200", "spBLEU-1K", "13a", "intl", "char", "none")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `eval mt`."""

    source: str
    reference: str
    direction: str
    limit: int | None
    shots: int | None
    examples: tuple[str, str] | None
    run: tuple[MethodOptions, ...]
    max_bytes: int
    sampler: Sampler
    generator: GeneratorOptions
    tokenize: str
    paper: str | None
    records: str | None
    format: str
    progress: bool | None


@click.command(
    epilog="""
The prompt of a bundle trained by bltcli is the direction and the source on a line each; the translation follows. Other
models are shown examples in a plain form: --shots 4 --examples dev.fr dev.en; --shots 0 asks without.

BLEU needs a tokenizer. flores101, the paper's, is a file that sacrebleu fetches once and keeps in ~/.sacrebleu/models
(SACREBLEU names another folder than ~/.sacrebleu). Scores under different tokenizers do not compare.

\b
Examples:
  printf 'Bonjour.\\nMerci.\\n' > in.fr; printf 'Hello.\\nThank you.\\n' > in.en
  bltcli eval mt --source in.fr --reference in.en --direction 'fr>en' --tokenize 13a -n 40
  bltcli eval mt --source in.fr --reference in.en --direction 'fr>en' --tokenize 13a -n 40 \\
    --run ar --run 'blt-s k=4' --records runs --format md""",
)
@options(
    click.option("--source", metavar="FILE", required=True, type=click.Path(), help="The lines to translate."),
    click.option("--reference", metavar="FILE", required=True, type=click.Path(),
                 help="Their translations, line by line."),
    click.option("--direction", metavar="FROM>TO", required=True, help="Languages, such as 'fr>en'."),
    click.option("--limit", type=click.IntRange(min=1), default=None, metavar="N", help="Take the first N lines."),
    click.option("--shots", type=click.IntRange(min=0), default=None, metavar="N",
                 help="Ask in a plain form and show N examples first.  [default: the form the bundle was trained on]"),
    click.option("--examples", nargs=2, type=click.Path(), default=None, metavar="SOURCE REFERENCE",
                 help="Files to take the examples of --shots from: their first lines."),
    run_option("ar", "blt-s k=8"),
    click.option("-n", "--max-bytes", type=int, default=512, show_default=True, metavar="N",
                 help="Bytes per translation at most."),
    sampling_options,
    click.option("--tokenize", type=click.Choice(TOKENIZERS), default="flores101", show_default=True,
                 help="Tokenizer for BLEU."),
    click.option("--paper", type=click.Choice(("1B", "3B")), default=None,
                 help="Print the figures of Fast BLT's model of this size below ours (fr>en and de>en)."),
    generator_options,
    report_options,
    settings.verbosity_options,
)  # fmt: skip
def command(**values: Any) -> int:
    """Translate the lines of --source and score them against --reference: BLEU, chrF++, and what each setting took."""
    return run(Options(generator=take_generator(values), sampler=take_sampler(values), **values))


def run(o: Options) -> int:
    # everything that can be refused without a model
    from bltcli.decoding.stop import Stop
    from bltcli.evaluate import translation
    from bltcli.evaluate.bleu import open_bleu
    from bltcli.evaluate.generating import run_settings, settings_of
    from bltcli.evaluate.report import unequal_settings
    from bltcli.prompts import Prompts, check_prompts

    prompts = Prompts(o.direction, shots(o))
    stop = Stop(max_bytes=o.max_bytes, strings=prompts.stop)
    pairs = translation.read_pairs(Path(o.source), Path(o.reference), o.limit)
    told = len(set(prompts.shots or ()) & set(pairs))
    if told:
        render.notice(f"{told} of the examples shown are lines of the test set, so their scores mean nothing")
    bleu = open_bleu(o.tokenize, render.notice)

    # translations
    generator = o.generator.open()
    check_prompts(prompts, generator.bundle)
    chosen = settings_of(o.run, generator.bundle, o.sampler, stop)
    folder = None if o.records is None else Path(o.records)
    with render.progress(len(chosen) * len(pairs), o.progress, unit="texts") as advance:
        records = run_settings(generator, chosen, translation.task_of(prompts, pairs), folder, advance)

    # report
    report = translation.make_report(generator, chosen, pairs, records, bleu, direction=o.direction, paper=o.paper)
    unequal = unequal_settings(chosen, records) if generator.promises_equality else []
    return finish(report, o.format, records, unequal)


def shots(o: Options) -> list[Pair] | None:
    """The examples to show; none asked for is not the same as none shown."""
    from bltcli.evaluate.translation import read_pairs

    if o.shots is None or o.shots == 0:
        if o.examples:
            raise UsageError("--examples needs --shots N, the number of examples to show")
        return None if o.shots is None else []
    if not o.examples:
        raise UsageError(f"--shots {o.shots} needs --examples SOURCE REFERENCE to take them from")
    found = read_pairs(Path(o.examples[0]), Path(o.examples[1]), o.shots)
    if len(found) < o.shots:
        raise UsageError(f"--shots is {o.shots}, {o.examples[0]} has {len(found)} lines")
    return found

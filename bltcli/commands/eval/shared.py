"""Options that several evaluations share, and the way from their values to a generator and its settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import click

from bltcli import render, streams
from bltcli.commands import F, engine_option, model_option, options, precision_option
from bltcli.commands.decoding import exact_option, threads_option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bltcli.decoding import MethodOptions
    from bltcli.evaluate.generating import Generator
    from bltcli.evaluate.report import Report
    from bltcli.records import Record

FORMATS: Final = ("table", "md", "csv", "json")
RUN_HELP: Final = (
    "A method with its options, such as 'blt-s k=4' or 'blt-d block=8 unmask=confidence alpha=0.7'. The keys are k, "
    "block, unmask, alpha, gamma, commit, trust, ngram. Repeatable."
)
FAILED: Final = 4
UNEQUAL: Final = 5


class SettingText(click.ParamType["MethodOptions"]):
    """A method in one line; semicolons separate several in the environment."""

    name = "setting"
    envvar_list_splitter = ";"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> MethodOptions:
        from bltcli.decoding import MethodOptions
        from bltcli.decoding.setting import parse_setting

        return value if isinstance(value, MethodOptions) else parse_setting(value)[0]


def run_option(*default: str) -> Callable[[F], F]:
    """--run, repeatable; `default` is what is run without it."""
    return click.option(
        "--run", multiple=True, type=SettingText(), metavar="SETTING", default=default,
        help=f"{RUN_HELP}  [default: {' and '.join(default)}]",
    )  # fmt: skip


generator_options = options(
    model_option,
    click.option("--rows", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
                 help="Texts per call. The report counts passes per text, however many shared them."),
    exact_option,
    engine_option,
    precision_option,
    threads_option,
)  # fmt: skip
report_options = options(
    click.option("--records", metavar="FOLDER", type=click.Path(), default=None,
                 help="Keep every record, in a JSONL file per setting. Run again with the same folder, an interrupted "
                      "evaluation goes on, and settings may be added."),
    click.option("--format", type=click.Choice(FORMATS), default="table", show_default=True,
                 help="How to print the report."),
    click.option("--progress/--no-progress", default=None,
                 help="Show progress on stderr.  [default: if stderr is a terminal]"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions:
    """The values of `generator_options`."""

    model: str | None
    precision: str | None
    rows: int
    engine: str
    threads: int
    exact: bool

    def open(self) -> Generator:
        from bltcli.bundle import open_bundle
        from bltcli.evaluate.generating import Generator
        from bltcli.models import resolve_bundle

        bundle = open_bundle(resolve_bundle(self.model, self.precision, render.notice))
        return Generator(bundle, rows=self.rows, engine=self.engine, threads=self.threads, exact=self.exact)


def take_generator(values: dict[str, Any]) -> GeneratorOptions:
    """Take the values of `generator_options` out of a verb's."""
    return GeneratorOptions(**{field.name: values.pop(field.name) for field in fields(GeneratorOptions)})


def finish(report: Report, format: str, records: Mapping[str, Sequence[Record]], unequal: Sequence[str]) -> int:
    """Print the report; the exit code. `records` by setting; `unequal` are settings that broke a promise."""
    from bltcli.evaluate.report import rendered

    streams.write_stdout(rendered(report, format))
    errors = [(name, record) for name, found in records.items() for record in found if "error" in record]
    if errors:
        name, first = errors[0]
        streams.complain(f"{len(errors)} records failed, the first is {first['id']} of {name}: {first['error']}")
    if unequal:
        streams.complain(f"{', '.join(unequal)}: not the bytes of ar, which they must be; run bltcli verify")
    return UNEQUAL if unequal else FAILED if errors else 0

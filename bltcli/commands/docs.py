"""`python -m bltcli.commands.docs [--check]`: writes docs/cli.md and docs/bltcli.1 from the commands' own help."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from bltcli import __version__
from bltcli.cli import group

DOCS = Path(__file__).resolve().parents[2] / "docs"
WIDTH = 100
HEAD = """\
# The command line

Written by `python -m bltcli.commands.docs` from `--help`; change the help texts, not this file.
"""


def contexts(ctx: click.Context) -> Iterator[click.Context]:
    """`ctx` and one context per verb below it, depth first."""
    yield ctx
    command = ctx.command
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            verb = command.get_command(ctx, name)
            assert verb is not None
            yield from contexts(click.Context(verb, info_name=name, parent=ctx, **verb.context_settings))


def root() -> click.Context:
    settings = {**group.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return click.Context(group, info_name="bltcli", **settings)


def markdown() -> str:
    """docs/cli.md."""
    parts = [HEAD]
    for ctx in contexts(root()):
        title = ctx.command_path
        parts.append(f"## {title}\n\n```text\n{ctx.get_help().rstrip()}\n```\n")
    return "\n".join(parts)


def roff() -> str:
    """docs/bltcli.1."""
    ctx, *verbs = contexts(root())
    assert ctx.command.help is not None
    lines = [
        f'.TH BLTCLI 1 "" "bltcli {__version__}" "User commands"',
        ".SH NAME",
        "bltcli \\- decode Byte Latent Transformers",
        ".SH SYNOPSIS",
        ".B bltcli",
        "[OPTIONS] VERB [ARGS]...",
        ".SH DESCRIPTION",
        quote(clean(ctx.command.help)),
        ".SH OPTIONS",
        *option_lines(ctx),
    ]
    for verb in verbs:
        lines += [f'.SH "{verb.command_path.upper()}"', ".B " + quote(verb.command.get_usage(verb)[len("Usage: ") :])]
        lines += [".PP", quote(clean(verb.command.help or "")), *option_lines(verb), *epilog_lines(verb)]
    return "\n".join([*lines, '.SH "NOTES"', *epilog_lines(ctx)]) + "\n"


def option_lines(ctx: click.Context) -> list[str]:
    lines = []
    for param in ctx.command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and record[1]:
            lines += [".TP", ".B " + quote(record[0]), quote(record[1])]
    return lines


def epilog_lines(ctx: click.Context) -> list[str]:
    """Paragraphs; those that click keeps line by line (marked \\b) stay so."""
    lines = []
    for paragraph in inspect.cleandoc(ctx.command.epilog or "").split("\n\n"):
        if paragraph.startswith("\b"):
            lines += [".PP", ".nf", quote(paragraph.removeprefix("\b\n")), ".fi"]
        elif paragraph:
            lines += [".PP", quote(" ".join(paragraph.split()))]
    return lines


def clean(text: str) -> str:
    return "\n.PP\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


def quote(text: str) -> str:
    """`text` with roff's own characters escaped."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(f"\\&{line}" if line.startswith(".") and not line.startswith(".PP") else line
                     for line in escaped.split("\n"))  # fmt: skip


def main() -> int:
    stale = []
    for name, text in (("cli.md", markdown()), ("bltcli.1", roff())):
        path = DOCS / name
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            DOCS.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"stale: {', '.join(stale)}; run python -m bltcli.commands.docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

"""`bltcli verify`: what is promised of a bundle, proved on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bltcli import render, settings, streams
from bltcli.commands import engine_option, json_option, options, precision_option
from bltcli.errors import UsageError

if TYPE_CHECKING:
    from bltcli.verify import Check

#: Continued where no prompts are given: prose, the built-in model's tags, code, other scripts, nothing, no UTF-8.
PROMPTS = (
    b"The most remarkable thing about the old house was", b"", b"de>en\nDie Datei wurde nicht gefunden.\n",
    b"fr>en\nJe ne sais pas.\n", b"en>de\nThe weather is fine today.\n", b"def fibonacci(n):\n    if n < 2:\n        ",
    "Größe: 3 €, naïve café, ".encode(), "Привет, как".encode(), "今日は".encode(), b"\xff\x00\x80\xfe\xff",
    b"1 2 4 8 16 32 64 ", b"aaaaaaaaaaaaaaaa", b"https://example.org/a/b?c=d&", b"{\"id\": 17, \"name\": \"",
    b"It was the best of times, it was the worst of times, it was the", b"    \n\n\t", b"Chapter I.\n\n",
    b"en>fr\nThis section applies to every person who holds a licence.\n", b"A", b"SELECT * FROM ",
)  # fmt: skip


@click.command(
    epilog="""
Texts that should be equal and are not are taken apart: what both share is run through the model again, and the first
decision that came out differently (a byte, or where a patch ends) is a near-tie when its margin is within rounding,
else a bug. On ONNX Runtime's CPU equality is promised to the last bit, and every difference is a bug.

Exit code 0 when every check holds, 5 when one does not.

\b
Examples:
  bltcli verify
  bltcli verify --count 5 --max-bytes 64 --json
  bltcli verify --engine torch --count 3 --max-bytes 32""",
)
@click.argument("bundle", required=False, type=click.Path())
@options(
    engine_option,
    precision_option,
    click.option("--prompts", type=click.Path(), metavar="FILE",
                 help="Texts to continue, one per line.  [default: a built-in list]"),
    click.option("--count", type=click.IntRange(min=1), default=20, show_default=True, help="Texts to continue."),
    click.option("-n", "--max-bytes", type=click.IntRange(min=1), default=128, show_default=True,
                 help="Bytes to continue each text by."),
    json_option,
    settings.verbosity_options,
)  # fmt: skip
def command(
    bundle: str | None, engine: str, precision: Any, prompts: str | None, count: int, max_bytes: int, json: bool
) -> int:
    """Prove what is promised of BUNDLE (or the built-in model): its files, known answers, PyTorch on the same weights,
    and that every method that verifies writes what plain decoding writes."""
    from bltcli.bundle import open_bundle
    from bltcli.models import resolve_bundle
    from bltcli.verify import Verification

    texts = list(PROMPTS)
    if prompts is not None:
        texts = streams.read_input(None, prompts, example="bltcli verify --prompts FILE").splitlines()
    if not texts:
        raise UsageError(f"{prompts} has no lines; give at least one text to continue")
    opened = open_bundle(resolve_bundle(bundle, precision, render.notice))
    checks = []
    for check in Verification(opened, engine, texts[:count], new_bytes=max_bytes).checks():
        checks.append(check)
        if not json:
            streams.write_stdout(human(check).encode())
    passed = all(check.ok for check in checks)
    if json:
        facts = {"bundle_sha256": opened.sha256, "engine": engine, "ok": passed, "checks": [row(c) for c in checks]}
        streams.write_stdout(render.to_json(facts))
    return 0 if passed else 5


def human(check: Check) -> str:
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}\n"]
    return "".join([*lines, *(f"        {difference}\n" for difference in check.differences)])


def row(check: Check) -> dict[str, Any]:
    import dataclasses

    return {**dataclasses.asdict(check), **check.facts}

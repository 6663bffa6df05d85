"""All translation test sets in three tables of the settings that say most: BLEU, cost beside `ar`, drafts kept.

    python benchmarks/overview.py

Reads what benchmarks/translation.py wrote to benchmarks/results/translation*.jsonl and writes a section of
docs/results.md; another says what blocks cost, by the reports that have a baseline (translation-price.jsonl).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common import RESULTS
from section import write_section
from translation import DOCUMENT, Report, scores

PRICE = "translation-price"
FILES = ("translation", "translation-held-out", "translation-flores101")
#: Column -> setting, as the reports name it.
UNVERIFIED = {
    **{f"whole blocks of {block}": f"blt-d block={block} unmask=confidence alpha=0.7" for block in (4, 8, 16)},
    "4, patches": "blt-d block=4 unmask=prefix alpha=0.7 commit=patches",
    **{f"8, sure {alpha}": f"blt-d block=8 unmask=confidence alpha={alpha} commit=sure" for alpha in (0.7, 0.8, 0.9)},
}
BLEU = {"`ar`": "ar", **UNVERIFIED}
VERIFIED = {
    **{f"`blt-s` {k}": f"blt-s k={k}" for k in (4, 8)},
    **{f"`blt-dv` {block}": f"blt-dv block={block} unmask=one-step" for block in (4, 8)},
}
COST = {**UNVERIFIED, **VERIFIED, "`blt-h` 8": "blt-h block=8 unmask=confidence alpha=0.3 trust=0.9"}

Row = Mapping[str, Any]


def table(reports: Sequence[Report], columns: Mapping[str, str], cell: Callable[[Row, Row], str]) -> str:
    """A line per set; of each column, what `cell` makes of its row and of that of `ar`."""
    lines = [_line(["set", *columns]), f"|---|{'---:|' * len(columns)}"]
    for report in reports:
        rows = {row["setting"]: row for row in report["settings"]}
        cells = [cell(rows[name], rows["ar"]) if name in rows else "" for name in columns.values()]
        lines.append(_line([f"{report['set']}, {report['direction']}", *cells]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cost(row: Row, ar: Row) -> str:
    return f"{row['nfe']['decoder'] / ar['nfe']['decoder']:.2f}, {row['gigabytes'] / ar['gigabytes']:.2f}"


def section(reports: Sequence[Report]) -> str:
    """The tables as Markdown."""
    if others := {r["set"] for r in reports if r["checkpoint_sha256"] != reports[0]["checkpoint_sha256"]}:
        sys.exit(f"{', '.join(sorted(others))}: of another model than {reports[0]['set']}; translate them with one")
    return f"""## In short

Written by `python benchmarks/overview.py` from the reports of the tables below.
BLEU of what `ar` writes, and of `blt-d`, unverified:

{table(reports, BLEU, lambda row, ar: f"{row['scores']['BLEU']:.1f}")}

Decoder passes of a text, and its GB by the paper's formula, both over those of `ar`:

{table(reports, COST, _cost)}

Drafts kept:

{table(reports, VERIFIED, lambda row, ar: f"{row['acceptance']:.0f} %")}
"""


def price(reports: Sequence[Report]) -> str:
    """What `ar` of a model with blocks and of its baseline write, as Markdown."""
    lines = ["| set | BLEU | chrF++ | baseline: BLEU | chrF++ |", f"|---|{'---:|' * 4}"]
    for report in reports:
        both = [cell for source in (report, report["baseline"]) for cell in scores(source, source["settings"][0])]
        lines.append(_line([f"{report['set']}, {report['direction']}", *both]))
    return "\n".join(lines) + "\n"


def read(name: str) -> list[Report]:
    """The reports of one file."""
    return [json.loads(text) for text in (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def main() -> None:
    write_section(DOCUMENT, "overview", section([report for name in FILES for report in read(name)]))
    write_section(DOCUMENT, "price", price(read(PRICE)))


if __name__ == "__main__":
    main()

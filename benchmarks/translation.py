"""Quality against cost: translation test sets under every method, a table for each and one plot.

    python benchmarks/translation.py -m BUNDLE --folder DIR NAME:FROM>TO[:LINES]... [--tokenize flores101]
        [--rows N] [--threads N] [--baseline BUNDLE]

NAME.FROM and NAME.TO in DIR are line-aligned (`scripts/held_out.py` writes some); the first LINES are translated, 300
if not said, --rows of them per call. What was generated is kept in --records: a run that was interrupted goes on there,
and several sets that were translated side by side, each by a call of its own, become one table by a last one that names
them all. --baseline: a model trained as long on next bytes alone, decoded with ar. Writes
benchmarks/results/translation.jsonl and, with --document, a section of docs/results.md with a plot beside it (needs
matplotlib); with --about NAME, translation-NAME.jsonl and a section of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, command, write_rows
from section import write_section

from bltcli.bundle import open_bundle
from bltcli.models import resolve_bundle

RULES = ("confidence", "entropy", "one-step")
RUNS = (
    "ar",
    *(f"blt-s k={k}" for k in (4, 8, 16)),
    *(f"blt-d block={block} unmask={rule}" for rule in RULES for block in (4, 8, 16)),
    "blt-d block=8 unmask=prefix",
    *(f"blt-d block={block} unmask=prefix commit=patches" for block in (4, 8)),
    *(f"blt-d block=8 commit=sure alpha={alpha}" for alpha in (0.7, 0.8, 0.9)),
    *(f"blt-dv block={block}" for block in (4, 8, 16)),
    "blt-h block=8",
    "ar ngram=yes",
    "blt-s k=8 ngram=yes",
    "blt-dv block=8 ngram=yes",
)
LINES = 300
DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"
Report = dict[str, Any]


def evaluate(name: str, o: argparse.Namespace, model: str, runs: Sequence[str]) -> Report:
    """The report of `bltcli eval mt` on one set, NAME:FROM>TO[:LINES]."""
    name, direction, lines = (*name.split(":"), str(LINES))[:3]
    source, target = (o.folder / f"{name}.{language}" for language in direction.split(">"))
    call = [sys.executable, "-m", "bltcli", "eval", "mt", "-m", model, "--limit", lines]
    call += ["--source", str(source), "--reference", str(target), "--direction", direction]
    call += ["-n", str(o.max_bytes), "--rows", str(o.rows), "--threads", str(o.threads)]
    call += ["--tokenize", o.tokenize, "--format", "json"]
    records = o.records / ("baseline" if model == o.baseline else "")
    call += ["--records", str(records / f"{name}-{direction.replace('>', '-')}")]
    call += [word for run in runs for word in ("--run", run)]
    done = subprocess.run(call, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 5):  # 5: texts differ that must not, which the report says
        sys.exit(done.returncode)
    weights = open_bundle(resolve_bundle(model, None, print)).manifest["source"]["sha256"]
    return {"set": name, "differ": done.returncode == 5, "checkpoint_sha256": weights, **json.loads(done.stdout)}


def scores(report: Report, row: Mapping[str, Any]) -> list[str]:
    """BLEU and chrF++ of a row of `report`, with their intervals."""
    found = report["significance"][row["setting"]]
    return [f"{row['scores'][metric]:.1f} ± {found[metric]['interval']:.1f}" for metric in ("BLEU", "chrF++")]


def table(report: Report) -> str:
    """One set as Markdown."""
    lines = [
        f"**{report['set']}, {report['direction']}**, {report['settings'][0]['texts']} lines\n",
        "| setting | BLEU | chrF++ | kept | decoder, encoder, global passes | GB saved | bytes/s | bytes per patch |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for title, source in (("`ar`, baseline", report.get("baseline")), ("", report)):
        if source is None:
            continue
        for row in source["settings"]:
            passes = ", ".join(f"{row['nfe'][graph]:.0f}" for graph in ("decoder", "encoder", "global"))
            cells = [
                title or row["setting"], *scores(source, row), _percent(row["acceptance"]), passes,
                _percent(row["decrease"]), f"{row['bytes_per_s']:.0f}", f"{row['bytes_per_patch']:.2f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} %"


def section(reports: Sequence[Report], about: str | None, plot: str) -> str:
    """All sets as Markdown."""
    signatures = "; ".join(f"{name} `{text}`" for name, text in reports[0]["signatures"].items())
    broken = [report["set"] for report in reports if report["differ"]]
    verified = "differ from `ar` in " + ", ".join(broken) if broken else "wrote the bytes of `ar` in every line"
    title = "Quality against cost" + (f": {about}" if about else "")
    head = f"""## {title}

```sh
{command()}
```

Passes, and GB by the paper's formula, are per text; scores have the 95 % interval of a paired bootstrap. `blt-s`,
`blt-dv` and n-gram drafts {verified}. {signatures}.

![chrF++ against bytes per second, one panel per test set]({plot})

"""
    return head + "\n".join(map(table, reports))


def draw(reports: Sequence[Report], file: Path) -> None:
    """chrF++ against bytes per second, a panel per set, a colour per method."""
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]  # not in any extra

    pyplot.rcParams["svg.hashsalt"] = "bltcli"  # the same figures give the same file
    columns = min(3, len(reports))
    figure, panels = pyplot.subplots(-(-len(reports) // columns), columns, squeeze=False, layout="constrained")
    figure.set_size_inches(4.2 * columns, 3.2 * len(panels))
    methods = list(dict.fromkeys(run.split()[0] for run in RUNS))
    for panel in panels.flat[len(reports) :]:
        panel.set_visible(False)
    for panel, report in zip(panels.flat, reports, strict=False):
        for method in methods:
            rows = [row for row in report["settings"] if row["setting"].split()[0] == method]
            x, y = [r["bytes_per_s"] for r in rows], [r["scores"]["chrF++"] for r in rows]
            panel.scatter(x, y, s=22, alpha=0.8, label=method, color=f"C{methods.index(method)}")
        panel.set_title(f"{report['set']}, {report['direction']}", fontsize=9)
        panel.grid(alpha=0.25)
    figure.supxlabel("bytes per second", fontsize=9)
    figure.supylabel("chrF++", fontsize=9)
    panels[0][0].legend(fontsize=7)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", metavar="NAME:FROM>TO[:LINES]", nargs="+")
    parser.add_argument("-m", "--model", default="builtin")
    parser.add_argument("--folder", type=Path, required=True, help="where the sets are")
    parser.add_argument("--baseline", help="a model trained on next bytes alone")
    parser.add_argument("--max-bytes", type=int, default=256)
    parser.add_argument("--tokenize", default="flores101")
    parser.add_argument("--rows", type=int, default=1, help="texts per call")
    parser.add_argument("--threads", type=int, default=0, help="1 where several sets are translated side by side")
    parser.add_argument("--records", type=Path, default=Path("runs/translation"))
    parser.add_argument("--run", action="append", help="setting, such as 'blt-s k=4'; repeatable, in place of all")
    parser.add_argument("--about", metavar="NAME", help="what these sets are, where they are not the main ones")
    parser.add_argument("--document", action="store_true")
    o = parser.parse_args()
    reports = []
    for name in o.sets:
        reports.append(evaluate(name, o, o.model, o.run or RUNS))
        if o.baseline:
            reports[-1]["baseline"] = evaluate(name, o, o.baseline, ["ar"])
        print(table(reports[-1]), flush=True)
    name = f"translation-{o.about}" if o.about else "translation"
    write_rows(RESULTS / f"{name}.jsonl", reports)
    if o.document:
        draw(reports, DOCUMENT.with_name(f"{name}.svg"))
        write_section(DOCUMENT, name, section(reports, o.about, f"{name}.svg"))


if __name__ == "__main__":
    main()

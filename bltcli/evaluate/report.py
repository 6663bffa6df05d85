"""One report for evaluations in the shape of Fast BLT's tables, as plain text, Markdown, CSV or JSON. Knows no task."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from bltcli import render
from bltcli.decoding import MethodOptions
from bltcli.errors import UsageError
from bltcli.evaluate.generating import Setting, Summary, equal_texts
from bltcli.paper import PaperRow, paper_rows
from bltcli.records import Record

FORMATS: Final = ("table", "md", "csv", "json")
PASSES_NOTE: Final = "Passes and GB (the paper's formula) are averages per text, without the prompt."
_NFE: Final = {"decoder NFE": "decoder", "encoder NFE": "encoder", "global NFE": "global"}
_DIGITS: Final = {"BLEU": 2, "GB": 2, "TTR": 3, "± TTR": 3, "bytes/patch": 2}  # others: 1
_PAPER_NAMES: Final = {"ar": "BLT", "blt-s": "BLT-S", "blt-d": "BLT-D", "blt-dv": "BLT-DV"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting. Scores by metric, the first of them the one that the paper's tables have."""

    setting: str
    scores: Mapping[str, float]
    summary: Summary
    decrease: float | None = None  # percent of the paper's gigabytes below ar
    paper: PaperRow | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)  # more for JSON


def with_decreases(rows: Sequence[Row]) -> list[Row]:
    """The rows with what each reads less than the first `ar` among them; as they are where there is none."""
    base = next((row for row in rows if row.setting.split()[0] == "ar"), None)
    if base is None or not base.summary.gigabytes:
        return list(rows)
    read = base.summary.gigabytes
    return [row if row is base else replace(row, decrease=100 * (1 - row.summary.gigabytes / read)) for row in rows]


def paper_row(size: str, task: str, options: MethodOptions, trained_block: int) -> PaperRow | None:
    """The paper's row for the same model size, task and setting; None where it has none."""
    used = options.settings(trained_block)
    name = _PAPER_NAMES.get(options.method)
    if name is None or used["ngram_draft"] or used["commit"]:
        return None
    if options.method == "ar":
        wanted = (name, "AR")
    elif options.method == "blt-s":
        wanted = (name, f"k={used['k']}")
    else:
        rules = {"confidence": f"a={used['alpha']}", "entropy": f"g={used['gamma']}", "one-step": "one step"}
        wanted = (f"{name}-{used['block']}", rules.get(str(used["unmask"]), ""))
    return next((r for r in paper_rows() if (r.size, r.task, r.model, r.setting) == (size, task, *wanted)), None)


def baseline_of(settings: Sequence[Setting]) -> Setting:
    """What the others are compared with: the first plain `ar`, or the first of all."""
    return next((setting for setting in settings if setting.options.method == "ar"), settings[0])


def unequal_settings(settings: Sequence[Setting], records: Mapping[str, Sequence[Record]]) -> list[str]:
    """Settings whose texts must be those of the baseline and are not."""
    base = baseline_of(settings)
    expected = records[base.name]
    exact = [setting.name for setting in settings if setting.exact and base.exact]
    return [name for name in exact if equal_texts(records[name], expected) < len(expected)]


def notes_on(settings: Sequence[Setting], records: Mapping[str, Sequence[Record]]) -> list[str]:
    """What a reader must know of the figures: whose texts are equal, which failed or were cut off, what a pass is."""
    base, notes = baseline_of(settings), []
    for setting in settings:
        found = records[setting.name]
        if setting is not base:
            equal = equal_texts(found, records[base.name])
            share = f"all {len(found)}" if equal == len(found) else f"{equal} of {len(found)}"
            notes.append(f"{setting.name}: the same bytes as {base.name} in {share} texts.")
        failed = sum("error" in record for record in found)
        if failed:
            notes.append(f"{setting.name}: {failed} of {len(found)} texts failed and count as empty.")
        cut = sum(record.get("finish_reason") in ("length", "context") for record in found)
        if cut:
            notes.append(f"{setting.name}: {cut} of {len(found)} texts were cut off at {setting.stop.max_bytes} bytes "
                         "or the context's end.")  # fmt: skip
    return [*notes, PASSES_NOTE]


def rendered(report: Report, format_: str) -> bytes:
    """The report as `table`, `md`, `csv` or `json`, in UTF-8. In a table the paper's rows stand below ours."""
    writers: dict[str, Callable[[Report], bytes]] = {"table": _table, "md": _markdown, "csv": _csv, "json": _json}
    if format_ not in writers:
        raise UsageError(f"--format is {format_}; use one of {', '.join(FORMATS)}")
    return writers[format_](report)


def _columns(report: Report) -> list[str]:
    metrics = list(dict.fromkeys(name for row in report.rows for name in row.scores))
    return ["setting", *metrics, "accept %", *_NFE, "GB", "decrease %", "bytes/s", "bytes/patch"]


def _lines(report: Report) -> list[dict[str, float | str | None]]:
    """A line per setting by column, and one more where the paper has it."""
    lines: list[dict[str, float | str | None]] = []
    for row in report.rows:
        s = row.summary
        lines.append({
            "setting": row.setting, **row.scores, "accept %": s.acceptance,
            "GB": s.gigabytes, "decrease %": row.decrease, **{column: s.nfe[graph] for column, graph in _NFE.items()},
            "bytes/s": s.bytes_per_s, "bytes/patch": s.bytes_per_patch,
        })  # fmt: skip
        if row.paper is not None:
            p = row.paper
            lines.append({
                "setting": f"  paper: {p.model} {p.size} {p.setting}", next(iter(row.scores)): p.score,
                "accept %": p.acceptance, "decoder NFE": p.decoder_nfe, "encoder NFE": p.global_nfe,
                "global NFE": p.global_nfe, "GB": p.gigabytes, "decrease %": p.decrease,
            })  # fmt: skip
    return lines


def _cells(report: Report) -> list[list[str]]:
    columns = _columns(report)
    return [columns, *([_shown(name, line.get(name)) for name in columns] for line in _lines(report))]


def _shown(column: str, value: float | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if column == "GB" and value < 10:
        return f"{value:.4f}"
    digits = 2 if column.startswith("pass@") else _DIGITS.get(column, 1)
    return f"{value:.{digits}f}"


def _table(report: Report) -> bytes:
    return (f"{report.title}\n\n{render.table(_cells(report))}\n" + "".join(f"{n}\n" for n in report.notes)).encode()


def _markdown(report: Report) -> bytes:
    head, *body = ([cell.strip().replace("|", "\\|") for cell in cells] for cells in _cells(report))
    rule = ["---", *("---:" for _ in head[1:])]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *body))
    return (f"**{report.title}**\n\n{table}" + "".join(f"\n{note}\n" for note in report.notes)).encode()


def _csv(report: Report) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(report), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: v.strip() if isinstance(v, str) else v for name, v in line.items()}
                     for line in _lines(report))  # fmt: skip
    return text.getvalue().encode()


def _json(report: Report) -> bytes:
    rows = [
        {
            "setting": row.setting,
            "scores": dict(row.scores),
            **asdict(row.summary),
            "decrease": row.decrease,
            "paper": asdict(row.paper) if row.paper else None,
        }
        for row in report.rows
    ]
    return render.to_json({"title": report.title, **report.details, "settings": rows, "notes": list(report.notes)})

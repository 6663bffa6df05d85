"""A report as text: tables for terminals and Markdown, CSV, and what the lines around them say."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bltcli import render
from bltcli.graphs import GRAPHS

Row = Mapping[str, Any]


class Table(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[str]]


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The report's rows, split by what they are about; the setting comes first in each."""
    rows = report["rows"]
    found = [
        Table(
            "Speed",
            ["setting", "bytes/s", "quartiles", "speed-up", "quartiles", "bytes of ar", "first byte", "of the floor",
             "NFE predicts", "GB predicts", "conversion", "in Python"],
            [_speed(row) for row in rows],
        ),
        Table(
            "Work",
            ["setting", f"passes per byte ({', '.join(GRAPHS)})", "seconds in them", "weights", "KV", "paper GB",
             "kept", "bytes/round", "bytes/patch"],
            [_work(row) for row in rows if "nfe" in row],
        ),
    ]  # fmt: skip
    beside = [_paper(row) for row in rows if row.get("paper")]
    if beside:
        head = ["setting", "nearest in the paper", "GB saved", "paper", "decoder/byte", "paper", "global/byte", "paper",
                "kept", "paper"]  # fmt: skip
        found.append(Table(f"Paper ({next(r['paper']['table'] for r in rows if r.get('paper'))})", head, beside))
    return found


def notes(report: Mapping[str, Any]) -> list[str]:
    """What must be known to read the tables."""
    task = report["task"]
    drawn = "greedy" if task["temperature"] == 0 else f"temperature {task['temperature']:g}, seed {task['seed']}"
    drawn += ", end of text ignored" if task["ignore_eos"] else ""
    lines = [
        f"{task['prompts']} prompt(s), {task['prompt_bytes']} bytes, up to {task['max_bytes']} new bytes each, "
        f"{drawn}; {report['repeats']} repeats in turns after a warm-up. {report['processor']}, {report['cores']} "
        "cores.",
    ]
    for engine, facts in report["bandwidth"].items():
        lines.append(
            f"Memory for {engine}: {facts['bytes_per_s'] / 1e9:.1f} GB/s ({facts['kernel']}, {facts['threads']} "
            f"thread(s), arrays of {facts['array_bytes'] / 2**20:.0f} MiB); a share above 100 % of the floor means "
            "that weights stayed in a cache."
        )
    for row in report["rows"]:
        if row.get("stands_for"):
            lines.append(f"auto stands for: {row['stands_for']}.")
        if "nfe" not in row:
            lines.append(f"The fastest ar is {1 / row['speedup']['median']:.1f} times as fast as {row['setting']}.")
    lines.append(
        "Speed-up: over the fastest plain cached ar of the same precision, in this run, repeat by repeat. Conversion: "
        "speed-up over what passes (NFE) or paper GB per byte predict."
    )
    if any(row.get("paper") for row in report["rows"]):
        lines.append(report["paper_note"])
    return lines


def as_text(report: Mapping[str, Any], *more: Table) -> str:
    """The report's tables, then `more`, then its notes."""
    parts = [f"{table.title}\n{render.table([table.head, *table.rows])}" for table in (*tables(report), *more)]
    return "\n".join([*parts, "".join(f"{line}\n" for line in notes(report))])


def as_markdown(report: Mapping[str, Any], *more: Table) -> str:
    parts = [f"**{table.title}**\n\n{markdown_table(table.head, table.rows)}" for table in (*tables(report), *more)]
    return "\n".join([*parts, "".join(f"* {line}\n" for line in notes(report))])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def as_csv(report: Mapping[str, Any]) -> str:
    """One line per setting; nested figures as name.part, lists left to JSON."""
    flat = [_flat(row) for row in report["rows"]]
    names = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(row: Row, before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            if name != "bytes_per_round_histogram":
                found |= _flat(value, f"{before}{name}.")
        elif not isinstance(value, list):
            found[before + name] = value
    return found


def equality(row: Row) -> str:
    """ "yes", or where the bytes first differ and how many are the same."""
    facts = row["agreement"]
    if facts["equal"]:
        return "equal" if row["repeatable"] else "equal once, not always"
    where = f"text {facts['differs_in'] + 1} byte {facts['differs_at']}" if facts["differs_in"] else (
        f"byte {facts['differs_at']}")  # fmt: skip
    fault = "BROKEN PROMISE: " if row.get("promised") else ""
    return f"{fault}differ from {where}, {facts['equal_share']:.0%} equal, common prefix {facts['common_prefix']}"


def _speed(row: Row) -> list[str]:
    rate, gain = row["bytes_per_s"], row["speedup"]
    cells = [row["setting"], f"{rate['median']:.1f}", f"{rate['low']:.1f}-{rate['high']:.1f}",
             f"{gain['median']:.2f}", f"{gain['low']:.2f}-{gain['high']:.2f}", equality(row)]  # fmt: skip
    if "nfe" not in row:
        return [*cells, "", "", "", "", "", ""]
    predicted, conversion = row["predicted_speedup"], row["conversion"]
    return [
        *cells,
        f"{row['first_byte_s']['median'] * 1e3:.1f} ms",
        _percent(row["floor_share"]),
        _number(predicted["nfe"]),
        _number(predicted["gb"]),
        f"{_number(conversion['nfe'])}, {_number(conversion['gb'])}",
        _percent(row["python_share"]),
    ]


def _work(row: Row) -> list[str]:
    return [
        row["setting"],
        ", ".join(f"{row['nfe_per_byte'][graph]:.2f}" for graph in GRAPHS),
        ", ".join(f"{row['graph_s'][graph]:.3f}" for graph in GRAPHS),
        render.size(row["weight_bytes_read"]),
        render.size(row["kv_bytes_read"]),
        f"{row['paper_gb']:.3f}",
        _percent(row["acceptance_rate"]),
        _number(row["bytes_per_round"]),
        _number(row["bytes_per_patch"]),
    ]


def _paper(row: Row) -> list[str]:
    paper, nfe = row["paper"], row["nfe_per_byte"]
    return [
        row["setting"],
        paper["setting"],
        _percent(row["gb_saving"]),
        _percent(paper["gb_saving"]),
        f"{nfe['decoder']:.2f}",
        f"{paper['decoder_nfe_per_byte']:.2f}",
        f"{nfe['global']:.2f}",
        f"{paper['global_nfe_per_byte']:.2f}",
        _percent(row["acceptance_rate"]),
        _percent(paper["acceptance_rate"]),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

"""Where the time of each setting goes: a view of a report's rows, for those who make the program faster."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from bltcli.bench.formats import Table
from bltcli.graphs import GRAPHS

Row = Mapping[str, Any]


def time_table(report: Mapping[str, Any]) -> Table:
    """Per setting: calls of each graph per new byte, microseconds per call and per byte, and shares of the time; then
    what is spent outside the engines, and what reading weights and caches takes at least. Prompts are included."""
    head = ["setting", "where", "calls/byte", "us/call", "us/byte", "share of the time"]
    return Table("Time", head, [line for row in report["rows"] if "nfe" in row for line in _lines(row)])


def _lines(row: Row) -> list[list[str]]:
    seconds, new_bytes = median(row["seconds"]), max(1, row["new_bytes"])
    lines = []
    for graph in GRAPHS:
        calls, spent = row["nfe"][graph] + row["prefill_nfe"][graph], row["graph_s"].get(graph, 0.0)
        per_call = f"{spent / calls * 1e6:.0f}" if calls else ""
        lines.append([row["setting"], graph, f"{calls / new_bytes:.2f}", per_call, *_time(spent, seconds, new_bytes)])
    outside = row["python_share"] * seconds
    lines.append([row["setting"], "Python", "", "", *_time(outside, seconds, new_bytes)])
    if row["floor_share"] is not None:  # of a GPU's memory nothing is known
        lines.append([row["setting"], "(floor)", "", "", *_time(row["floor_share"] * seconds, seconds, new_bytes)])
    return lines


def _time(spent: float, seconds: float, new_bytes: int) -> list[str]:
    return [f"{spent / new_bytes * 1e6:.0f}", f"{spent / seconds:.0%}"]

"""What benchmarks/gpu.py prints at its end: which engines ran and which did not, then its rows as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bltcli import render

Row = dict[str, Any]
Cells = tuple[str, ...]


def report(rows: Sequence[Row]) -> str:
    """All of it; tables without a line are left out."""
    tables = [
        ("engines built", ("graph", "seconds", "bytes"), _cells(rows, "build", built)),
        ("memory of the GPU, one text", ("engine", "bytes"), _cells(rows, "engines", memory)),
        ("graphs against PyTorch in float32", ("graph", "apart", "tolerance", ""), _cells(rows, "graphs", apart)),
        ("equal rows in other calls", ("padded to", "apart"), _cells(rows, "rows", padded)),
        ("texts", ("check", "", "found"), [*_cells(rows, "ar", greedy), *_cells(rows, "verify", checked)]),
        ("time per graph", ("graph", "rows", "ms", "of the bandwidth"), _cells(rows, "times", timed)),
        (
            "methods: times = over the fastest plain ar, both captured where the engine captures",
            ("setting", "bytes/s", "times", "of the bandwidth", "texts as ar's", "memory"),
            [*_cells(rows, "methods", compared), *_cells(rows, "replayed", compared)],
        ),
    ]
    found = [f"{title}\n{render.table([('', *header), *cells])}" for title, header, cells in tables if cells]
    return "\n".join(["\n".join(what_ran(rows)) + "\n", *found]).rstrip()


def what_ran(rows: Sequence[Row]) -> Iterator[str]:
    """Memory, the engines of each model and why not the others, what was absent or failed, and what was replayed."""
    for row in rows:
        where = f"{row['stage']} {name(row)}".strip()
        if "memory" in row:
            yield f"{where}: {row['memory']}, {row['bytes_per_s'] / 1e9:.0f} GB/s"
        elif "validity" in row:
            reasons = f" ({', '.join(row['diagnostics'])})" if row["diagnostics"] else ""
            yield f"{where}: {row['library']} {row['version']} says {row['validity']}{reasons}"
        elif "opened" in row:
            yield f"{where}: ran on {', '.join(row['opened']) or 'nothing'}"
            yield from (f"  not on {engine}: {reason}" for engine, reason in row["refused"].items())
        elif "failed" in row:
            yield f"{where}: failed: {row['failed']}"
        elif "absent" in row:
            yield f"{where}: {row['setting'] + ' ' if 'setting' in row else ''}absent: {row['absent']}"
        elif "recorded_bytes" in row:
            yield (
                f"{where}: patches and acceptance of {row['recording']}: {row['recorded_bytes']} bytes, "
                f"{row['bytes_per_patch']:.2f} a patch, {row['right_of_16_drafted']:.2f} of 16 drafted ones right"
            )


def name(row: Row) -> str:
    """Model, precision and engine; of random weights their form."""
    model = f"{row['form'].upper()} form, {row['weights']} weights" if "form" in row else row["model"]
    return " ".join(filter(None, (model, row["precision"], row["engine"])))


def _cells(rows: Sequence[Row], stage: str, line: Callable[[Row], Cells | None]) -> list[Cells]:
    """The lines of a table: whose they are, and what `line` makes of those rows that it takes."""
    found = ((row, line(row)) for row in rows if row["stage"] == stage)
    return [(name(row), *cells) for row, cells in found if cells]


def built(row: Row) -> Cells | None:
    if "build_s" not in row:
        return None
    if not row["reasons"]:
        return row["graph"], "kept", ""
    return row["graph"], f"{row['build_s']:.1f}", render.size(row["bytes"])


def memory(row: Row) -> Cells | None:
    return (row["opens"], render.size(row["gpu_bytes_used"])) if row.get("gpu_bytes_used") is not None else None


def apart(row: Row) -> Cells | None:
    if "tolerance" not in row:
        return None
    found = row.get("relative_difference")
    return (
        row["graph"],
        "other patches" if found is None else f"{found:.1e}",
        f"{row['tolerance']:g}",
        "ok" if row["ok"] else "NOT WITHIN",
    )


def padded(row: Row) -> Cells | None:
    return (str(row["padded_to"]), f"{row['largest_difference']:.1e}") if "padded_to" in row else None


def greedy(row: Row) -> Cells | None:
    if "texts" not in row:
        return None
    found = f"{row['texts']} texts, {row['different']} differ: {row['bugs']} by more than {row['near_tie_margin']:g}"
    return "greedy ar as on the CPU in float32", "NO" if row["bugs"] else "ok", found


def checked(row: Row) -> Cells | None:
    return (row["name"], "ok" if row["ok"] else "NO", row["detail"]) if "ok" in row else None


def timed(row: Row) -> Cells | None:
    if "rows" not in row:
        return None
    rows = f"{row['rows']} drafted" if row["drafted"] else str(row["rows"])
    return row["graph"], rows, f"{1e3 * row['seconds']['median']:.3f}", _share(row)


def compared(row: Row) -> Cells | None:
    if "speedup" not in row:
        return None
    same = f"{row['equal_texts']} of {row['texts']}"
    times = f"{row['speedup']['median']:.2f}"
    speed = f"{row['bytes_per_s']:.0f}"
    return row["setting"], speed, times, _share(row), same, _size(row["gpu_bytes_used_by_all"])


def _share(row: Row) -> str:
    share = row["share_of_bandwidth"]
    return "" if share is None else f"{share:.0%}"


def _size(count: int | None) -> str:
    return "" if count is None else render.size(count)

"""What people read: notices, statistics and progress on stderr, tables as plain text. Model text never passes here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bltcli import settings, streams

METHOD_SETTINGS = ("k", "block", "unmask", "alpha", "gamma", "commit", "trust")
PLAIN_SECONDS = 1.0  # between progress lines where no terminal can redraw one


def notice(line: str) -> None:
    """A line on stderr, unless --quiet."""
    if settings.verbosity() >= 0:
        streams.complain(line)


def detail(line: str) -> None:
    """A line on stderr with --verbose."""
    if settings.verbosity() > 0:
        streams.complain(line)


def colours(stream: object) -> bool:
    """Whether to colour what goes to `stream`."""
    return streams.is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, left-aligned, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def to_json(facts: Any) -> bytes:
    """The one JSON layout that every verb prints."""
    import json

    return (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()


def size(count: float) -> str:
    """`count` bytes in the largest decimal unit that keeps it above 1."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def statistics(s: dict[str, Any]) -> str:
    """The --stats block, from the --stats-json object."""

    def passes(nfe: dict[str, int]) -> str:
        return ", ".join(f"{graph} {count}" for graph, count in nfe.items())

    end = f"ended by {s['finish_reason']}" if s["finish_reason"] else "not finished"
    rows = [
        ("generated", f"{s['new_bytes']} bytes in {s['wall_s']:.2f} s ({s['bytes_per_s']:.1f} bytes/s), {end}"),
        ("prompt", f"{s['prompt_bytes']} bytes in {s['prefill_s']:.2f} s; first byte after {s['ttfb_s']:.2f} s"),
    ]
    if s["rounds"]:
        drafts = f"; {s['accepted']} of {s['drafted']} drafted bytes kept" if s["drafted"] else ""
        rate = f" ({s['acceptance_rate']:.0%})" if s["drafted"] else ""
        rate += f", {s['copied_accepted']} of {s['copied']} copied ones" if s["copied"] else ""
        rows.append(("rounds", f"{s['rounds']}, {s['bytes_per_round']:.2f} bytes each{drafts}{rate}"))
    if s["patches"]:
        rows.append(("patches", f"{s['patches']}, {s['bytes_per_patch']:.2f} bytes each"))
    memory = f", peak memory {size(s['peak_rss_bytes'])}" if s["peak_rss_bytes"] else ""
    how = "".join(f" {name}={s[name]}" for name in METHOD_SETTINGS if s[name] is not None)
    rows += [
        ("passes", f"{passes(s['nfe'])} (prompt: {passes(s['prefill_nfe'])})"),
        ("read", f"{size(s['weight_bytes_read'])} of weights, {size(s['kv_bytes_read'])} of caches; "
                 f"paper's formula {s['paper_gb']:.3f} GB"),
        ("with", f"{s['method']}{how}, {s['engine']}, {s['precision']}, seed {s['seed']}{memory}"),
    ]  # fmt: skip
    return table(rows)


def peak_rss_bytes() -> int | None:
    """The most memory this process held; None where the platform does not say."""
    try:  # Linux: the figure below begins with what the parent held when it started this process
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def progress(total: int, wanted: bool | None, *, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """Yields a function that is told the bytes (or what `unit` says) done so far.

    By default a bar where stderr is a terminal; for bytes only where stdout is none (the text itself shows the progress
    there). `wanted` True asks for it in a log too, as plain lines; False turns it off.
    """
    on_terminal = streams.is_terminal(sys.stderr)
    shown_by_text = unit == "bytes" and streams.is_terminal(sys.stdout)
    if wanted is False or settings.verbosity() < 0 or shown_by_text:
        yield lambda _: None
    elif on_terminal:
        with _bar(total, unit) as advance:
            yield advance
    elif wanted:
        yield _lines(total, unit)
    else:
        yield lambda _: None


@contextmanager
def _bar(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn(f"{{task.completed}}/{{task.total}} {unit}"), BarColumn(), TimeElapsedColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=total)
    with bar:
        yield lambda done: bar.update(task, completed=done)


def _lines(total: int, unit: str) -> Callable[[int], None]:
    from time import monotonic

    due = monotonic()

    def advance(done: int) -> None:
        nonlocal due
        if monotonic() >= due:
            due = monotonic() + PLAIN_SECONDS
            streams.complain(f"{done} of at most {total} {unit}")

    return advance

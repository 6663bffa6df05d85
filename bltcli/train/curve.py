"""The log of a run as one page: `curve.html`, charts in SVG, nothing loaded from elsewhere. Standard library only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from bltcli.atomic import write_atomically

Series = Mapping[str, Sequence[tuple[float, float]]]

#: Title and the log's figures (by prefix) of each chart, with the unit they are in.
_CHARTS: Final = (
    ("Bits per byte", "bits_per_byte", "bits"),
    ("Masked bits per byte", "masked_bits_per_byte", "bits"),
    ("Masked accuracy, by the share t of masked bytes", "masked_accuracy_t_", "share of masked bytes filled right"),
    ("Learning rate", "learning_rate", ""),
)
_POINTS: Final = 300  # of a line; each is the mean of the rows it stands for
_WIDTH, _HEIGHT = 620, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 22, 10, 34
_COLOURS: Final = ("#2a6fbb", "#c2571a", "#2e8b57", "#8a4fa3")
_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1300px; margin: 2rem auto; padding: 0 1rem; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem 2rem; }
figure { margin: 0; flex: 1 1 420px; max-width: 640px; }
figcaption { font-weight: 600; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
text { fill: currentColor; } .grid { stroke: currentColor; opacity: .15; }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
"""


def write_curve(log: Path, page: Path) -> None:
    """Draw the rows of `log` (log.jsonl) into `page`; the last row of a step counts, as a resumed run repeats some."""
    phases: dict[str, dict[int, dict[str, Any]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        phases.setdefault(row["phase"], {})[row["step"]] = row
    sections = "".join(_section(name, [rows[step] for step in sorted(rows)]) for name, rows in phases.items())
    write_atomically(page, _page(sections).encode())


def _page(body: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Training</title><style>{_STYLE}</style><h1>Training</h1>{body}</html>\n"
    )


def _section(phase: str, rows: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    for title, prefix, unit in _CHARTS:
        names = [n for n in dict.fromkeys(name for row in rows for name in row) if n.startswith(prefix)]
        series = {_label(n, prefix): [(row["step"], row[n]) for row in rows if n in row] for n in names}
        if series:
            charts.append(f"<figure><figcaption>{escape(title)}</figcaption>{chart(series, unit)}</figure>")
    last = rows[-1]
    text = f"step {last['step']:,}, {last['bytes']:,} bytes, {last['bytes_per_s']:,} bytes per second at the end"
    return f'<h2>{escape(phase)}</h2><p>{text}</p><div class="charts">{"".join(charts)}</div>'


def _label(name: str, prefix: str) -> str:
    """ "t 25-50 %" for masked_accuracy_t_25_50; a chart of one line needs none."""
    rest = name.removeprefix(prefix)
    return f"t {rest.replace('_', '–')} %" if rest else ""


def chart(series: Series, unit: str) -> str:
    """Lines over steps as one SVG element; what is not finite is left out."""
    lines = {name: thinned([(x, y) for x, y in points if math.isfinite(y)]) for name, points in series.items()}
    points = [point for line in lines.values() for point in line]
    if not points:
        return "<svg></svg>"
    x_ticks = ticks(0, max(x for x, _ in points))
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for x in x_ticks:
        px, py = at(x, y_ticks[0])
        parts.append(f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{_TOP}" y2="{py:.1f}"/>')
        parts.append(f'<text x="{px:.1f}" y="{py + 14:.1f}" text-anchor="middle">{x:g}</text>')
    for y in y_ticks:
        px, py = at(x_ticks[0], y)
        parts.append(f'<line class="grid" x1="{px:.1f}" x2="{_WIDTH - _RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text x="{px - 6:.1f}" y="{py + 4:.1f}" text-anchor="end">{y:g}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">step</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{escape(unit)}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in line)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{path}"/>')
        if name:
            y = _TOP + 14 + 15 * number
            parts.append(f'<text x="{_LEFT + 10}" y="{y}" style="fill:{colour}">{escape(name)}</text>')
    label = escape(", ".join(filter(None, lines)) or unit)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` points, each at the last x and the mean y of as many neighbours."""
    width = max(1, math.ceil(len(points) / _POINTS))
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, two to nine of them, that begin at or below `low` and end at or above `high`."""
    if high - low <= 1e-9 * (abs(low) + abs(high)) + 1e-30:
        high = low + max(abs(low), 1e-9)
    magnitude = 10.0 ** math.floor(math.log10(high - low))
    step = next(magnitude * f for f in (0.2, 0.5, 1.0, 2.0) if (high - low) / (magnitude * f) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]

"""A report as one HTML page with plots to point at; everything it needs is in the file. Draws with Bokeh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from statistics import median
from typing import Any, Final

from bltcli.bench.formats import Table, equality, notes, tables
from bltcli.errors import ModelError
from bltcli.graphs import GRAPHS

#: Readable on white and on black: the canvas knows nothing of the page's colours.
_INK: Final = "#7d8187"
_COLOURS: Final = (
    "#4477aa", "#ee6677", "#228833", "#b59b2b", "#66aadd", "#aa3377", "#d07a2d", "#3d9a8b", "#8a79d1", "#99893f",
)  # fmt: skip
_PYTHON: Final = "rest (Python)"
_HEIGHT: Final = 340
_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
li { margin: .3rem 0; }
"""
_PLOTS: Final = (
    ("Bytes of ar against speed", "Right is faster, up is nearer to plain decoding. Bars: quartiles of the repeats."),
    ("Bytes per round", "Share of rounds that committed so many bytes. Click a name to hide it."),
    ("Where the time goes", "Milliseconds per 1000 new bytes, prompt included."),
)


def as_html(report: Mapping[str, Any]) -> str:
    """ModelError where Bokeh is not installed."""
    check_bokeh()
    from bokeh.embed import components
    from bokeh.resources import Resources

    rows = report["rows"]
    script, divs = components([_agreement(rows), _rounds(rows), _graphs(rows)])
    plots = "".join(
        f"<h2>{escape(title)}</h2><p>{escape(text)}</p>{div}" for (title, text), div in zip(_PLOTS, divs, strict=True)
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>bltcli bench</title><style>{_STYLE}</style>"
        f"{Resources(mode='inline', components=['bokeh']).render()}"
        f"<h1>bltcli bench</h1>{''.join(map(_table, tables(report)))}"
        f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in notes(report))}</ul>{plots}{script}</html>\n"
    )


def check_bokeh() -> None:
    """ModelError where Bokeh is not installed."""
    if find_spec("bokeh") is None:
        raise ModelError("--format html draws with bokeh, which is not installed; pip install 'bltcli[bench]'")


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>" for cells in table.rows)
    return f'<h2>{escape(table.title)}</h2><div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _figure(**options: Any) -> Any:
    from bokeh.plotting import figure

    plot = figure(
        sizing_mode="stretch_width", height=_HEIGHT, tools="pan,xwheel_zoom,box_zoom,reset,save",
        background_fill_alpha=0, border_fill_alpha=0, outline_line_color=_INK, outline_line_alpha=0.4, **options,
    )  # fmt: skip
    plot.toolbar.logo = None
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = axis.axis_line_color = _INK
        axis.major_tick_line_color = axis.minor_tick_line_color = _INK
        axis.axis_label_text_font_style = "normal"
    plot.grid.grid_line_color, plot.grid.grid_line_alpha = _INK, 0.2
    return plot


def _legend_below(plot: Any, columns: int) -> None:
    legend = plot.legend[0]
    plot.add_layout(legend, "below")
    legend.ncols, legend.click_policy = columns, "hide"
    legend.background_fill_alpha, legend.border_line_color, legend.label_text_color = 0, None, _INK


def _agreement(rows: Sequence[Mapping[str, Any]]) -> Any:
    from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter

    source = ColumnDataSource(
        {
            "setting": [row["setting"] for row in rows],
            "speed": [row["bytes_per_s"]["median"] for row in rows],
            "low": [row["bytes_per_s"]["low"] for row in rows],
            "high": [row["bytes_per_s"]["high"] for row in rows],
            "share": [row["agreement"]["equal_share"] for row in rows],
            "gain": [row["speedup"]["median"] for row in rows],
            "bytes": [equality(row) for row in rows],
            "colour": [_colour(i) for i in range(len(rows))],
        }
    )
    plot = _figure(x_axis_label="bytes/s", y_axis_label="share of bytes equal to ar", y_range=(-0.05, 1.05))
    plot.yaxis.formatter = NumeralTickFormatter(format="0%")
    plot.segment("low", "share", "high", "share", source=source, line_color="colour", line_width=2, alpha=0.7)
    dots = plot.scatter(
        "speed", "share", source=source, size=11, color="colour", line_color=_INK, legend_group="setting"
    )
    plot.add_tools(HoverTool(renderers=[dots], tooltips=[
        ("setting", "@setting"), ("bytes/s", "@speed{0.0} (@low{0.0} to @high{0.0})"), ("speed-up", "@gain{0.00}"),
        ("bytes of ar", "@bytes"),
    ]))  # fmt: skip
    _legend_below(plot, 3)
    plot.legend[0].click_policy = "none"  # one glyph draws them all
    return plot


def _rounds(rows: Sequence[Mapping[str, Any]]) -> Any:
    from bokeh.models import HoverTool

    plot = _figure(x_axis_label="bytes committed in a round", y_axis_label="share of rounds")
    for i, row in enumerate(rows):
        histogram = {int(n): count for n, count in row.get("bytes_per_round_histogram", {}).items()}
        if not histogram:
            continue
        sizes = list(range(1, max(histogram) + 1))
        shares = [histogram.get(n, 0) / sum(histogram.values()) for n in sizes]
        data = {"size": sizes, "share": shares, "setting": [row["setting"]] * len(sizes)}
        plot.line("size", "share", source=data, color=_colour(i), line_width=1.5, legend_label=row["setting"])
        plot.scatter("size", "share", source=data, color=_colour(i), size=6, legend_label=row["setting"])
    plot.add_tools(HoverTool(tooltips=[("setting", "@setting"), ("bytes", "@size"), ("rounds", "@share{0.0%}")]))
    _legend_below(plot, 3)
    return plot


def _graphs(rows: Sequence[Mapping[str, Any]]) -> Any:
    from bokeh.models import HoverTool

    timed = [row for row in rows if row["graph_s"]][::-1]
    parts: dict[str, list[float]] = {
        graph: [row["graph_s"][graph] / max(1, row["new_bytes"]) * 1e6 for row in timed] for graph in GRAPHS
    }
    whole = [median(row["seconds"]) / max(1, row["new_bytes"]) * 1e6 for row in timed]
    inside = [sum(parts[graph][i] for graph in GRAPHS) for i in range(len(timed))]
    parts[_PYTHON] = [max(0.0, a - b) for a, b in zip(whole, inside, strict=True)]
    names = [row["setting"] for row in timed]
    plot = _figure(x_axis_label="ms per 1000 bytes", y_range=names)
    plot.hbar_stack(
        list(parts), y="setting", height=0.7, source={"setting": names, **parts},
        color=list(_COLOURS[: len(parts)]), legend_label=list(parts), name=list(parts),
    )  # fmt: skip
    plot.add_tools(HoverTool(tooltips=[("setting", "@setting"), ("$name", "@$name{0.0} ms")]))
    plot.height = max(_HEIGHT, 90 + 26 * len(names))
    _legend_below(plot, 3)
    return plot


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]

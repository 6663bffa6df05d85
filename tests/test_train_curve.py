"""The page that a run draws: sound markup, every row in it, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltcli.train.config import load_config
from bltcli.train.curve import chart, thinned, ticks, write_curve
from bltcli.train.recipe import train
from tests.toy_training import RECIPE, quiet, with_blocks, write_root


def charts(page: Path) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL)]


def test_a_run_leaves_a_page_with_a_chart_of_every_figure(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    with_blocks(recipe)
    assert "save_every" in RECIPE
    train(load_config(recipe), write_root(tmp_path / "data"), tmp_path / "out", resume=False, show=quiet)
    page = tmp_path / "out" / "curve.html"
    # patcher: bits and rate; blt: also masked bits, and four ranges of t in one chart
    assert [len(svg.findall("polyline")) for svg in charts(page)] == [1, 1, 1, 1, 4, 1]
    assert "<h2>patcher</h2>" in page.read_text()
    assert not re.search(r"https?:|<script|src=", page.read_text())


def test_the_last_row_of_a_step_counts(tmp_path: Path) -> None:
    rows = [
        {"phase": "blt", "step": step, "bits_per_byte": bits, "bytes": 9, "bytes_per_s": 1, "learning_rate": 0.1}
        for step, bits in ((1, 8.0), (2, 100.0), (2, 4.0), (3, 2.0))
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_curve(tmp_path / "log.jsonl", tmp_path / "curve.html")
    line = charts(tmp_path / "curve.html")[0].find("polyline")
    assert line is not None
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert heights == sorted(heights)  # downwards on the page
    assert len(heights) == 3


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_span_their_range(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert found[0] <= low + 1e-6 * abs(low) + 1e-30
    assert found[-1] >= low + width - 1e-6 * abs(low + width) - 1e-30
    assert 2 <= len(found) <= 9


def test_a_long_line_is_thinned_by_means() -> None:
    points = [(float(n), float(n % 2)) for n in range(3000)]
    few = thinned(points)
    assert len(few) == 300
    assert {y for _, y in few} == {0.5}
    assert few[-1][0] == 2999


@pytest.mark.parametrize("points", [[], [(1.0, float("nan"))]])
def test_a_figure_without_a_finite_value_draws_nothing(points: list[tuple[float, float]]) -> None:
    assert chart({"a": points}, "bits") == "<svg></svg>"

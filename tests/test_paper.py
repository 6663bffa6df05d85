"""The cost model against every figure the paper prints."""

from __future__ import annotations

import numpy as np
import pytest

from bltcli.bandwidth import BYTES_PER_PARAMETER, paper_gb
from bltcli.paper import PARAMETERS, TASKS, paper_rows


def test_the_tables_are_whole() -> None:
    rows = paper_rows()
    assert len(rows) == 223
    assert {row.task for row in rows} == set(TASKS)
    # the one row that the source lacks
    assert 2 * 4 * 28 - len(rows) == 1
    assert sum(row.model == "BLT" for row in rows) == 8


@pytest.mark.parametrize("size", ["1B", "3B"])
def test_the_formula_gives_the_papers_gigabytes(size: str) -> None:
    """Printed passes are whole numbers, averages of unprinted ones: none is further off than a pass and a half of
    encoder and global model, three in four are closer than half a percent."""
    rows = [row for row in paper_rows() if row.size == size]
    parameters = PARAMETERS[size]
    found = np.array([paper_gb({"decoder": r.decoder_nfe, "global": r.global_nfe}, parameters) for r in rows])
    printed = np.array([row.gigabytes for row in rows])
    a_pass = BYTES_PER_PARAMETER * (parameters["encoder"] + parameters["global"]) / 1e9
    assert np.abs(found - printed).max() < 1.5 * a_pass
    assert (np.abs(found / printed - 1) < 0.005).mean() > 0.75
    # negative control: with the encoder's and global model's passes halved, as ours are counted, it does not
    halved = np.array([paper_gb({"decoder": r.decoder_nfe, "global": r.global_nfe / 2}, parameters) for r in rows])
    assert (np.abs(halved / printed - 1) > 0.2).all()


def test_the_papers_savings_follow_from_its_gigabytes() -> None:
    """GB is the model's cost, the decrease is printed beside it: the same but for rounding, in nearly all rows."""
    rows = paper_rows()
    plain = {(row.size, row.task): row.gigabytes for row in rows if row.model == "BLT"}
    off = [
        abs(row.decrease - 100 * (1 - row.gigabytes / plain[row.size, row.task]))
        for row in rows
        if row.decrease is not None
    ]
    assert len(off) == 215
    assert np.quantile(off, 0.9) < 0.02

"""The same predictor over Ray: a cluster in this machine's processes gives the bytes of a plain run."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import numpy as np
import pytest

from tests.cli_support import bltcli, here, home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray"),
]
TINY = ("--model", "bundle", "--temperature", "1", "--batch-size", "4", "-q")


def ours(stderr: bytes) -> list[bytes]:
    """What bltcli says; Ray logs for itself there."""
    return [line for line in stderr.splitlines() if line.startswith(b"bltcli:")]


def test_two_actors_give_what_a_plain_run_gives() -> None:
    rng = np.random.default_rng(0)
    lines = [bytes(rng.integers(0, 256, int(n)).astype(np.uint8)).replace(b"\n", b"") for n in rng.integers(0, 90, 60)]
    (home() / "ray.txt").write_bytes(b"\n".join([*lines, b"x" * 5000, b"", b"end\0"]))
    args = ("translate", "--to", "fr", "-n", "12", *TINY, "--utf8", "raw", "ray.txt")
    plain = here(*args)
    spread = bltcli(*args, "--ray", "--ray-actors", "2", "--journal", "ray.journal")
    assert (spread.returncode, spread.stdout) == (plain.returncode, plain.stdout)
    assert ours(spread.stderr) == []
    assert bltcli(*args, "--journal", "ray.journal", "--resume").stdout == plain.stdout  # and goes on without Ray


def test_records_that_fail_are_carried() -> None:
    records: list[Any] = [{"id": n, "prompt": "x" * size} for n, size in enumerate((3, 5000, 7))]
    (home() / "ray.jsonl").write_text("\n".join(map(json.dumps, records)))
    args = ("batch", "-n", "9", *TINY, "ray.jsonl")
    plain = here(*args)
    spread = bltcli(*args, "--ray", "--ray-actors", "1")
    assert (spread.returncode, spread.stdout) == (4, plain.stdout)
    assert ours(spread.stderr) == ours(plain.stderr) != []


def test_the_predictor_is_a_function_for_map_batches() -> None:
    program = """
import logging, ray, ray.data
from bltcli.batch.predictor import Predictor
from bltcli.decoding.stop import Stop
ray.init(num_cpus=2, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
ray.data.DataContext.get_current().enable_progress_bars = False
texts = ray.data.from_items([{"number": n, "prompt": f"text {n}"} for n in range(8)])
found = texts.map_batches(
    Predictor, fn_constructor_kwargs={"model": MODEL, "stop": Stop(max_bytes=7), "rows": 4}, batch_size=4,
    compute=ray.data.ActorPoolStrategy(size=1),
)
rows = sorted(found.take_all(), key=lambda row: row["number"])
here = Predictor(model=MODEL, stop=Stop(max_bytes=7))({"prompt": [f"text {n}" for n in range(8)]})
assert [row["output"] for row in rows] == here["output"], (rows, here)
print("equal")
""".replace("MODEL", repr(str(home() / "bundle")))
    done = bltcli(program=[sys.executable, "-c", program])
    assert done.stdout == b"equal\n", done.stderr.decode()

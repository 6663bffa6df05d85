"""What every benchmark writes beside its rows, and how one generation is run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bltcli.bench.machine import environment
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.pipeline import Pipeline
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats

RESULTS = Path(__file__).parent / "results"


def run_texts(
    model: Pipeline, method: str, k: int, prompts: Sequence[bytes], new_bytes: int, sampler: Sampler
) -> tuple[list[bytes], DecodeStats]:
    """Continue `prompts`, one per row of `model`."""
    made = MethodOptions(method=method, draft_bytes=k).make(model)
    return generate_texts(model, made, prompts, sampler=sampler, stop=Stop(max_bytes=new_bytes))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """The same, each with machine, versions and command."""
    around = {**environment(), "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])}
    write_lines(path, ({**row, **around} for row in rows))

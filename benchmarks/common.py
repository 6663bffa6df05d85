"""What every benchmark writes beside its rows."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bltcli.bench.machine import environment

RESULTS = Path(__file__).parent / "results"


def command() -> str:
    """What was called. Files by name: folders are one's own."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """The same, each with machine, versions and command."""
    around = {**environment(), "command": command()}
    write_lines(path, ({**row, **around} for row in rows))


def add_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """The same, after the rows that are there."""
    earlier = path.read_text() if path.exists() else ""
    write_rows(path, rows)
    path.write_text(earlier + path.read_text())

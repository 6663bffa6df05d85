"""What every benchmark writes beside its rows, and how one generation is run."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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


def environment() -> dict[str, Any]:
    """Machine, versions and the command."""
    packages = ("bltcli", "onnxruntime", "numpy", "torch", "transformers")
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "versions": found,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object per row, each with the environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    around = environment()
    path.write_text("".join(json.dumps({**row, **around}, ensure_ascii=False) + "\n" for row in rows))

"""A model of released size, random weights: what exporting, loading and decoding it takes.

    python -m tests.full_size CHECKPOINT
    python benchmarks/full_size.py export CHECKPOINT BUNDLE --precision int8 [--check]
    python benchmarks/full_size.py decode BUNDLE [--contexts 100 1000 4000] [--bytes 100] [--threads 2]
    python benchmarks/full_size.py generate BUNDLE [--context 100] [--new-bytes 32]
    python benchmarks/full_size.py bench BUNDLE [--context 100] [--new-bytes 32]

Rows are added to benchmarks/results/full_size.jsonl. Peaks of memory are those of the process of `bltcli`, looked at
every 20 ms: anonymous memory, and file-backed pages (mapped weights and tables, which the system takes back when it
needs them). `decode` runs one byte after another on texts of several lengths in turns; patches of these checkpoints
have four bytes, so that a byte costs a pass of patcher, encoder and decoder and a quarter of one of the global model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from common import RESULTS, add_rows

from bltcli.bench.floor import Bandwidth
from bltcli.bench.run import engine_threads
from bltcli.bundle import open_bundle
from bltcli.graphs import GRAPHS
from bltcli.pipeline import Pipeline, open_model
from bltcli.stats import Work
from bltcli.vocab import IdArray, encode

BYTES_PER_PATCH = 4


def watch(command: Sequence[str]) -> dict[str, Any]:
    """Run bltcli to its end: seconds, and the most memory of each kind that it held."""
    peaks: dict[str, int] = {}
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "bltcli", *command]) as process:
        while process.poll() is None:
            for kind, pages in memory(process.pid).items():
                peaks[kind] = max(peaks.get(kind, 0), pages)
            time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    return {"seconds": time.perf_counter() - began, **{f"peak_{kind}_bytes": size for kind, size in peaks.items()}}


def memory(pid: int | str) -> dict[str, int]:
    """Bytes of anonymous and file-backed memory of a process; {} when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return {}
    found = re.findall(r"^Rss(Anon|File):\s+(\d+) kB", status, re.MULTILINE)
    return {kind.lower(): int(size) * 1024 for kind, size in found}


def export(checkpoint: Path, bundle: Path, precision: str, check: bool) -> dict[str, Any]:
    checked = "--check" if check else "--no-check"
    found = watch(["export", str(checkpoint), "-o", str(bundle), "--precision", precision, checked])
    files, parity = (open_bundle(bundle).manifest[key] for key in ("files", "parity"))
    size = sum(entry["bytes"] for entry in files.values())
    return {"step": "export", "precision": precision, **found, "bundle_bytes": size, "parity": parity}


def generate(bundle: Path, context: int, new_bytes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        prompt, stats = Path(folder) / "prompt", Path(folder) / "stats.json"
        prompt.write_bytes(random_bytes(context))
        options = ["--method", "ar", "--temperature", "1", "--ignore-eos", "-n", str(new_bytes)]
        files = [str(prompt), "--stats-json", str(stats)]
        found = watch(["generate", "--model", str(bundle), *options, *files])
        facts = json.loads(stats.read_text())
    kept = ("precision", "prompt_bytes", "new_bytes", "prefill_s", "wall_s", "bytes_per_patch", "nfe")
    return {"step": "generate", **{key: facts[key] for key in kept}, **found}


def bench(bundle: Path, context: int, new_bytes: int) -> dict[str, Any]:
    """`ar` as `bltcli bench` sees it: share of the bandwidth floor, share of the time outside the engines."""
    with tempfile.TemporaryDirectory() as folder:
        prompt, out = Path(folder) / "prompt", Path(folder) / "report.json"
        prompt.write_bytes(random_bytes(context))
        options = ["--run", "ar", "--temperature", "1", "--ignore-eos", "-n", str(new_bytes), "--repeats", "5"]
        watch(["bench", str(prompt), "--model", str(bundle), *options, "--format", "json", "-o", str(out)])
        report = json.loads(out.read_text())
    row = report["rows"][0]
    kept = ("setting", "precision", "bytes_per_s", "floor_share", "python_share", "bytes_per_patch", "prefill_s")
    return {"step": "bench", "context": context, **{key: row[key] for key in kept}, "bandwidth": report["bandwidth"]}


def decode(folder: Path, contexts: Sequence[int], count: int, threads: int) -> list[dict[str, Any]]:
    bundle = open_bundle(folder)
    before, began = memory("self"), time.perf_counter()
    models = [open_model(bundle, threads=threads)]
    loading = time.perf_counter() - began
    after = memory("self")
    for _ in contexts[1:]:  # texts of their own on the same weights
        models.append(models[-1].nursery)
    ids = encode(random_bytes(max(contexts) + count))
    for model, context in zip(models, contexts, strict=True):
        for start in range(0, context, model.prefill_rows):
            model.extend([ids[start : min(context, start + model.prefill_rows)]])
    used, resident = engine_threads(bundle, models[0].engine_name, threads), memory("self")
    bandwidth, probes = Bandwidth(used), list[dict[str, float]]()
    steps: list[list[Step]] = [[] for _ in contexts]
    for number in range(count):
        if number % 10 == 0:
            probes.append(bandwidth.probe())
        for place in range(len(contexts)):  # byte by byte in turns: what else the machine does meets all alike
            index = (place + number) % len(contexts)
            steps[index].append(one_byte(models[index], ids))
    fastest = median(max(probe.values()) for probe in probes)
    around = {
        "step": "decode",
        "precision": bundle.precision,
        "threads": used,
        "huge_pages": "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
        "loading_s": loading,
        "loaded_anon_bytes": after["anon"] - before["anon"],
        "weight_bytes": sum(bundle.weight_bytes.values()),
        "resident_bytes": resident,
        "bandwidth_bytes_per_s": fastest,
        "bandwidth_by_kernel": {kernel: median(probe[kernel] for probe in probes) for kernel in probes[0]},
    }
    rows = [{**around, "context": c, **costs(t, fastest)} for c, t in zip(contexts, steps, strict=True)]
    flat = [row["seconds_per_byte_at_4"] for row in rows]
    return [{**row, "over_shortest_context": cost / flat[0]} for row, cost in zip(rows, flat, strict=True)]


class Step(NamedTuple):
    work: Work
    seconds: float
    patches: int


def one_byte(model: Pipeline, ids: IdArray) -> Step:
    """Run the next byte: what the graphs did, seconds, patches closed."""
    model.ledger.work, start, patches = Work(), int(model.lengths[0]), int(model.patches[0])
    began = time.perf_counter()
    model.extend([ids[start : start + 1]])
    return Step(model.ledger.work, time.perf_counter() - began, int(model.patches[0]) - patches)


def costs(steps: Sequence[Step], bandwidth: float) -> dict[str, Any]:
    """Medians over bytes; a pass of the global model over those bytes that end a patch."""
    passes = {g: median([s.work.seconds[g] for s in steps if s.work.nfe[g]] or [0.0]) for g in GRAPHS}
    outside = [s.seconds - sum(s.work.seconds.values()) for s in steps]
    read = [s.work.weight_bytes + s.work.kv_bytes for s in steps]
    seconds = sum(s.seconds for s in steps)
    return {
        "bytes": len(steps),
        "bytes_per_patch": len(steps) / max(1, sum(s.patches for s in steps)),
        "seconds_per_byte": seconds / len(steps),
        "seconds_per_pass": passes,
        "seconds_per_byte_outside_engines": median(outside),
        "seconds_per_byte_at_4": sum(passes.values()) - passes["global"] * (1 - 1 / BYTES_PER_PATCH) + median(outside),
        "share_outside_engines": sum(outside) / seconds,
        "floor_share": sum(read) / bandwidth / seconds,
        "median_floor_share": median(r / bandwidth / s.seconds for r, s in zip(read, steps, strict=True)),
        "bytes_read_per_byte": sum(read) / len(steps),
    }


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(1).integers(0, 256, count, dtype=np.uint8).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("export")
    step.add_argument("checkpoint", type=Path)
    step.add_argument("bundle", type=Path)
    step.add_argument("--precision", default="int8")
    step.add_argument("--check", action="store_true")
    step = steps.add_parser("decode")
    step.add_argument("bundle", type=Path)
    step.add_argument("--contexts", type=int, nargs="+", default=[100, 1000, 4000])
    step.add_argument("--bytes", type=int, default=100)
    step.add_argument("--threads", type=int, default=0)
    for name in ("generate", "bench"):
        step = steps.add_parser(name)
        step.add_argument("bundle", type=Path)
        step.add_argument("--context", type=int, default=100)
        step.add_argument("--new-bytes", type=int, default=32)
    o = parser.parse_args()
    if o.step == "export":
        rows = [export(o.checkpoint, o.bundle, o.precision, o.check)]
    elif o.step == "decode":
        rows = decode(o.bundle, o.contexts, o.bytes, o.threads)
    else:
        rows = [{"generate": generate, "bench": bench}[o.step](o.bundle, o.context, o.new_bytes)]
    for row in rows:
        print(row, flush=True)
    add_rows(RESULTS / "full_size.jsonl", rows)


if __name__ == "__main__":
    main()

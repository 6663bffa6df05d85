"""Two checkouts of this program in turns on the same texts: what became faster, and whether the bytes stayed the same.

    python benchmarks/checkouts.py OLD [NEW] [--rows 1 16] [--run ar 'blt-s k=4'] [--repeats 7] [--out FILE.jsonl]

OLD and NEW (default: this one) are folders, such as `git worktree add ../old COMMIT` makes. Each runs in a process of
its own, one generation at a time, the built-in model on every row; ratios are taken turn by turn. Processor time is
less disturbed than wall time by what else the machine does. Exits 1 where bytes differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from common import RESULTS, write_rows

ROOT = Path(__file__).parent.parent
Answer = dict[str, Any]


def serve_checkout() -> None:
    """The worker: a generation per line of stdin, an answer per line of stdout. Uses what every version has."""
    from bltcli.bundle import open_bundle
    from bltcli.decoding.driver import generate_texts
    from bltcli.decoding.setting import parse_setting
    from bltcli.decoding.stop import Stop
    from bltcli.models import resolve_bundle
    from bltcli.pipeline import Pipeline, open_model
    from bltcli.sampling import Sampler

    bundle = open_bundle(resolve_bundle(None, None, lambda line: print(line, file=sys.stderr)))
    models: dict[tuple[int, int], Pipeline] = {}
    for line in sys.stdin:
        task = json.loads(line)
        key = task["rows"], task["threads"]
        if key not in models:
            models[key] = open_model(bundle, rows=key[0], threads=key[1])
        prompts = [f"en>fr\nOpen page {number} and select the language.\n".encode() for number in range(key[0])]
        method = parse_setting(task["run"])[0].make(models[key])
        sampler, stop = Sampler(ignore_eos=True), Stop(max_bytes=task["new_bytes"])
        began, used = perf_counter(), process_time()
        texts, stats = generate_texts(models[key], method, prompts, sampler=sampler, stop=stop)
        wall_s, cpu_s = perf_counter() - began, process_time() - used
        python_share = 1 - sum(stats.graph_s.values()) / wall_s
        sha256 = hashlib.sha256(b"\0".join(texts)).hexdigest()
        answer = {"wall_s": wall_s, "cpu_s": cpu_s, "python_share": python_share, "sha256": sha256}
        print(json.dumps(answer), flush=True)


def start(folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join(str(folder / part) for part in (".", "engines", "export"))
    command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(worker: subprocess.Popen[str], task: dict[str, Any]) -> Answer:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(json.dumps(task), file=worker.stdin, flush=True)
    answer: Answer = json.loads(worker.stdout.readline())
    return answer


def row_of(task: dict[str, Any], turns: list[tuple[Answer, Answer]]) -> dict[str, Any]:
    """Medians of both, and of old over new, turn by turn."""
    bytes_made = task["rows"] * task["new_bytes"]
    row: dict[str, Any] = dict(task)
    for place, name in enumerate(("old", "new")):
        row[f"{name}_bytes_per_s"] = bytes_made / median(turn[place]["wall_s"] for turn in turns)
        row[f"{name}_cpu_us_per_byte"] = median(turn[place]["cpu_s"] for turn in turns) / bytes_made * 1e6
        row[f"{name}_python_share"] = median(turn[place]["python_share"] for turn in turns)
    row["faster"] = median(old["wall_s"] / new["wall_s"] for old, new in turns)
    row["faster_cpu"] = median(old["cpu_s"] / new["cpu_s"] for old, new in turns)
    row["same_bytes"] = len({answer["sha256"] for turn in turns for answer in turn}) == 1
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--run", nargs="+", default=["ar", "blt-s k=4"])
    parser.add_argument("--new-bytes", type=int, default=192)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "checkouts.jsonl")
    o = parser.parse_args()
    workers = [start(folder) for folder in (o.old, o.new)]
    rows = []
    for run, count in product(o.run, o.rows):
        task = {"run": run, "rows": count, "new_bytes": o.new_bytes, "threads": o.threads}
        turns = [(ask(workers[0], task), ask(workers[1], task)) for _ in range(o.repeats + 1)][1:]
        rows.append(row_of(task, turns))
        print({name: round(v, 3) if isinstance(v, float) else v for name, v in rows[-1].items()}, flush=True)
    write_rows(o.out, rows)
    sys.exit(not all(row["same_bytes"] for row in rows))


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        serve_checkout()
    else:
        main()

"""100,000 lines through `bltcli translate`: peak memory as their number grows, then `kill -9` again and again.

python benchmarks/translate_many.py [--lines 10000 50000 100000] [--kills 20] [--model BUNDLE]

Without --model, the tiny random model of the tests: what is measured is everything around it. Sampled, so that each
byte depends on its noise too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, write_rows

ROOT = Path(__file__).parent.parent
WORDS = (
    "a",
    "to",
    "it",
    "one",
    "open",
    "file",
    "text.",
    "here,",
    "what?",
    "é",
    "Größe",
    "漢字",
    "🙂",
    "x=1",
    "<b>",
    "--",
)


def write_lines(path: Path, count: int) -> None:
    """`count` lines of up to six words, some of them empty; the first lines are those of a smaller count."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number in range(count):
            words = rng.choices(WORDS, k=rng.randint(0, 6))
            file.write(" ".join([*words, str(number)] if words else []) + "\n")


def tiny_bundle(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT))
    from bltcli_export.exporter import export_checkpoint
    from tests.tiny import tiny_checkpoint

    checkpoint = tiny_checkpoint(folder / "checkpoint", "lookup")
    export_checkpoint(checkpoint, folder / "bundle", precision="fp32", check=False)
    return folder / "bundle"


class Run:
    """`bltcli translate` of one file into a folder, in a process of its own."""

    def __init__(self, file: Path, out: Path, o: argparse.Namespace, *more: str) -> None:
        self.output, self.metrics = out / file.name, out.with_suffix(".prom")
        self.command = [
            sys.executable, "-m", "bltcli", "translate", "--model", str(o.model), "--to", "fr", "--from", "en",
            "-n", str(o.max_bytes), "--batch-size", str(o.batch_size), "--threads", "1", "--temperature", "1", "-q",
            "--metrics-file", str(self.metrics), "-o", str(out), str(file), *more,
        ]  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})

    def finish(self) -> dict[str, Any]:
        """Run to the end: seconds, peak memory in bytes, texts run, SHA-256 of the output."""
        began = time.perf_counter()
        code = self.start().wait()
        if code not in (0, 4):  # 4: translations that were cut off
            raise SystemExit(f"bltcli translate ended with {code}")
        lines = [line.split() for line in self.metrics.read_text().splitlines() if line.startswith("bltcli")]
        values = {name.removeprefix("bltcli_"): float(value) for name, value in lines}
        return {
            "wall_s": time.perf_counter() - began,
            "peak_rss_bytes": int(values["peak_rss_bytes"]),
            "texts_run": int(values["texts_total"]),
            "output_lines": self.output.read_bytes().count(b"\n"),
            "sha256": hashlib.sha256(self.output.read_bytes()).hexdigest(),
        }


def killed(run: Run, journal: Path, kills: int, seconds: float) -> list[int]:
    """Kill the run so many times, each after a random time; how many lines the journal had then. `seconds`: what a run
    takes that is left alone."""
    rng, found = random.Random(1), list[int]()
    while len(found) < kills:
        with run.start() as process:
            time.sleep(rng.uniform(0.1, 1.6 * seconds / kills))
            if process.poll() is not None:
                raise SystemExit(f"the run ended after {len(found)} kills; use a larger input, or fewer kills")
            process.kill()
        found.append(journal.read_bytes().count(b"\n") if journal.exists() else 0)
        assert not run.output.exists(), "an output was there before it was whole"
        print(f"kill {len(found)}: {found[-1]} lines in the journal", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 50_000, 100_000])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--max-bytes", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "translate_many.jsonl")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        facts = {"model": "tiny" if o.model is None else o.model.name, "max_bytes": o.max_bytes,
                 "batch_size": o.batch_size}  # fmt: skip
        o.model = o.model or tiny_bundle(folder)
        rows = []
        for count in o.lines:
            write_lines(folder / f"{count}.txt", count)
            found = Run(folder / f"{count}.txt", folder / f"out{count}", o).finish()
            rows.append({"run": "whole", "lines": count, **facts, **found})
            print(
                f"{count} lines: peak memory {found['peak_rss_bytes'] / 1e6:.0f} MB, {found['wall_s']:.0f} s",
                flush=True,
            )
        whole, journal = rows[-1], folder / "journal.jsonl"
        file = folder / f"{whole['lines']}.txt"
        run = Run(file, folder / "killed", o, "--journal", str(journal), "--resume")
        at = killed(run, journal, o.kills, whole["wall_s"])
        found = run.finish()
        entries = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
        kept = {(entry["n"], entry.get("part", 0)) for entry in entries}
        row = {
            "run": "killed", "lines": whole["lines"], **facts, **found, "journal_lines_at_kill": at,
            "identical": found["sha256"] == whole["sha256"], "done_twice": len(entries) - len(kept),
            "left_in_folder": [path.name for path in (folder / "killed").iterdir() if path != run.output],
        }  # fmt: skip
        rows.append(row)
        print(
            f"{len(at)} kills, then to the end: output {'identical' if row['identical'] else 'DIFFERENT'}, "
            f"{row['done_twice']} texts in the journal twice, peak memory {found['peak_rss_bytes'] / 1e6:.0f} MB"
        )
    write_rows(o.out, rows)


if __name__ == "__main__":
    main()

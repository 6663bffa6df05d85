"""What batches of texts gain: translations into French, batch sizes and methods in turns, outputs compared.

python benchmarks/batching.py LINES_OF_ENGLISH [-m BUNDLE] [--run SETTING]... [--out FILE.jsonl]
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from common import RESULTS, write_rows

from bltcli.batch.lines import Lines, opener
from bltcli.batch.ordering import AHEAD_PER_ROW, Window
from bltcli.batch.predictor import Predictor
from bltcli.batch.run import run_items
from bltcli.batch.translate import LineSource, piece_bytes, translation
from bltcli.decoding.setting import parse_setting
from bltcli.prompts import Prompts
from bltcli.stats import DecodeStats

SIZES = (1, 4, 16, 32)
SPLIT_BYTES = 400


def translate(predictor: Predictor, file: Path, max_bytes: int) -> tuple[list[bytes], DecodeStats, float, float]:
    """The translations of the lines of `file`, and what they took: counts, seconds, processor seconds."""
    prompts, stats = Prompts("en>fr"), DecodeStats()
    limit = piece_bytes(predictor.bundle, prompts, SPLIT_BYTES, max_bytes)
    predictor.open(limit + max_bytes)
    began, used = perf_counter(), process_time()
    source = LineSource(Lines([opener(file)]), prompts, limit=limit, max_bytes=max_bytes)
    window = Window(source, ahead=AHEAD_PER_ROW * predictor.rows)
    items = run_items(window, lambda requests: predictor.results(requests, stats))
    texts = [translation(item, on_error="empty", raw=True).output for item in items]
    return texts, stats, perf_counter() - began, process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("-m", "--model", default=None)
    parser.add_argument("--max-bytes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", action="append", default=None, help="setting, such as 'blt-s k=4'; repeatable")
    parser.add_argument("--out", type=Path, default=RESULTS / "batching.jsonl")
    o = parser.parse_args()
    runs = o.run or ["ar", "blt-s k=8", "blt-s"]
    predictors = {
        (run, rows): Predictor(model=o.model, method=parse_setting(run)[0], rows=rows)
        for run, rows in product(runs, SIZES)
    }
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in predictors}
    texts, counts = {}, {}
    for _ in range(o.repeats):
        for key, predictor in predictors.items():
            texts[key], counts[key], wall_s, cpu_s = translate(predictor, o.file, o.max_bytes)
            seconds[key].append((wall_s, cpu_s))
            print(f"{key[0]}, batch {key[1]}: {wall_s:.1f} s, {cpu_s:.1f} s of a processor", flush=True)
    expected = texts[runs[0], 1]
    rows = []
    for (run, size), stats in counts.items():
        wall_s, cpu_s = (median(column) for column in zip(*seconds[run, size], strict=True))
        rows.append(
            {
                "method": run,
                "batch": size,
                "lines": len(expected),
                "new_bytes": stats.new_bytes,
                "bytes_per_s": stats.new_bytes / wall_s,
                "bytes_per_cpu_s": stats.new_bytes / cpu_s,
                "over_batch_1": median(s[0] for s in seconds[run, 1]) / wall_s,
                "over_batch_1_cpu": median(s[1] for s in seconds[run, 1]) / cpu_s,
                "wall_s": [s[0] for s in seconds[run, size]],
                "equal_lines": sum(a == b for a, b in zip(texts[run, size], expected, strict=True)),
                "rounds": stats.rounds,
                "acceptance_rate": stats.acceptance_rate,
                "nfe": stats.decode.passes(),
                "prefill_s": stats.prefill_s,
            }
        )
        found = rows[-1]
        print(
            f"{run:10} batch {size:2}: {found['bytes_per_s']:6.0f} bytes/s ({found['over_batch_1']:.2f}x), "
            f"per processor second {found['bytes_per_cpu_s']:6.0f} ({found['over_batch_1_cpu']:.2f}x), "
            f"{found['equal_lines']} of {len(expected)} lines equal to {runs[0]} at batch 1"
        )
    write_rows(o.out, rows)


if __name__ == "__main__":
    main()

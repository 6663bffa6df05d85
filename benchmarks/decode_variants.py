"""What the choices in the decode loop are worth: the same batch with each of them changed, in turns, bytes compared.

    python benchmarks/decode_variants.py [--rows 16] [--new-bytes 128] [--repeats 7] [--out FILE.jsonl]

Variants: steps in which caches grow, the global model for all rows instead of those that closed a patch, two rows
per text in every call, one thread, a batch per core side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common import RESULTS, write_rows

from bltcli import passes, pipeline
from bltcli.bundle import Bundle, open_bundle
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import Request
from bltcli.decoding.lanes import serve_lanes
from bltcli.decoding.stop import Stop
from bltcli.lanes import open_lanes
from bltcli.models import resolve_bundle
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli_engines.onnxruntime_engine import OrtRuntime


@dataclass(frozen=True)
class Variant:
    name: str
    slot_step: int = OrtRuntime.slot_step
    few: int = passes.FEW
    threads: int = 0
    pairs: bool = True
    lanes: bool = False

    def open(self, bundle: Bundle, rows: int) -> list[pipeline.Pipeline]:
        OrtRuntime.slot_step, passes.FEW = self.slot_step, self.few  # read when a model is opened
        if self.lanes:
            return open_lanes(bundle, rows=rows)
        model = pipeline.open_model(bundle, rows=rows, threads=self.threads)
        model._pairs = model._pairs and self.pairs
        return [model]


VARIANTS = (
    Variant("as it is"),
    *(Variant(f"caches grow by {step}", slot_step=step) for step in (16, 64, 128)),
    Variant("global model for all rows", few=2**30),
    Variant("two rows per text", pairs=False),
    Variant("one thread", threads=1),
    Variant("a batch per core", lanes=True),
)


def run(models: Sequence[pipeline.Pipeline], requests: Sequence[Request]) -> tuple[dict[int, bytes], float]:
    """The texts by number, and seconds."""
    pairs = [(model, MethodOptions(method="ar").make(model)) for model in models]
    texts, stats = dict.fromkeys(range(len(requests)), b""), DecodeStats()
    for chunk in serve_lanes(pairs, requests, sampler=Sampler(ignore_eos=True), stats=stats):
        texts[chunk.record] += chunk.data
    return texts, stats.wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--new-bytes", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "decode_variants.jsonl")
    o = parser.parse_args()
    bundle = open_bundle(resolve_bundle(None, None, lambda line: print(line, file=sys.stderr)))
    models = [(variant, variant.open(bundle, o.rows)) for variant in VARIANTS]
    requests = [
        Request(number, f"en>fr\nOpen page {number} and select the language.\n".encode(), Stop(max_bytes=o.new_bytes))
        for number in range(o.rows)
    ]
    seconds: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    texts: dict[str, dict[int, bytes]] = {}
    for turn in range(o.repeats + 1):
        for variant, own_models in models:
            texts[variant.name], wall_s = run(own_models, requests)
            if turn:  # the first one warms up
                seconds[variant.name].append(wall_s)
    own = seconds[VARIANTS[0].name]
    rows = [
        {
            "variant": name,
            "rows": o.rows,
            "bytes_per_s": o.rows * o.new_bytes / median(found),
            "time_over_as_it_is": median(other / mine for other, mine in zip(found, own, strict=True)),
            "same_bytes": texts[name] == texts[VARIANTS[0].name],
        }
        for name, found in seconds.items()
    ]
    for row in rows:
        print(row, flush=True)
    write_rows(o.out, rows)
    sys.exit(not all(row["same_bytes"] for row in rows))


if __name__ == "__main__":
    main()

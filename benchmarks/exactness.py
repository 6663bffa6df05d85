"""blt-s against ar on the built-in model: every byte, greedy and sampled, for many prompts and draft lengths.

    python benchmarks/exactness.py [--prompts 200] [--new-bytes 256] [--out FILE.jsonl]

Exits 1 at any difference at all. Prompts: valid UTF-8 in several scripts, code, random bytes, empty.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, run_texts, write_rows

from bltcli.bundle import open_bundle
from bltcli.models import resolve_bundle
from bltcli.pipeline import open_model
from bltcli.sampling import Sampler

BATCH = 20
DRAFT_BYTES = (1, 2, 4, 8, 16)
SAMPLERS = {
    "greedy": Sampler(ignore_eos=True),
    "sampled": Sampler(temperature=0.9, top_p=0.95, seed=5, ignore_eos=True),
}
SENTENCES = (
    "The quick brown fox jumps over the lazy dog. ",
    "Le ministre peut, par arrêté, modifier les conditions. ",
    "Die Übersetzung wird Byte für Byte erzeugt; größere Blöcke später. ",
    "Δεν υπάρχει λεξικό. 日本語のテキスト。 \U0001f600\U0001f680 e\u0301 ",
    "def first(items):\n    for item in items:\n        return item\n",
    '<p class="x">1 &lt; 2</p>\n{"key": [1, 2.5e-3, null]}\n',
)
FORMATS = (b"en>fr\n%b\n", b"de>en\n%b\n", b"%b")


def prompts(count: int) -> list[bytes]:
    """A fifth random bytes, a few empty, the rest pieces of text and code of 1 to 300 bytes, cut anywhere."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        if number % 40 == 0:
            found.append(b"")
        elif number % 5 == 0:
            found.append(rng.bytes(int(rng.integers(1, 200))))
        else:
            text = (SENTENCES[number % len(SENTENCES)] * 8).encode()
            piece = text[int(rng.integers(0, 40)) :][: int(rng.integers(1, 300))]
            found.append(FORMATS[number % 3] % piece.replace(b"\n", b" ") if number % 2 else piece)
    return found


def check(count: int, new_bytes: int) -> Iterator[dict[str, Any]]:
    """One row per setting."""
    bundle = open_bundle(resolve_bundle(None, None, lambda line: print(line, file=sys.stderr)))
    everything = prompts(count)
    batches = [everything[start : start + BATCH] for start in range(0, count, BATCH)]
    models = {size: open_model(bundle, rows=size) for size in {len(batch) for batch in batches}}
    for name, sampler in SAMPLERS.items():
        plain = [text for b in batches for text in run_texts(models[len(b)], "ar", 1, b, new_bytes, sampler)[0]]
        for k in DRAFT_BYTES:
            runs = [run_texts(models[len(b)], "blt-s", k, b, new_bytes, sampler) for b in batches]
            texts = [text for found, _ in runs for text in found]
            drafted, accepted = (sum(getattr(s, field) for _, s in runs) for field in ("drafted", "accepted"))
            yield {
                "sampling": name,
                "k": k,
                "prompts": count,
                "bytes": sum(map(len, texts)),
                "different_texts": sum(a != b for a, b in zip(plain, texts, strict=True)),
                "acceptance_rate": round(accepted / drafted, 4),
                "bundle_sha256": bundle.sha256,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--new-bytes", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS / "exactness.jsonl")
    options = parser.parse_args()
    rows = []
    for row in check(options.prompts, options.new_bytes):
        rows.append(row)
        print({key: value for key, value in row.items() if key != "bundle_sha256"}, flush=True)
    write_rows(options.out, rows)
    sys.exit(any(row["different_texts"] for row in rows))


if __name__ == "__main__":
    main()

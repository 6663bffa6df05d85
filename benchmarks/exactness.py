"""Methods that verify against ar: every byte, greedy and sampled, for many prompts, draft lengths and blocks.

    python benchmarks/exactness.py [-m BUNDLE] [--prompts 200] [--new-bytes 256] [--out FILE.jsonl]
    python benchmarks/exactness.py [-m BUNDLE] --lines FILE --direction FROM>TO [--new-bytes 256] [--out FILE.jsonl]
        [--sampling greedy|sampled] [--rows 16]

Exits 1 at any difference at all. Prompts: valid UTF-8 in several scripts, code, random bytes, empty, past the end of
text; or the lines of a file, to be translated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_rows

from bltcli.bundle import open_bundle
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.setting import parse_setting
from bltcli.decoding.stop import Stop
from bltcli.models import resolve_bundle
from bltcli.pipeline import Pipeline, open_model
from bltcli.prompts import Prompts
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats

Row = dict[str, Any]

DRAFTED = tuple(f"blt-s k={k}" for k in (1, 2, 4, 8, 16))
IN_BLOCKS = tuple(f"blt-dv block={block}" for block in (4, 8, 16))
SAMPLING: dict[str, Row] = {"greedy": {}, "sampled": {"temperature": 0.9, "top_p": 0.95, "seed": 5}}
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


def check(
    model: Pipeline, runs: Sequence[str], texts: list[bytes], new_bytes: int, ways: Sequence[str], **sampling: Any
) -> Iterator[Row]:
    """One row per setting and way of sampling."""
    stop = Stop(max_bytes=new_bytes)
    for name in ways:
        sampler = Sampler(**sampling, **SAMPLING[name])

        def written(run: str, sampler: Sampler = sampler) -> tuple[list[bytes], DecodeStats]:
            return generate_texts(model, parse_setting(run)[0].make(model), texts, sampler=sampler, stop=stop)

        plain, _ = written("ar")
        for run in runs:
            found, stats = written(run)
            yield {
                "sampling": name,
                "setting": run,
                "prompts": len(texts),
                "bytes": sum(map(len, found)),
                "different_texts": sum(a != b for a, b in zip(plain, found, strict=True)),
                "acceptance_rate": None if stats.acceptance_rate is None else round(stats.acceptance_rate, 4),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--model", default=None)
    parser.add_argument("--precision", default=None, help="of the built-in model")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--lines", type=Path)
    parser.add_argument("--direction")
    parser.add_argument("--new-bytes", type=int, default=256)
    parser.add_argument("--rows", type=int, default=16, help="texts per call")
    parser.add_argument("--run", action="append", help="setting, such as 'blt-s k=4'; repeatable, in place of all")
    parser.add_argument("--sampling", choices=SAMPLING, help="in place of both")
    parser.add_argument("--out", type=Path, default=RESULTS / "exactness.jsonl")
    o = parser.parse_args()
    bundle = open_bundle(resolve_bundle(o.model, o.precision, lambda line: print(line, file=sys.stderr)))
    model = open_model(bundle, rows=o.rows)
    runs = o.run or (*DRAFTED, *(IN_BLOCKS if model.block_size else ()))
    texts = (
        [Prompts(o.direction).prompt(line.decode()) for line in o.lines.read_bytes().splitlines()] if o.lines else None
    )
    rows = []
    ways = [o.sampling] if o.sampling else list(SAMPLING)
    for row in check(model, runs, texts or prompts(o.prompts), o.new_bytes, ways, ignore_eos=texts is None):
        rows.append(row | {"precision": bundle.precision, "bundle_sha256": bundle.sha256})
        print(row, flush=True)
    write_rows(o.out, rows)
    sys.exit(any(row["different_texts"] for row in rows))


if __name__ == "__main__":
    main()

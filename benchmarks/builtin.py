"""The built-in model: plain decoding against self-speculation, in one interleaved run.

    python benchmarks/builtin.py [--new-bytes 256] [--repeats 5] [--out FILE.jsonl]

Speed-ups are quoted against the fastest plain decoding there is (ar --no-exact: single rows, unpadded). Every row says
whether its bytes equal those of `ar`. Greedy, end of text ignored, so that all rows do the same work.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from common import RESULTS, run_texts, write_rows

from bltcli.bandwidth import paper_gb
from bltcli.bundle import open_bundle
from bltcli.models import resolve_bundle
from bltcli.pipeline import open_model
from bltcli.sampling import Sampler

PROMPTS = (
    b"It is a truth universally acknowledged, that ",
    b"en>fr\nOpen the settings page and select the language.\n",
    b"de>en\nDie Datei konnte nicht ge\xc3\xb6ffnet werden.\n",
    b"fr>en\nLe ministre peut modifier les conditions du permis.\n",
)
SETTINGS = [("ar", 1, False), ("ar", 1, True)] + [("blt-s", k, True) for k in (1, 2, 4, 8, 16)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--new-bytes", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "builtin.jsonl")
    options = parser.parse_args()
    bundle = open_bundle(resolve_bundle(None, None, print))
    models = {exact: open_model(bundle, exact=exact) for exact in (True, False)}
    sampler = Sampler(ignore_eos=True)
    seconds: dict[tuple[str, int, bool], list[float]] = {setting: [] for setting in SETTINGS}
    texts, stats = {}, {}
    for repeat in range(options.repeats + 1):  # the first is the warm-up
        for setting in SETTINGS:
            method, k, exact = setting
            runs = [run_texts(models[exact], method, k, [p], options.new_bytes, sampler) for p in PROMPTS]
            texts[setting] = [text for found, _ in runs for text in found]
            stats[setting] = [s for _, s in runs]
            if repeat:
                seconds[setting].append(sum(s.wall_s for s in stats[setting]))
    fastest_ar = min(statistics.median(seconds[s]) for s in SETTINGS if s[0] == "ar")
    total = options.new_bytes * len(PROMPTS)
    rows = []
    for setting in SETTINGS:
        method, k, exact = setting
        found = stats[setting]
        nfe = {g: sum(s.decode.nfe[g] for s in found) for g in ("patcher", "encoder", "global", "decoder")}
        drafted, accepted = sum(s.drafted for s in found), sum(s.accepted for s in found)
        median = statistics.median(seconds[setting])
        rows.append(
            {
                "method": method + (f" -k {k}" if method != "ar" else "") + ("" if exact else " --no-exact"),
                "bytes_per_s": round(total / median, 1),
                "speedup_over_fastest_ar": round(fastest_ar / median, 3),
                "bytes_equal_ar": texts[setting] == texts["ar", 1, True],
                "nfe_per_byte": {g: round(n / total, 3) for g, n in nfe.items()},
                "paper_gb": round(paper_gb(nfe, bundle.parameters), 4),
                "acceptance_rate": round(accepted / drafted, 3) if drafted else None,
                "bytes_per_patch": round(sum(s.patch_bytes for s in found) / sum(s.patches for s in found), 2),
                "prefill_s": round(sum(s.prefill_s for s in found), 4),
                "seconds": [round(t, 4) for t in seconds[setting]],
                "new_bytes": total,
                "bundle_sha256": bundle.sha256,
            }
        )
        row = rows[-1]
        print(
            f"{row['method']:16} {row['bytes_per_s']:8} bytes/s  x{row['speedup_over_fastest_ar']:<6} equal "
            f"{row['bytes_equal_ar']!s:5} acceptance {row['acceptance_rate']} nfe {row['nfe_per_byte']}"
        )
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()

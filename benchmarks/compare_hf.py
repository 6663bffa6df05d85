"""bltcli against Hugging Face's generate on the same random weights, in one run.

    python benchmarks/compare_hf.py [--new-bytes 64] [--repeats 3] [--out FILE.jsonl]

The checkpoint is random, 34 M parameters, in Hugging Face form; its threshold is calibrated to about 4 bytes per patch
(at the released threshold a random model makes patches of one byte). Hugging Face runs with use_cache=False, the only
setting whose output is right. The prompt's cost is counted on both sides, and every row states whether the bytes are
equal. Runs are interleaved; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, run_texts, write_rows
from transformers import BltConfig, BltForCausalLM

from bltcli.bundle import Bundle, open_bundle
from bltcli.checkpoint import open_checkpoint
from bltcli.pipeline import open_model
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli.vocab import encode
from bltcli_export.exporter import export_checkpoint

PROMPT_BYTES = (50, 500, 1500)
Row = dict[str, Any]
Runner = Callable[[bytes, int], tuple[bytes, DecodeStats]]


def stack(width: int, layers: int, heads: int, ffn: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
    }


def random_model() -> BltForCausalLM:
    """34 M parameters in the proportions of the released models."""
    torch.manual_seed(0)
    local = {"hidden_size_global": 512, "cross_attn_k": 2}
    config = BltConfig(
        cross_attn_k=2,
        encoder_hash_byte_group_vocab=4000,
        patcher_config=stack(256, 4, 4, 704),
        encoder_config=stack(256, 1, 4, 704) | local,
        decoder_config=stack(256, 4, 4, 704) | local,
        global_config=stack(512, 6, 8, 1408),
    )
    model = BltForCausalLM(config).eval()
    with torch.no_grad():
        entropies, _, _ = model.model.patcher(torch.from_numpy(encode(prompt(1500))[None]), patch_size=4, threshold=0.0)
    model.config.patching_threshold = float(entropies.quantile(0.75))
    return model


def prompt(size: int) -> bytes:
    return np.random.default_rng(1).integers(32, 127, size, dtype=np.uint8).tobytes()


def hugging_face(model: BltForCausalLM, data: bytes, new_bytes: int) -> bytes:
    ids = torch.from_numpy(encode(data)[None])
    with torch.inference_mode():
        out = model.generate(
            ids, max_new_tokens=new_bytes, do_sample=False, use_cache=False, suppress_tokens=[0, 1, 2, 3]
        )
    return bytes(i - 4 for i in out[0, ids.shape[1] :].tolist())


def run_ours(bundle: Bundle, method: str, k: int, exact: bool) -> Runner:
    model = open_model(bundle, exact=exact)

    def run(data: bytes, new_bytes: int) -> tuple[bytes, DecodeStats]:
        texts, stats = run_texts(model, method, k, [data], new_bytes, Sampler(ignore_eos=True))
        return texts[0], stats

    return run


def compare(model: BltForCausalLM, contenders: dict[str, Runner], size: int, new_bytes: int, repeats: int) -> list[Row]:
    """Rows of one prompt length, Hugging Face's first."""
    seconds: dict[str, list[float]] = {name: [] for name in ("hugging face", *contenders)}
    outputs: dict[str, bytes] = {}
    per_patch = None
    for _ in range(repeats):
        began = time.perf_counter()
        outputs["hugging face"] = hugging_face(model, prompt(size), new_bytes)
        seconds["hugging face"].append(time.perf_counter() - began)
        for name, run in contenders.items():
            began = time.perf_counter()
            outputs[name], stats = run(prompt(size), new_bytes)
            seconds[name].append(time.perf_counter() - began)
            per_patch = stats.bytes_per_patch
    baseline = statistics.median(seconds["hugging face"])
    return [
        {
            "prompt_bytes": size,
            "new_bytes": new_bytes,
            "engine": name,
            "bytes_per_s": round(new_bytes / statistics.median(times), 2),
            "speedup": round(baseline / statistics.median(times), 2),
            "bytes_equal": outputs[name] == outputs["hugging face"],
            "seconds": [round(t, 4) for t in times],
            "bytes_per_patch": per_patch and round(per_patch, 2),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--new-bytes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "compare_hf.jsonl")
    options = parser.parse_args()
    model = random_model()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/checkpoint")
        checkpoint = open_checkpoint(Path(folder) / "checkpoint")
        bundle = open_bundle(export_checkpoint(checkpoint, Path(folder) / "bundle", precision="fp32"))
        contenders = {
            "ar --no-exact": run_ours(bundle, "ar", 1, exact=False),
            "ar": run_ours(bundle, "ar", 1, exact=True),
            "blt-s -k 4": run_ours(bundle, "blt-s", 4, exact=True),
        }
        for size in PROMPT_BYTES:
            for row in compare(model, contenders, size, options.new_bytes, options.repeats):
                rows.append(row)
                speed = f"{row['bytes_per_s']:9.1f} bytes/s  x{row['speedup']:<7}"
                print(f"{size:5} {row['engine']:14} {speed} equal {row['bytes_equal']}")
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()

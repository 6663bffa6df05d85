"""bltcli against Hugging Face's generate on the same random weights, in one run.

    python benchmarks/compare_hf.py [--new-bytes 256] [--prompts 50 500 1500] [--repeats 3] [--out FILE.jsonl]

The checkpoint is random, 34 M parameters, in Hugging Face form; its threshold is calibrated to about 4 bytes per patch
(at the released threshold a random model makes patches of one byte). Hugging Face runs with use_cache=False, the only
setting whose output is right. The prompt's cost is counted on both sides, and every row states whether the bytes are
equal. Runs are interleaved; the median counts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, write_lines
from transformers import BltConfig, BltForCausalLM

from bltcli.bench.formats import as_text
from bltcli.bench.hugging_face import HuggingFace
from bltcli.bench.measure import Task
from bltcli.bench.run import run_bench
from bltcli.bench.settings import parse_settings
from bltcli.bundle import open_bundle
from bltcli.checkpoint import open_checkpoint
from bltcli.decoding.stop import Stop
from bltcli.sampling import Sampler
from bltcli.vocab import encode
from bltcli_export.exporter import export_checkpoint

PROMPT_BYTES = (50, 500, 1500)
SETTINGS = ("ar", "ar exact=no", "blt-s k=4", "ar engine=torch")


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
    patcher = model.model.patcher
    assert patcher is not None
    with torch.no_grad():
        entropies, _, _ = patcher(torch.from_numpy(encode(prompt(1500))[None]), patch_size=4, threshold=0.0)
    found = entropies.flatten().sort().values
    at = len(found) * 3 // 4
    model.config.patching_threshold = float(found[at - 1 : at + 1].mean())  # between two: no entropy of ours is a tie
    return model


def prompt(size: int) -> bytes:
    return np.random.default_rng(1).integers(32, 127, size, dtype=np.uint8).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--new-bytes", type=int, default=256)
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPT_BYTES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "compare_hf.jsonl")
    options = parser.parse_args()
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, stop = Path(folder) / "checkpoint", Stop(max_bytes=options.new_bytes)
        random_model().save_pretrained(checkpoint)
        exported = export_checkpoint(open_checkpoint(checkpoint), Path(folder) / "bundle", precision="fp32")
        bundle = open_bundle(exported)
        for size in options.prompts:
            task = Task((prompt(size),), Sampler(ignore_eos=True), stop)
            theirs = HuggingFace(checkpoint, bundle.manifest, task)
            report = run_bench(
                parse_settings(SETTINGS), lambda _: bundle, task, repeats=options.repeats, others=[theirs]
            )
            print(as_text(report), flush=True)
            reports.append(report)
    write_lines(options.out, reports)


if __name__ == "__main__":
    main()

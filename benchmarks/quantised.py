"""What quantised weights cost in quality and gain in size and speed, on the built-in model.

    python benchmarks/quantised.py TEXT_FILE... [--bytes 20000] [--repeats 5] [--new-bytes 128] [--out FILE.jsonl]

Rows of kind "precision": bits per byte of each text (teacher-forced, pieces of 1000 bytes), how often the likeliest
byte and the end of a patch are those of fp32, greedy texts beside those of fp32, whether blt-s writes the bytes of ar,
bytes on disk. Rows of kind "speed": `bltcli bench` over all precisions in turns. Rows of kind "scheme": bits per byte
in PyTorch, activations in float32, with weights rounded with and without zero points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_rows

from bltcli.bench.agreement import agreement
from bltcli.bench.measure import Task
from bltcli.bench.run import run_bench
from bltcli.bench.settings import parse_settings
from bltcli.bundle import Bundle, open_bundle
from bltcli.checkpoint import open_checkpoint
from bltcli.decoding.driver import generate_texts, run_whole
from bltcli.decoding.setting import parse_setting
from bltcli.decoding.stop import Stop
from bltcli.models import builtin_checkpoint, resolve_bundle
from bltcli.nn import Blt
from bltcli.nn.loading import load_blt
from bltcli.pipeline import open_model
from bltcli.quantised import STEPS, block_of, rounded
from bltcli.sampling import FloatArray, Sampler
from bltcli.vocab import IdArray, encode

PRECISIONS = ("fp32", "fp16", "int8", "int4")
PIECE = 1000
PROMPTS = Path(__file__).parent / "prompts.jsonl"
GREEDY = Sampler(ignore_eos=True)


def pieces(file: Path, size: int) -> list[IdArray]:
    text = file.read_bytes()[:size]
    return [encode(text[start : start + PIECE]) for start in range(0, len(text), PIECE)]


def teacher_forced(bundle: Bundle, texts: Sequence[IdArray]) -> tuple[float, IdArray, list[list[int]]]:
    """Bits per byte, the likeliest id at every place, and the patch starts of each text."""
    bits, likeliest, starts = 0.0, [], []
    for ids in texts:
        model, found = open_model(bundle), []
        for parts, logits in run_whole(model, {0: ids}):
            found.append(logits[0, : len(parts[0])].copy())
        scores = np.concatenate(found)
        bits += bits_of(scores, ids)
        likeliest.append(scores.argmax(-1))
        starts.append(model.patch_starts(0))
    return bits / sum(len(ids) - 1 for ids in texts), np.concatenate(likeliest), starts


def bits_of(logits: FloatArray, ids: IdArray) -> float:
    """Of all ids but the first, given logits [len(ids), 260]."""
    scores = logits[:-1].astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return float(-log_p[np.arange(len(ids) - 1), ids[1:]].sum() / np.log(2))


def quality(files: Sequence[Path], size: int, prompts: Sequence[bytes], new_bytes: int) -> Iterator[dict[str, Any]]:
    texts = {file.name: pieces(file, size) for file in files}
    reference: dict[str, tuple[float, IdArray, list[list[int]]]] = {}
    plain: list[bytes] = []
    for precision in PRECISIONS:
        bundle = open_bundle(resolve_bundle(None, precision, print))
        found = {name: teacher_forced(bundle, ids) for name, ids in texts.items()}
        ar, drafted = (greedy(bundle, method, prompts, new_bytes) for method in ("ar", "blt-s"))
        reference, plain = reference or found, plain or ar
        same = [found[name][1] == reference[name][1] for name in texts]
        flips = [set(a) ^ set(b) for n in texts for a, b in zip(found[n][2], reference[n][2], strict=True)]
        yield {
            "kind": "precision",
            "precision": precision,
            "bundle_bytes": sum(entry["bytes"] for entry in bundle.manifest["files"].values()),
            "weight_bytes": bundle.weight_bytes,
            "bits_per_byte": {name: round(bits, 4) for name, (bits, _, _) in found.items()},
            "bytes": {name: sum(len(ids) - 1 for ids in texts[name]) for name in texts},
            "likeliest_byte_as_fp32": round(float(np.concatenate(same).mean()), 4),
            "patch_boundaries_not_as_fp32": sum(map(len, flips)),
            "greedy_beside_fp32": agreement(ar, plain).to_dict(),
            "blt_s_equals_ar": drafted == ar,
            "parity": bundle.manifest["parity"],
            "bundle_sha256": bundle.sha256,
        }


def greedy(bundle: Bundle, method: str, prompts: Sequence[bytes], new_bytes: int) -> list[bytes]:
    model, stop = open_model(bundle), Stop(max_bytes=new_bytes)
    made = parse_setting(method)[0].make(model)
    return [generate_texts(model, made, [prompt], sampler=GREEDY, stop=stop)[0][0] for prompt in prompts]


def speed(prompts: Sequence[bytes], new_bytes: int, repeats: int) -> Iterator[dict[str, Any]]:
    names = ",".join(PRECISIONS)
    settings = parse_settings([f"ar precision={names}", f"blt-s k=8 precision={names}"])
    bundles = {precision: open_bundle(resolve_bundle(None, precision, print)) for precision in PRECISIONS}
    task = Task(tuple(prompts), GREEDY, Stop(max_bytes=new_bytes))
    report = run_bench(settings, lambda precision: bundles[precision or "fp32"], task, repeats=repeats)
    fp32 = next(row for row in report["rows"] if row["setting"] == "ar precision=fp32")
    kept = ("setting", "precision", "bytes_per_s", "seconds", "acceptance_rate", "floor_share", "python_share")
    for row in report["rows"]:
        pairs = zip(fp32["seconds"], row["seconds"], strict=True)
        ratios = [a / fp32["new_bytes"] / (b / row["new_bytes"]) for a, b in pairs]
        chosen = {key: row[key] for key in kept}
        yield {
            "kind": "speed",
            **chosen,
            "over_ar_fp32": float(np.median(ratios)),
            "equals_ar": row["agreement"]["equal"],
        }


def schemes(files: Sequence[Path], size: int) -> Iterator[dict[str, Any]]:
    model = load_blt(open_checkpoint(builtin_checkpoint()))
    weights = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    texts = {file.name: pieces(file, size) for file in files}
    for kind in STEPS:
        for scheme, rounding in (("symmetric", rounded), ("zero points", with_zero_points)):
            lost = []
            for name, parameter in model.named_parameters():
                if block_of(name, parameter.shape) is not None:
                    weight = weights[name]
                    new = rounding(name, weight, kind)
                    lost.append(float(np.linalg.norm(new - weight) / np.linalg.norm(weight)))
                    parameter.data.copy_(torch.from_numpy(new))
            bits = {name: round(torch_bits(model, ids), 4) for name, ids in texts.items()}
            row = {"kind": "scheme", "precision": kind, "scheme": scheme, "bits_per_byte": bits}
            yield row | {"relative_weight_error": round(float(np.mean(lost)), 5)}


def with_zero_points(name: str, weight: FloatArray, kind: str) -> FloatArray:
    """As `rounded`, from the least to the largest weight of a block, zero included."""
    block = block_of(name, weight.shape)
    assert block is not None, f"{name} is not quantised"
    steps = 2 ** int(kind[3:]) - 1
    blocks = weight.reshape(len(weight), -1, block)
    low, high = np.minimum(blocks.min(-1, keepdims=True), 0), np.maximum(blocks.max(-1, keepdims=True), 0)
    scale = np.where(high == low, 1, (high - low) / steps)
    zero = np.rint(-low / scale)
    numbers = np.clip(np.rint(blocks / scale) + zero, 0, steps)
    found: FloatArray = ((numbers - zero) * scale).reshape(weight.shape).astype(np.float32)
    return found


@torch.no_grad()
def torch_bits(model: Blt, texts: Sequence[IdArray]) -> float:
    bits = sum(bits_of(model(model.layout(ids[None]))[0].numpy(), ids) for ids in texts)
    return bits / sum(len(ids) - 1 for ids in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--bytes", type=int, default=20_000, help="of each text that are used")
    parser.add_argument("--new-bytes", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "quantised.jsonl")
    options = parser.parse_args()
    prompts = [json.loads(line)["prompt"].encode() for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    rows = []
    for part in (
        quality(options.texts, options.bytes, prompts, options.new_bytes),
        speed(prompts, options.new_bytes, options.repeats),
        schemes(options.texts, options.bytes),
    ):
        for row in part:
            print(row, flush=True)
            rows.append(row)
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()

"""Where a block of BLT-D starts inside an open patch, which latent should it read?

    python benchmarks/open_patch.py BUNDLE TEXT_FILE

Three ways: the last closed patch's latent ("closed"), the open patch's as if it ended there ("peek"), or the open patch
is finished byte by byte first, with full passes ("finish"). Measured on held-out text at every third place: how many
masked bytes one denoising pass gets right; and on generated text: how likely the full
model finds what was written (bits per byte, teacher-forced), and passes of each graph per byte.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import RESULTS, write_rows

from bltcli.bundle import Bundle, open_bundle
from bltcli.decoding.block_diffusion import BlockDiffusion
from bltcli.decoding.denoise import Confidence, OneStep, Unmask
from bltcli.decoding.driver import generate_texts, run_whole
from bltcli.decoding.rows import NOTHING, Rows, where
from bltcli.decoding.stop import Stop
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import FloatArray, Sampler
from bltcli.vocab import IdArray, encode

WINDOW = 1200  # bytes of each stretch of text
NEW_BYTES = 256


class FinishFirst(BlockDiffusion):
    """BLT-D that writes byte by byte until a patch has ended, takes the full model's byte after it, then a block."""

    def round(self, rows: Rows) -> None:
        model, drafts = self.model, [NOTHING for _ in rows.active]
        assert isinstance(model, Pipeline)
        rows.absorb(leave=1)
        while (waiting := rows.active & (model.room > 1)).any():
            logits = model.extend(rows.with_pending(drafts, waiting))
            rows.verify(logits, drafts, waiting)
            if all(model.patch_starts(row)[-1] == model.lengths[row] for row in where(waiting)):
                break
        super().round(rows)


def greedy(logits: FloatArray, rows: IdArray, positions: IdArray) -> IdArray:
    chosen: IdArray = logits.argmax(-1)
    return chosen


def accuracy(bundle: Bundle, text: bytes, block: int, way: str) -> tuple[float, float, int]:
    """Share of bytes right in blocks, of first bytes right, and how many blocks. "finish" starts where a patch has just
    ended, the other ways where one is open."""
    right: list[np.ndarray] = []
    for start in range(0, len(text) - WINDOW, WINDOW):
        ids = encode(text[start : start + WINDOW])
        model = open_model(bundle)
        for place in range(100, len(ids) - block, 3):
            model.absorb([ids[int(model.lengths[0]) : place]], peek=way == "peek")
            ended = model.patch_starts(0)[-1] == place
            if ended == (way == "finish"):
                blocks, _ = model.denoise([NOTHING], np.array([block]), OneStep(), greedy)
                right.append(blocks[0] == ids[place : place + block])
    found = np.array(right)
    return float(found.mean()), float(found[:, 0].mean()), len(found)


def bits_per_byte(bundle: Bundle, prompt: bytes, text: bytes) -> float:
    """Of `text` after `prompt` under the full model."""
    ids, bits, done = encode(prompt + text), 0.0, 0
    for pieces, logits in run_whole(open_model(bundle), {0: ids}):
        for offset in range(len(pieces[0])):
            position = done + offset
            if len(prompt) <= position < len(ids) - 1:
                scores = logits[0, offset].astype(np.float64)
                scores -= scores.max()
                bits -= (scores[ids[position + 1]] - np.log(np.exp(scores).sum())) / np.log(2)
        done += len(pieces[0])
    return bits / max(1, len(text))


def generated(bundle: Bundle, text: bytes, block: int, way: str, unmask: Unmask) -> dict[str, float]:
    prompts = [text[n * 700 : n * 700 + 120] for n in range(12)]
    model = open_model(bundle)
    method = (
        FinishFirst(model, block, unmask)
        if way == "finish"
        else BlockDiffusion(model, block, unmask, peek=way == "peek")
    )
    bits, passes, new_bytes = [], dict.fromkeys(("global", "encoder", "decoder"), 0), 0
    for prompt in prompts:
        texts, stats = generate_texts(
            model,
            method,
            [prompt],
            sampler=Sampler(temperature=0.7, seed=1, ignore_eos=True),
            stop=Stop(max_bytes=NEW_BYTES),
        )
        bits.append(bits_per_byte(bundle, prompt, texts[0]))
        new_bytes += stats.new_bytes
        for graph in passes:
            passes[graph] += stats.decode.passes()[graph]
    return {"bits_per_byte": float(np.mean(bits)), **{f"{g}_passes_per_byte": n / new_bytes for g, n in passes.items()}}


def rows(bundle: Bundle, text: bytes) -> Iterator[dict[str, object]]:
    for block in (4, 8, 16):
        for way in ("closed", "peek", "finish"):
            right, first, places = accuracy(bundle, text, block, way)
            facts = {
                "block": block,
                "way": way,
                "masked_accuracy": right,
                "first_byte_accuracy": first,
                "places": places,
            }
            for name, unmask in (("one-step", OneStep()), ("confidence alpha=0.7", Confidence(0.7))):
                row: dict[str, object] = {**facts, "unmask": name, **generated(bundle, text, block, way, unmask)}
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
                yield row | {"bundle_sha256": bundle.sha256}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bytes", type=int, default=20_000, help="of the text that are used")
    options = parser.parse_args()
    held_out = options.text.read_bytes()[: options.bytes]
    write_rows(RESULTS / "open_patch.jsonl", list(rows(open_bundle(options.bundle), held_out)))

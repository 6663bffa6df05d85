"""How much a decoder makes of the bytes of a block that it knows: next-byte prediction beside masked bytes.

    python benchmarks/masked.py CHECKPOINT --folder DIR NAME:FROM>TO[:LINES]... [--block 8]

NAME.FROM and NAME.TO in DIR are line-aligned (`scripts/held_out.py` writes some). Blocks lie in the translations, at
patch starts and anywhere. Of each, the first n bytes are given, the rest is masked, and byte n is guessed. Beside it,
what the block's row before, of a given byte, says when it is read as a next-byte prediction; and next-byte prediction
itself, which knows the same bytes, and the latents of patches that ended since.
Writes benchmarks/results/masked.jsonl.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_rows
from torch import Tensor

from bltcli.checkpoint import open_checkpoint
from bltcli.nn import Blt
from bltcli.nn.loading import load_blt
from bltcli.prompts import Prompts
from bltcli.train.blocks import make_blocks
from bltcli.train.diffusion import decode_with_blocks
from bltcli.train.objective import asked
from bltcli.vocab import EOS, MASK, NEVER_GENERATED, PAD, IdArray, encode

ROW_BYTES = 256
ROWS = 100  # in a batch
PER_ROW = 12  # blocks drawn
LINES = 300


def texts(name: str, folder: Path) -> list[bytes]:
    """Whole documents of one set, NAME:FROM>TO[:LINES], evenly over the file."""
    name, direction, lines = (*name.split(":"), str(LINES))[:3]
    source, target = ((folder / f"{name}.{language}").read_bytes().splitlines() for language in direction.split(">"))
    chosen = [number * len(source) // int(lines) for number in range(min(int(lines), len(source)))]
    return [Prompts(direction).prompt(source[number]) + target[number] for number in chosen]


def packed(documents: list[bytes]) -> IdArray:
    """A row per document that fits, [n, ROW_BYTES]."""
    rows = [np.append(encode(document), EOS) for document in documents if len(document) < ROW_BYTES - 2]
    return np.stack([np.pad(row, (0, ROW_BYTES - len(row)), constant_values=PAD) for row in rows])


@torch.no_grad()
def measure(model: Blt, ids: IdArray, block: int, known: int, anywhere: bool) -> dict[str, Any]:
    """Accuracy and bits of byte `known` of blocks whose bytes before it are given."""
    totals = np.zeros(7)  # bytes; right and bits of the masked byte, of the row before it, of the next byte
    for start in range(0, len(ids), ROWS):
        part, rng = ids[start : start + ROWS], np.random.default_rng(0)
        layout = model.layout(part)
        blocks = make_blocks(layout, block, PER_ROW, rng, random_starts=float(anywhere), skip=asked(part), t=1.0)
        given = np.where(np.arange(block) < known, blocks.targets, MASK)
        clean, masked = decode_with_blocks(model, layout, replace(blocks, ids=given))
        real = torch.from_numpy((blocks.weights[:, :, 0] > 0) & (blocks.targets[:, :, known] != PAD))
        target = torch.from_numpy(blocks.targets[:, :, known])[real]
        before = torch.from_numpy(np.minimum(blocks.starts + known - 1, ROW_BYTES - 1))
        rows = torch.arange(len(part))[:, None].expand_as(before)
        next_byte = clean[rows, before][real]
        row_before = masked[:, :, known - 1][real] if known else next_byte
        found = [figures(logits, target) for logits in (masked[:, :, known][real], row_before, next_byte)]
        totals += [len(target), *found[0], *found[1], *found[2]]
    of_masked, of_before, of_next = (totals[1:] / totals[0]).reshape(3, 2)
    return {
        "block": block, "starts": "anywhere" if anywhere else "patches", "known": known, "bytes": int(totals[0]),
        "masked_accuracy": round(float(of_masked[0]), 4), "next_byte_accuracy": round(float(of_next[0]), 4),
        "masked_bits": round(float(of_masked[1]), 4), "next_byte_bits": round(float(of_next[1]), 4),
        "row_before_accuracy": round(float(of_before[0]), 4), "row_before_bits": round(float(of_before[1]), 4),
    }  # fmt: skip


def figures(logits: Tensor, target: Tensor) -> tuple[float, float]:
    """How many of n bytes are likeliest, and the bits of all, of logits [n, 260]."""
    logits = logits.float().clone()
    logits[:, list(NEVER_GENERATED)] = -math.inf
    bits = -logits.log_softmax(-1).gather(-1, target[:, None]).double().sum() / math.log(2)
    return float((logits.argmax(-1) == target).sum()), float(bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("sets", metavar="NAME:FROM>TO[:LINES]", nargs="+")
    parser.add_argument("--folder", type=Path, required=True, help="where the sets are")
    parser.add_argument("--block", type=int, default=8)
    o = parser.parse_args()
    checkpoint = open_checkpoint(o.checkpoint)
    ids = packed([text for name in o.sets for text in texts(name, o.folder)])

    def rows() -> Iterator[dict[str, Any]]:
        for anywhere in (False, True):
            for known in range(o.block):
                row = measure(load_blt(checkpoint), ids, o.block, known, anywhere)
                print(row, flush=True)
                yield {**row, "checkpoint_sha256": checkpoint.sha256}

    write_rows(RESULTS / "masked.jsonl", list(rows()))


if __name__ == "__main__":
    main()

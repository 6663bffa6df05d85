"""Fit the attention of a new decoder layer, so that a masked row of a block starts by reading the row before it.

    python scripts/deepen.py CHECKPOINT deep --part decoder --layers 4
    python scripts/read_before.py RECIPE deep OUT --data DIR --layer 2

The row before a masked byte often knows that byte already, as a next-byte prediction. Query and key weights of a layer
fresh from `scripts/deepen.py` are fitted on texts and blocks of RECIPE: masked rows attend to the row before, all
others to themselves. Values are passed on, as large on average as what they are added to. A row that reads itself only
grows, which the next norm undoes: next bytes stay nearly as they were. `bltcli train RECIPE --init OUT` goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bltcli.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from bltcli.errors import BltError, UsageError
from bltcli.layout import Layout
from bltcli.nn.layers import Layer, Rope, SelfAttention
from bltcli.nn.loading import load_blt
from bltcli.train.blocks import Blocks
from bltcli.train.config import TrainConfig, load_config
from bltcli.train.data import Corpus
from bltcli.train.diffusion import BlockDiffusion, decode_with_blocks
from bltcli.train.recipe import objective_of
from bltcli.vocab import MASK

LEARNING_RATE = 1e-2


def fit(checkpoint: Checkpoint, config: TrainConfig, data: Path, number: int, steps: int) -> dict[str, Tensor]:
    """The attention weights of decoder layer `number`, by their names; prints how much of the attention goes where it
    should."""
    objective, decoder = objective_of(config), checkpoint.config.decoder
    if not isinstance(objective, BlockDiffusion):
        raise UsageError("the recipe has no [blocks]")
    if number >= decoder.num_layers or decoder.num_kv_heads != decoder.num_heads:
        raise UsageError(
            f"--layer is {number}; the decoder has {decoder.num_layers} layers, {decoder.num_heads} heads and "
            f"{decoder.num_kv_heads} KV heads, which must be as many"
        )
    model, corpus = load_blt(checkpoint), Corpus(config.data, data, "train")
    layer = model.decoder.layers[number]
    assert isinstance(layer, Layer)
    attention, sizes, calls = layer.self_attn, list[float](), list[Any]()
    layer.register_forward_pre_hook(lambda _, inputs: sizes.append(float(inputs[0].square().mean().sqrt())))
    attention.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[:3]))  # normed rows, rope, mask
    optimiser = torch.optim.Adam([attention.q_proj.weight, attention.k_proj.weight], lr=LEARNING_RATE)
    for step in range(steps):
        layout, blocks = objective.prepare(model, corpus.batch(step))
        with torch.no_grad():
            decode_with_blocks(model, layout, blocks)
        masked, other = log_shares(attention, *calls.pop(), *map(torch.from_numpy, rows_to_read(layout, blocks)))
        optimiser.zero_grad()
        (-masked.mean() - other.mean()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 20 == 0 or step == steps - 1:
            shares = [float(x.detach().exp().mean()) for x in (masked, other)]
            print(f"step {step}: masked rows read the row before by {shares[0]:.1%}, others themselves by "
                  f"{shares[1]:.1%}", flush=True)  # fmt: skip
    attention.v_proj.weight.data = torch.eye(decoder.hidden_size)
    attention.o_proj.weight.data = torch.eye(decoder.hidden_size) * float(np.mean(sizes))
    return {f"decoder.layers.{number}.self_attn.{name}": weight for name, weight in attention.state_dict().items()}


def log_shares(
    attention: SelfAttention, x: Tensor, rope: Rope, mask: Tensor, wanted: Tensor, masked: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    """Log of the attention weight that rows give the row `wanted` [b, R], of masked rows and of others, [n, H]."""
    q, k = (rope.rotate(attention.heads(part(x))) for part in (attention.q_proj, attention.k_proj))
    scores = (q @ k.transpose(-1, -2) * attention.head_dim**-0.5).masked_fill(~mask, -1e9)  # [b, H, R, R]
    found = scores.log_softmax(-1).transpose(1, 2).take_along_dim(wanted[:, :, None, None], dim=-1).squeeze(-1)
    return found[masked], found[other]


def rows_to_read(layout: Layout, blocks: Blocks) -> tuple[Any, Any, Any]:
    """For the R = N + S * B rows of `decode_with_blocks`, [b, R]: the row that each should read, int64; which are
    masked bytes, bool; which are clean rows or bytes that a block is given, bool."""
    b, n = layout.ids.shape
    _, count, size = blocks.ids.shape
    itself = np.arange(count * size).reshape(1, count, size) + n
    before = np.concatenate([np.maximum(blocks.starts - 1, 0)[:, :, None], np.repeat(itself[:, :, :-1], b, 0)], axis=-1)
    masked = (blocks.ids == MASK) & (blocks.weights > 0)
    given = (blocks.ids != MASK) & (blocks.starts > 0)[:, :, None]
    clean = np.broadcast_to(np.arange(n), (b, n))
    return (
        np.concatenate([clean, np.where(masked, before, itself).reshape(b, -1)], axis=1),
        np.concatenate([np.zeros((b, n), dtype=np.bool_), masked.reshape(b, -1)], axis=1),
        np.concatenate([np.ones((b, n), dtype=np.bool_), given.reshape(b, -1)], axis=1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--layer", type=int, required=True, help="counted from 0")
    parser.add_argument("--steps", type=int, default=150)
    o = parser.parse_args()
    try:
        checkpoint = open_checkpoint(o.checkpoint)
        fitted = fit(checkpoint, load_config(o.recipe), o.data, o.layer, o.steps)
        weights = {name: weight.numpy() for name, weight in checkpoint.weights.items()}
        weights |= {name: weight.numpy().astype(weights[name].dtype) for name, weight in fitted.items()}
        write_checkpoint(o.out, checkpoint.config, weights, licence=checkpoint.licence, metadata=checkpoint.metadata)
    except BltError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

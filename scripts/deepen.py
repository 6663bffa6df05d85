"""Give the global model or the decoder of a checkpoint more layers, which at first pass on what they are given.

    python scripts/deepen.py CHECKPOINT OUT --layers 6 [--part global_model] [--seed 0]

What a new layer adds to its input is multiplied by zero weights (o_proj, down_proj), so that OUT computes what
CHECKPOINT does, until it is trained on: `bltcli train RECIPE --init OUT`. Its other weights are normal, of inputs^-0.5.
A decoder's new layer doubles what it reads (the double residual of cross-attention), which the norm after the last
layer undoes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bltcli.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from bltcli.errors import BltError, UsageError

PARTS = ("global_model", "decoder")


def deepen(checkpoint: Checkpoint, out: Path, part: str, layers: int, seed: int) -> None:
    """UsageError where `part` of `checkpoint` has as many layers already."""
    stack = getattr(checkpoint.config, part)
    if layers <= stack.num_layers:
        raise UsageError(f"--layers is {layers}; the {part.replace('_', ' ')} has {stack.num_layers} already")
    rng = np.random.default_rng(seed)
    weights = {name: weight.numpy() for name, weight in checkpoint.weights.items()}
    stacks = [f"{part}.layers"]
    if part == "decoder" and stack.cross_attn_all_layers:
        stacks.append("decoder.cross_attn_layers")
    for prefix in stacks:
        first = [name for name in weights if name.startswith(f"{prefix}.0.")]
        for layer in range(stack.num_layers, layers):
            for name in first:
                own = f"{prefix}.{layer}.{name.removeprefix(f'{prefix}.0.')}"
                weights[own] = new_weight(name, weights[name].shape, rng).astype(weights[name].dtype)
    config = replace(checkpoint.config, **{part: replace(stack, num_layers=layers)})
    write_checkpoint(out, config, weights, licence=checkpoint.licence, metadata=checkpoint.metadata)


def new_weight(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return np.zeros(shape, dtype=np.float32)
    if len(shape) == 1:  # a norm
        return np.ones(shape, dtype=np.float32)
    return rng.normal(0, shape[1] ** -0.5, shape).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--part", choices=PARTS, default=PARTS[0])
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    try:
        deepen(open_checkpoint(o.checkpoint), o.out, o.part, o.layers, o.seed)
    except BltError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

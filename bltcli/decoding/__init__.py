"""The decoding methods: WHAT is generated and in what order, over anything that implements `ByteModel`."""

from __future__ import annotations

from typing import Final

from bltcli.decoding.autoregressive import Autoregressive
from bltcli.decoding.denoise import OneStep, Unmask
from bltcli.decoding.diffusion_verify import DiffusionVerify
from bltcli.decoding.protocol import ByteModel, DecodingMethod
from bltcli.decoding.self_speculation import SelfSpeculation
from bltcli.errors import ModelError, UsageError

#: Every method by its name on the command line.
METHODS: Final = ("ar", "blt-s", "blt-dv")
MAX_DRAFT_BYTES: Final = 64


def make_method(
    name: str, model: ByteModel, k: int = 8, *, block: int | None = None, unmask: Unmask | None = None
) -> DecodingMethod:
    """The method `name` over `model`: k drafted bytes per round for blt-s; for blt-dv blocks of `block` masked bytes
    (default: as large as was trained) and the rule that unmasks them (default: one step).

    UsageError for an unknown name, k outside 1..64, or a block that was not trained; ModelError when the model was not
    trained on blocks at all.
    """
    if name not in METHODS:
        raise UsageError(f"--method is {name!r}; use one of {', '.join(METHODS)}")
    if name == "blt-dv":
        return DiffusionVerify(model, _checked_block(model, block), unmask or OneStep())
    if not 1 <= k <= MAX_DRAFT_BYTES:
        raise UsageError(f"--draft-bytes is {k}; use 1 to {MAX_DRAFT_BYTES}")
    return SelfSpeculation(model, k) if name == "blt-s" else Autoregressive(model)


def _checked_block(model: ByteModel, block: int | None) -> int:
    trained = model.block_size
    if not trained:
        raise ModelError("this model was trained on next bytes only; blt-dv needs one trained on blocks, use blt-s")
    block = trained if block is None else block
    if block < 1:
        raise UsageError(f"--block is {block}; use 1 to {trained}")
    if block > trained:
        raise UsageError(f"--block {block} exceeds the {trained} this model was trained with; use --block {trained}")
    return block

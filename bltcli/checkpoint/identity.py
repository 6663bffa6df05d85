"""Which entropy model a model was trained with: its patches mean something only with the patcher that made them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from bltcli.checkpoint.opening import Checkpoint
from bltcli.checkpoint.weights import DTYPES, Weight
from bltcli.config import PatcherConfig
from bltcli.errors import ModelError

#: Where a checkpoint says so: metadata["training"][PATCHER_SHA256].
PATCHER_SHA256: Final = "patcher_sha256"


def patcher_sha256(config: PatcherConfig, weights: Mapping[str, Weight]) -> str:
    """SHA-256 of the threshold, the maximum patch length, and the `patcher.` tensors of `weights`: in order of name,
    each with name, shape and its elements rounded to bfloat16, little-endian."""
    digest = hashlib.sha256(f"{config.threshold_nats!r} {config.max_patch_length!r}".encode())
    for name, weight in sorted(weights.items()):
        if name.startswith("patcher."):
            digest.update(f"\0{name} {list(weight.shape)}\0".encode())
            for chunk in weight.chunks():
                digest.update(chunk.astype(DTYPES["bfloat16"], copy=False).tobytes())
    return digest.hexdigest()


def check_patcher(checkpoint: Checkpoint) -> None:
    """Raise ModelError if `checkpoint` says which entropy model it was trained with, and holds another."""
    training = checkpoint.metadata.get("training")
    trained = training.get(PATCHER_SHA256) if isinstance(training, Mapping) else None
    if trained is None:
        return
    found = patcher_sha256(checkpoint.config.patcher, checkpoint.weights)
    if trained != found:
        raise ModelError(
            f"{checkpoint.path}: its entropy model or threshold is not the one it was trained with "
            f"({PATCHER_SHA256} {found[:12]}, trained with {str(trained)[:12]}); take the whole checkpoint as trained"
        )

"""A trained model to a checkpoint in this project's own form; the form itself is bltcli.checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes

from bltcli.checkpoint.native import write_checkpoint
from bltcli.nn import Blt


def save_checkpoint(model: Blt, folder: Path, *, licence: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write `folder` with all weights rounded to bfloat16; it appears whole or not at all."""
    weights = {
        name: tensor.detach().float().cpu().numpy().astype(ml_dtypes.bfloat16)
        for name, tensor in model.state_dict().items()
    }
    write_checkpoint(folder, model.config, weights, licence=licence, metadata=metadata)

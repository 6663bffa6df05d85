"""A trained model as it is shipped: the weights that a checkpoint and its figures are made of."""

from __future__ import annotations

import ml_dtypes

from bltcli.checkpoint.weights import Weight, as_weight
from bltcli.nn import Blt


def rounded(model: Blt) -> dict[str, Weight]:
    """All weights of `model`, rounded to bfloat16."""
    return {
        name: as_weight(name, tensor.detach().float().cpu().numpy().astype(ml_dtypes.bfloat16))
        for name, tensor in model.state_dict().items()
    }

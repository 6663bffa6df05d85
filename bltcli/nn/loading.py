"""Fills the reference model from a checkpoint, tensor by tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bltcli.checkpoint import Checkpoint, Weight
from bltcli.checkpoint.names import HOST_TABLES
from bltcli.errors import ModelError
from bltcli.nn.model import Blt


def load_blt(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, *, tables: bool = True) -> Blt:
    """The model of `checkpoint` in evaluation mode, weights in `dtype`, the patcher always in float32: in 16 bit,
    boundaries flip. Without `tables` the encoder's embeddings, most of a released model, stay on the meta device: for
    those who gather them on the host. Memory: the model and a few megabytes. Raises ModelError for weights that are NaN
    or infinite."""
    with torch.device("meta"):  # random initial values of gigabytes would only be thrown away
        model = Blt(checkpoint.config)
    try:
        state = {
            name: _tensor(weight, torch.float32 if name.startswith("patcher.") else dtype)
            for name, weight in checkpoint.weights.items()
            if tables or name not in HOST_TABLES.values()
        }
    except ModelError as error:
        raise ModelError(f"{checkpoint.path}: {error}") from error
    missing, unexpected = model.load_state_dict(state, strict=tables, assign=True)
    assert not unexpected
    assert tables or set(missing) == set(HOST_TABLES.values())
    return model.eval()


def _tensor(weight: Weight, dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(weight.shape, dtype=dtype)
    flat, position = tensor.view(-1), 0
    for chunk in weight.chunks():
        flat[position : position + len(chunk)] = _as_torch(chunk)
        position += len(chunk)
    return tensor


def _as_torch(chunk: NDArray[Any]) -> Tensor:
    if chunk.dtype.name == "bfloat16":  # torch knows no ml_dtypes; the bits are the same
        return torch.from_numpy(np.array(chunk.view(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(chunk))

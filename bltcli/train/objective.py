"""What is minimised: next-byte prediction within documents; knows no optimiser and no files."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bltcli.layout import document_positions
from bltcli.nn import Blt
from bltcli.nn.model import causal_mask
from bltcli.nn.patcher import next_byte_loss
from bltcli.vocab import PAD, IdArray

#: (model, packed ids [b, N], bf16) -> sum of losses in nats and number of predicted bytes.
Objective = Callable[[Blt, IdArray, bool], tuple[Tensor, Tensor]]


def predicted(ids: IdArray) -> Tensor:
    """bool [b, N - 1]: whether byte i + 1 is predicted from byte i; not across documents, and never PAD."""
    positions, _ = document_positions(ids)
    return torch.from_numpy((positions[:, 1:] != 0) & (ids[:, 1:] != PAD))


def patcher_objective(model: Blt, ids: IdArray, bf16: bool) -> tuple[Tensor, Tensor]:
    """Next-byte loss of the entropy model."""
    positions, documents = map(model.tensor, document_positions(ids))
    mask = causal_mask(positions, documents, model.config.patcher.window)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        logits = model.patcher(model.tensor(ids), positions, mask)
    return next_byte_loss(logits, model.tensor(ids), predicted(ids).to(model.device))


def blt_objective(model: Blt, ids: IdArray, bf16: bool) -> tuple[Tensor, Tensor]:
    """Next-byte loss of encoder, global model and decoder, on the patches that the frozen patcher gives (float32)."""
    layout = model.layout(ids)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        logits = model(layout)
    return next_byte_loss(logits, model.tensor(ids), predicted(ids).to(model.device))


def bits_per_byte(loss_nats: float, count: float) -> float:
    """Mean loss in bits; EOS counts as a byte."""
    return loss_nats / count / math.log(2)

"""What is minimised: next-byte prediction within documents; knows no optimiser and no files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bltcli.layout import document_positions
from bltcli.nn import Blt
from bltcli.nn.model import causal_mask
from bltcli.nn.patcher import next_byte_loss
from bltcli.vocab import PAD, IdArray


@dataclass(frozen=True)
class Terms:
    """What one batch contributes to a step."""

    loss: Tensor  # nats, summed over the batch
    count: Tensor  # predicted clean bytes: what the loss of a step is divided by
    report: dict[str, tuple[Tensor, Tensor]]  # figures for the log, each a sum and the number it is divided by


#: (model, packed ids [b, N], bf16) -> the batch's terms.
Objective = Callable[[Blt, IdArray, bool], Terms]


def predicted(ids: IdArray) -> Tensor:
    """bool [b, N - 1]: whether byte i + 1 is predicted from byte i; not across documents, and never PAD."""
    positions, _ = document_positions(ids)
    return torch.from_numpy((positions[:, 1:] != 0) & (ids[:, 1:] != PAD))


def patcher_objective(model: Blt, ids: IdArray, bf16: bool) -> Terms:
    """Next-byte loss of the entropy model."""
    positions, documents = map(model.tensor, document_positions(ids))
    mask = causal_mask(positions, documents, model.config.patcher.window)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        logits = model.patcher(model.tensor(ids), positions, mask)
    return next_byte_terms(model, logits, ids)


def blt_objective(model: Blt, ids: IdArray, bf16: bool) -> Terms:
    """Next-byte loss of encoder, global model and decoder, on the patches that the frozen patcher gives (float32)."""
    layout = model.layout(ids)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        logits = model(layout)
    return next_byte_terms(model, logits, ids)


def next_byte_terms(model: Blt, logits: Tensor, ids: IdArray) -> Terms:
    """Next-byte prediction from logits [b, N, 260]; reports bits per byte, in which EOS counts as a byte."""
    nats, count = next_byte_loss(logits, model.tensor(ids), predicted(ids).to(model.device))
    return Terms(nats, count, {"bits_per_byte": (nats.detach() / math.log(2), count)})

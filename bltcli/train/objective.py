"""What is minimised: next-byte prediction within documents; knows no optimiser and no files."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bltcli.layout import Layout, document_positions
from bltcli.nn import Blt
from bltcli.nn.model import causal_mask
from bltcli.nn.patcher import next_byte_losses
from bltcli.vocab import OFFSET, PAD, IdArray

_LINE_FEED, _GREATER = OFFSET + ord("\n"), OFFSET + ord(">")


@dataclass(frozen=True)
class Terms:
    """What one batch contributes to a step."""

    loss: Tensor  # nats, summed over the batch
    count: Tensor  # predicted clean bytes: what the loss of a step is divided by
    report: dict[str, tuple[Tensor, Tensor]]  # figures for the log, each a sum and the number it is divided by


class Objective(Protocol):
    """Packed ids [b, N] to the batch's terms, in two parts: the first needs no trained weight, so that a GPU can work
    on one batch while the next is prepared."""

    @abstractmethod
    def prepare(self, model: Blt, ids: IdArray) -> Any:
        """All that `terms` needs to know of a batch; `model` is asked for its frozen patches only."""

    @abstractmethod
    def terms(self, model: Blt, prepared: Any, bf16: bool) -> Terms:
        """Loss and figures of what `prepare` made."""

    def __call__(self, model: Blt, ids: IdArray, bf16: bool) -> Terms:
        return self.terms(model, self.prepare(model, ids), bf16)


class PatcherObjective(Objective):
    """Next-byte loss of the entropy model."""

    def prepare(self, model: Blt, ids: IdArray) -> IdArray:
        return ids

    def terms(self, model: Blt, prepared: IdArray, bf16: bool) -> Terms:
        positions, documents = map(model.tensor, document_positions(prepared))
        mask = causal_mask(positions, documents, model.config.patcher.window)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            logits = model.patcher(model.tensor(prepared), positions, mask)
        return next_byte_terms(model, logits, prepared)


@dataclass(frozen=True)
class NextByteObjective(Objective):
    """Next-byte loss of encoder, global model and decoder, on the patches that the frozen patcher gives (float32)."""

    prompt_weight: float = 1.0  # of bytes that a translation is asked with

    def prepare(self, model: Blt, ids: IdArray) -> Layout:
        return model.layout(ids)

    def terms(self, model: Blt, prepared: Layout, bf16: bool) -> Terms:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            logits = model(prepared)
        return next_byte_terms(model, logits, prepared.ids, self.prompt_weight)


def predicted(ids: IdArray) -> Tensor:
    """bool [b, N - 1]: whether byte i + 1 is predicted from byte i; not across documents, and never PAD."""
    positions, _ = document_positions(ids)
    return torch.from_numpy((positions[:, 1:] != 0) & (ids[:, 1:] != PAD))


def asked(ids: IdArray) -> NDArray[np.bool_]:
    """bool [b, N]: which ids a translation is asked with, BOS, its tag line and the line that is to be translated (see
    `bltcli.prompts`)."""
    positions, _ = document_positions(ids)
    columns = np.arange(ids.shape[1])
    start = columns - positions
    third, sixth = (np.take_along_axis(ids, np.minimum(start + n, columns[-1]), axis=1) for n in (3, 6))
    tagged = (third == _GREATER) & (sixth == _LINE_FEED)  # en>fr
    feed = ids == _LINE_FEED
    feeds = np.cumsum(feed, axis=1) - feed
    lines = feeds - np.take_along_axis(feeds, start, axis=1)  # ended in this document before byte i
    return tagged & (lines < 2)


def next_byte_terms(model: Blt, logits: Tensor, ids: IdArray, prompt_weight: float = 1.0) -> Terms:
    """Next-byte prediction from logits [b, N, 260]; reports bits per byte, in which EOS counts as a byte. With a
    `prompt_weight` the report is of all bytes but what a translation is asked with."""
    losses, keep = next_byte_losses(logits, model.tensor(ids)), predicted(ids).to(model.device)
    if prompt_weight == 1:
        nats, count = torch.where(keep, losses, 0.0).sum(), keep.sum()
        return Terms(nats, count, {"bits_per_byte": (nats.detach() / math.log(2), count)})
    prompt = model.tensor(asked(ids)[:, 1:])
    weights = keep * torch.where(prompt, prompt_weight, 1.0)
    own = keep & ~prompt
    nats = torch.where(own, losses.detach(), 0.0).sum()
    report = {"bits_per_byte": (nats / math.log(2), own.sum())}
    return Terms((losses * weights).sum(), keep.sum(), report)

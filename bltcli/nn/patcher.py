"""The entropy model: a small causal byte model whose next-byte entropy decides the patches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bltcli.config import PatcherConfig
from bltcli.nn.layers import Cache, RMSNorm, Stack, linear
from bltcli.vocab import OUTPUT_IDS


class Patcher(Stack):
    """Always float32: in 16 bit, boundaries flip."""

    def __init__(self, config: PatcherConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(OUTPUT_IDS, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=config.hidden_size**-0.5)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = linear(config.hidden_size, OUTPUT_IDS)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """ids, positions int64 [b, q] -> next-byte logits [b, q, 260]."""
        x = self.run_layers(self.embed_tokens(ids), positions, mask, cache)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def entropy_nats(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the last axis, in nats, float32."""
    log_p = F.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def next_byte_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p of each next byte in nats, [b, N - 1]. logits [b, N, 260], ids [b, N]."""
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1)

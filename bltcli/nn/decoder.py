"""The local decoder: byte rows that read one latent each, before every layer."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from bltcli.config import ModelConfig
from bltcli.nn.layers import Cache, CrossAttention, RMSNorm, Rope, Stack, linear
from bltcli.vocab import INPUT_IDS, OUTPUT_IDS


class Decoder(Stack):
    """Knows rows, positions, a mask and a latent per row; causal, block and mixed calls are the same to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.decoder)
        self.k = config.cross_attn_k
        self.lookup = config.decoder.input == "lookup"
        if self.lookup:
            self.embed_tokens = nn.Embedding(INPUT_IDS, config.hidden_size)
            nn.init.normal_(self.embed_tokens.weight, std=config.hidden_size**-0.5)
        self.cross_attn_layers = nn.ModuleList(
            CrossAttention(config.decoder) for _ in range(config.decoder.num_cross_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.decoder.norm_eps)
        self.lm_head = linear(config.hidden_size, OUTPUT_IDS)

    @property
    def _cross(self) -> list[CrossAttention]:
        return cast("list[CrossAttention]", list(self.cross_attn_layers))

    def cross_kv(self, latents: Tensor) -> Tensor:
        """Keys and values of latents [b, P, W] for all cross-attentions, [b, P, cross_kv_size]: once per patch, for all
        bytes that read it."""
        slots = latents.unflatten(-1, (self.k, -1))
        return torch.stack([cross.keys_and_values(slots) for cross in self._cross], dim=2).flatten(2)

    def forward(
        self,
        x: Tensor,
        cross_kv: Tensor,
        latent_index: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """x: ids [b, q] (lookup) or encoder states [b, q, h]; `cross_kv` of P patches, read at latent_index [b, q]
        -> logits float32 [b, q, 260]."""
        if self.lookup:
            x = self.embed_tokens(x)
        cross = self._cross
        kv = cross_kv.unflatten(-1, (len(cross), 2, self.k, -1)).unbind(2)  # each [b, P, 2, k, Hkv * hd]
        rope = Rope.at(positions, self.config)
        for index, layer in enumerate(self.layers):
            if index < len(cross):
                x = cross[index].read(x, kv[index], latent_index)
            x = layer(x, rope, mask, *self.cache_of(cache, index))
        logits: Tensor = self.lm_head(self.norm(x)).float()
        return logits

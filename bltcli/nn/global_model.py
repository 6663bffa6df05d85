"""The global model: pools each closed patch, runs the large causal stack over patches, projects to latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bltcli.config import ModelConfig
from bltcli.nn.layers import Cache, CrossAttention, Stack, linear


class GlobalModel(Stack):
    """No final norm. Its weights are read only when a patch closes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.global_model)
        h, g = config.hidden_size, config.global_model.hidden_size
        self.k = config.cross_attn_k
        self.patch_embedding_projection = linear(h, config.latent_size)
        self.cross_attn = CrossAttention(config.encoder)
        if config.has_global_projection:
            self.token_embedding_projection: nn.Module = linear(config.latent_size, g)
        else:
            self.token_embedding_projection = nn.Identity()
        self.latent_projection = linear(g, config.latent_size)

    def pool(self, states: Tensor, patch_index: Tensor, patch_len: Tensor) -> Tensor:
        """Patch vectors [b, c, W] of the bytes `patch_index` [b, c, L] of `states` [b, C, h]; `patch_len` [b, c] of
        the L entries count. Maximum over the patch, projected to k queries that read the same patch's bytes."""
        b, c, longest = patch_index.shape
        rows = torch.arange(b, device=states.device)[:, None, None]
        patch_bytes = states[rows, patch_index].flatten(0, 1)  # [b * c, L, h]
        real = (torch.arange(longest, device=states.device) < patch_len[:, :, None]).flatten(0, 1)  # [b * c, L]
        pooled = patch_bytes.masked_fill(~real[:, :, None], -torch.inf).amax(1)
        queries = self.patch_embedding_projection(pooled).unflatten(-1, (self.k, -1))  # [b * c, k, h]
        vectors: Tensor = self.cross_attn.pool(queries, patch_bytes, real)
        return vectors.flatten(1).unflatten(0, (b, c))

    def forward(
        self,
        states: Tensor,
        patch_index: Tensor,
        patch_len: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """Latents [b, c, W] of the c patches; positions [b, c] are patch numbers."""
        x = self.token_embedding_projection(self.pool(states, patch_index, patch_len))
        latents: Tensor = self.latent_projection(self.run_layers(x, positions, mask, cache))
        return latents

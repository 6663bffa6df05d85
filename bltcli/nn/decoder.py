"""The local decoder: byte rows that read one latent each, before every layer."""

from __future__ import annotations

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
        count = config.decoder.num_layers if config.decoder.cross_attn_all_layers else 1
        self.cross_attn_layers = nn.ModuleList(CrossAttention(config.decoder) for _ in range(count))
        self.norm = RMSNorm(config.hidden_size, config.decoder.norm_eps)
        self.lm_head = linear(config.hidden_size, OUTPUT_IDS)

    def forward(
        self,
        x: Tensor,
        latents: Tensor,
        latent_index: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """x: ids [b, q] (lookup) or encoder states [b, q, h]; latents [b, P, W], read at latent_index [b, q] -> logits
        float32 [b, q, 260]."""
        if self.lookup:
            x = self.embed_tokens(x)
        slots = latents.unflatten(-1, (self.k, -1))
        rope = Rope.at(positions, self.config)
        for index, layer in enumerate(self.layers):
            if index < len(self.cross_attn_layers):
                cross = self.cross_attn_layers[index]
                assert isinstance(cross, CrossAttention)
                x = cross.read(x, slots, latent_index)
            x = layer(x, rope, mask, *self.cache_of(cache, index))
        logits: Tensor = self.lm_head(self.norm(x)).float()
        return logits

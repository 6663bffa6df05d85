"""The local encoder: byte plus hash n-gram embeddings, then a thin causal stack."""

from __future__ import annotations

from torch import Tensor, nn

from bltcli.config import EncoderConfig
from bltcli.nn.layers import Cache, Stack
from bltcli.vocab import OUTPUT_IDS


class Encoder(Stack):
    """Byte states. Patch pooling and patch cross-attention belong to the global graph."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(OUTPUT_IDS, config.hidden_size)
        self.hash_embedding = nn.Embedding(max(1, config.hash_rows), config.hidden_size)
        self.hash_tables = bool(config.hash_rows)
        for table in (self.embed_tokens, self.hash_embedding):
            nn.init.normal_(table.weight, std=config.hidden_size**-0.5)

    def embed(self, ids: Tensor, hash_index: Tensor) -> Tensor:
        """ids [b, q], hash_index [b, q, tables] -> [b, q, h]: the byte's row plus one row per n-gram table."""
        x: Tensor = self.embed_tokens(ids)
        if self.hash_tables:
            for table in hash_index.unbind(-1):
                x = x + self.hash_embedding(table)
        return x

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """embeds [b, q, h] -> byte states [b, q, h]."""
        return self.run_layers(embeds, positions, mask, cache)

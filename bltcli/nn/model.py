"""The four graphs over whole texts: what training runs, and the oracle of the incremental path."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bltcli.config import ModelConfig
from bltcli.layout import Layout, document_positions, make_layout, text_closes
from bltcli.nn.decoder import Decoder
from bltcli.nn.encoder import Encoder
from bltcli.nn.global_model import GlobalModel
from bltcli.nn.patcher import Patcher, entropy_nats
from bltcli.vocab import IdArray


def causal_mask(positions: Tensor, documents: Tensor, window: int | None) -> Tensor:
    """bool [b, 1, N, N], true where row i reads row j: same document, j at or before i, within the window."""
    distance = positions[:, :, None] - positions[:, None, :]
    mask = (documents[:, :, None] == documents[:, None, :]) & (distance >= 0)
    if window is not None:
        mask &= distance < window
    return mask[:, None]


class Blt(nn.Module):
    """A whole Byte Latent Transformer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patcher = Patcher(config.patcher)
        self.encoder = Encoder(config.encoder)
        self.global_model = GlobalModel(config)
        self.decoder = Decoder(config)

    @property
    def device(self) -> torch.device:
        return self.encoder.embed_tokens.weight.device

    def tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    @torch.no_grad()
    def entropies(self, ids: IdArray) -> Tensor:
        """Next-byte entropies in nats, float32 [b, N], of packed rows `ids` [b, N]."""
        positions, documents = map(self.tensor, document_positions(ids))
        mask = causal_mask(positions, documents, self.config.patcher.window)
        return entropy_nats(self.patcher(self.tensor(ids), positions, mask))

    def layout(self, ids: IdArray) -> Layout:
        """Patch packed rows `ids` [b, N] with this model's own patcher."""
        positions, _ = document_positions(ids)
        closes = text_closes(self.entropies(ids).cpu().numpy(), positions, self.config.patcher)
        return make_layout(ids, closes, self.config.encoder)

    def forward(self, layout: Layout) -> Tensor:
        """Next-byte logits, float32 [b, N, 260]."""
        return self.decode(layout, *self.encode(layout))

    def encode(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Byte states [b, N, h] and latents [b, M, W]."""
        positions, documents = self.tensor(layout.positions), self.tensor(layout.documents)
        mask = causal_mask(positions, documents, self.config.encoder.window)
        embeds = self.encoder.embed(self.tensor(layout.ids), self.tensor(layout.hash_index))
        states = self.encoder(embeds, positions, mask)
        numbers = self.tensor(layout.patch_positions)
        patch_mask = causal_mask(numbers, self.tensor(layout.patch_documents), self.config.global_model.window)
        latents = self.global_model(
            states, self.tensor(layout.patch_index), self.tensor(layout.patch_len), numbers, patch_mask
        )
        return states, latents

    def decode(self, layout: Layout, states: Tensor, latents: Tensor) -> Tensor:
        """Next-byte logits [b, N, 260] from byte states and latents."""
        positions, documents = self.tensor(layout.positions), self.tensor(layout.documents)
        mask = causal_mask(positions, documents, self.config.decoder.window)
        x = self.tensor(layout.ids) if self.decoder.lookup else states
        latent_index = self.tensor(layout.latent_of_byte)
        out: Tensor = self.decoder(x, self.decoder.cross_kv(latents), latent_index, positions, mask)
        return out

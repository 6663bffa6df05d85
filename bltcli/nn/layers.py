"""Building blocks of all four stacks; knows no bytes and no patches."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bltcli.config import StackConfig


class Cache(NamedTuple):
    """Key and value buffers of a stack, written in place: key and value of each layer [b, Hkv, C, hd], and the slot
    that the first row of this call takes, int64 [b]."""

    layers: list[tuple[Tensor, Tensor]]
    write_indices: Tensor


def scatter(buffer: Tensor, rows: Tensor, write_indices: Tensor) -> Tensor:
    """Write `rows` [b, H, q, w] into `buffer` [b, H, C, w] from slot write_indices [b] on, in place (TensorScatter)."""
    slots = write_indices[:, None] + torch.arange(rows.shape[2], device=rows.device)
    buffer[torch.arange(len(rows), device=rows.device)[:, None], :, slots] = rows.transpose(1, 2)
    return buffer


class RMSNorm(nn.Module):
    """Normalised in float32, cast back, then scaled."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype) * self.weight


class Rope(NamedTuple):
    """Cosine and sine [b, 1, q, hd / 2], float32."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, config: StackConfig) -> Rope:
        """The angles of `positions` [b, q]: position * theta^(-2i / hd)."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device) / config.head_dim
        angles = positions[:, None, :, None].float() * (1.0 / config.rope_theta**exponents)
        return cls(angles.cos(), angles.sin())

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate the interleaved pairs (2i, 2i + 1) of `x` [b, H, q, hd]."""
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A projection without bias, initialised with a normal cut at three deviations of inputs^-0.5."""
    layer = nn.Linear(inputs, outputs, bias=False)
    std = inputs**-0.5
    nn.init.trunc_normal_(layer.weight, std=std, a=-3 * std, b=3 * std)
    return layer


class _Projections(nn.Module):
    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.grouped = config.num_kv_heads != config.num_heads
        kv = config.num_kv_heads * config.head_dim
        self.q_proj = linear(config.hidden_size, config.hidden_size)
        self.k_proj = linear(config.hidden_size, kv)
        self.v_proj = linear(config.hidden_size, kv)
        self.o_proj = linear(config.hidden_size, config.hidden_size)

    def heads(self, x: Tensor) -> Tensor:
        """[b, q, H * hd] -> [b, H, q, hd]"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            out = self._products(q, k, v, mask)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.grouped)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _products(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention in plain products, for training: compiled, rows of a few hundred take half the time that the CPU's
        own kernel takes. Autocast runs the products in bfloat16 and the softmax in float32."""
        if self.grouped:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(-1) @ v


class SelfAttention(_Projections):
    """Attention over the rows of this call, or over a cache that this call's rows are first written into."""

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor, cache: tuple[Tensor, Tensor] | None, write_indices: Tensor | None
    ) -> Tensor:
        q, k = rope.rotate(self.heads(self.q_proj(x))), rope.rotate(self.heads(self.k_proj(x)))
        v = self.heads(self.v_proj(x))
        if cache is not None and write_indices is not None:
            k, v = scatter(cache[0], k, write_indices), scatter(cache[1], v, write_indices)
        return self.attend(q, k, v, mask)


class CrossAttention(_Projections):
    """Queries read a few keys each, without positions. Returns 2q + attention: both the module and its caller add the
    residual in every released model (the double residual)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.q_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.k_norm = RMSNorm(config.hidden_size, config.norm_eps)

    def pool(self, queries: Tensor, context: Tensor, real: Tensor) -> Tensor:
        """Patch queries [n, k, h] read their own patch's bytes, context [n, L, h] where real [n, L] -> [n, k, h]."""
        normed = self.k_norm(context)
        q = self.heads(self.q_proj(self.q_norm(queries)))
        k, v = self.heads(self.k_proj(normed)), self.heads(self.v_proj(normed))
        return 2 * queries + self.attend(q, k, v, real[:, None, None, :])

    def keys_and_values(self, latents: Tensor) -> Tensor:
        """What `read` takes of latents [b, P, k, h]: keys, scaled, and values, [b, P, 2, k, Hkv * hd]."""
        normed = self.k_norm(latents)
        return torch.stack([self.k_proj(normed) * self.head_dim**-0.5, self.v_proj(normed)], dim=2)

    def read(self, x: Tensor, keys_and_values: Tensor, index: Tensor) -> Tensor:
        """Byte rows x [b, q, h] each read the k vectors of one patch, number index [b, q] of `keys_and_values`."""
        rows = torch.arange(len(x), device=x.device)[:, None]
        k, v = (part.unflatten(-1, (-1, 1, self.head_dim))[rows, index] for part in keys_and_values.unbind(2))
        q = self.q_proj(self.q_norm(x)).unflatten(-1, (k.shape[3], -1, self.head_dim))[
            :, :, None
        ]  # [b, q, 1, Hkv, G, hd]
        weights = (q * k).sum(-1, keepdim=True).softmax(dim=2)  # [b, q, k, Hkv, G, 1]
        out: Tensor = self.o_proj((weights * v).sum(2).flatten(2))
        return 2 * x + out


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.gate_proj = linear(config.hidden_size, config.intermediate_size)
        self.up_proj = linear(config.hidden_size, config.intermediate_size)
        self.down_proj = linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Pre-norm self-attention and MLP, each with its residual."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        mask: Tensor,
        cache: tuple[Tensor, Tensor] | None = None,
        write_indices: Tensor | None = None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, write_indices)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Stack(nn.Module):
    """The layers of one graph."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))

    def run_layers(self, x: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        """x [b, q, h], positions [b, q], mask [b, 1, q, q or C] (bool or float, as SDPA takes it) -> [b, q, h]."""
        rope = Rope.at(positions, self.config)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, mask, *self.cache_of(cache, index))
        return x

    @staticmethod
    def cache_of(cache: Cache | None, layer: int) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        return (None, None) if cache is None else (cache.layers[layer], cache.write_indices)

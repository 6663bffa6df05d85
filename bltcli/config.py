"""What a model is: one frozen dataclass per graph, strict about keys and values; knows no file format but its dict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from bltcli.errors import ModelError
from bltcli.strict import read

DecoderInput = Literal["encoder", "lookup"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of pre-norm transformer layers (RMSNorm, interleaved RoPE, GQA, SwiGLU; no biases)."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    rope_theta: float
    norm_eps: float = 1e-5
    max_positions: int
    window: int | None  # a row sees itself and the window - 1 rows before it; None: all before it

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "max_positions"):
            if getattr(self, name) < 1:
                raise ModelError(f"{_kind(self)}: {name} is {getattr(self, name)}, it must be at least 1")
        if self.hidden_size % self.num_heads or self.head_dim % 2:
            raise ModelError(
                f"{_kind(self)}: hidden_size {self.hidden_size} does not split into {self.num_heads} heads of even size"
            )
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{_kind(self)}: {self.num_heads} heads are no multiple of {self.num_kv_heads} key/value heads"
            )
        if self.window is not None and self.window < 1:
            raise ModelError(f"{_kind(self)}: window is {self.window}, it must be at least 1 (or null for none)")
        for name in ("rope_theta", "norm_eps"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ModelError(f"{_kind(self)}: {name} is {getattr(self, name)}, it must be positive and finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatcherConfig(StackConfig):
    """The entropy model and the rule that turns its entropies into patches."""

    threshold_nats: float  # the next byte opens a patch when its entropy is above this
    max_patch_length: int | None  # and when the open patch holds this many bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.threshold_nats):
            raise ModelError(f"patcher: threshold_nats is {self.threshold_nats}, it must be finite")
        if self.max_patch_length is not None and self.max_patch_length < 1:
            raise ModelError(f"patcher: max_patch_length is {self.max_patch_length}, it must be at least 1 (or null)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(StackConfig):
    """Byte and hash n-gram embeddings, then a thin causal stack."""

    hash_group_sizes: tuple[int, ...]  # n of the n-grams, in table order
    hash_vocab: int  # rows per table
    hash_functions: int = 1  # tables per n, each with its own prime

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(n < 1 for n in self.hash_group_sizes):
            raise ModelError(f"encoder: hash_group_sizes {list(self.hash_group_sizes)} must be positive")
        if self.hash_group_sizes and (self.hash_vocab < 1 or self.hash_functions < 1):
            raise ModelError("encoder: hash_vocab and hash_functions must be at least 1")

    @property
    def hash_rows(self) -> int:
        return self.hash_functions * len(self.hash_group_sizes) * self.hash_vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalConfig(StackConfig):
    """The large model over patches. No final norm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(StackConfig):
    """The thin model over bytes that cross-attends to one latent per byte."""

    input: DecoderInput  # "encoder": the encoder's byte states (all released BLT); "lookup": its own table (Fast BLT)
    cross_attn_all_layers: bool = True  # else only before the first layer

    @property
    def num_cross_layers(self) -> int:
        """Layers that a cross-attention comes before."""
        return self.num_layers if self.cross_attn_all_layers else 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input not in get_args(DecoderInput):
            raise ModelError(f"decoder: input is {self.input!r}, it must be one of {get_args(DecoderInput)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole Byte Latent Transformer."""

    patcher: PatcherConfig
    encoder: EncoderConfig
    global_model: GlobalConfig
    decoder: DecoderConfig
    cross_attn_k: int  # latent vectors of local width per patch
    block_size: int = 0  # largest block of masked bytes trained; 0: next byte only

    def __post_init__(self) -> None:
        if self.encoder.hidden_size != self.decoder.hidden_size:
            raise ModelError(
                f"encoder width {self.encoder.hidden_size} and decoder width {self.decoder.hidden_size} differ"
            )
        if self.cross_attn_k < 1:
            raise ModelError(f"cross_attn_k is {self.cross_attn_k}, it must be at least 1")
        if self.block_size < 0:
            raise ModelError(f"block_size is {self.block_size}, it must be at least 0")
        if self.block_size and self.decoder.input != "lookup":
            raise ModelError("block_size needs decoder input 'lookup': encoder states cannot hold MASK rows")

    @property
    def hidden_size(self) -> int:
        """Local width h."""
        return self.encoder.hidden_size

    @property
    def latent_size(self) -> int:
        """Width W of what the decoder cross-attends to, per patch: cross_attn_k vectors of width h."""
        return self.cross_attn_k * self.hidden_size

    @property
    def cross_kv_size(self) -> int:
        """Width of what the decoder reads of a patch: keys and values of its latent for each cross-attention."""
        stack = self.decoder
        return 2 * stack.num_cross_layers * self.cross_attn_k * stack.num_kv_heads * stack.head_dim

    @property
    def has_global_projection(self) -> bool:
        return self.latent_size != self.global_model.hidden_size

    @property
    def max_bytes(self) -> int:
        """Longest text, BOS included. The patcher's own figure does not bound it: its window makes RoPE relative."""
        return min(self.encoder.max_positions, self.decoder.max_positions)

    @property
    def local(self) -> tuple[StackConfig, ...]:
        """The stacks that run byte by byte."""
        return self.patcher, self.encoder, self.decoder

    @property
    def reach(self) -> int:
        """Bytes that the widest local window holds, the row's own included."""
        return max(stack.window or self.max_bytes for stack in self.local)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Read a dict strictly: unknown or missing keys and wrong types raise ModelError."""
        return read(cls, data, "config", ModelError)


def _kind(config: StackConfig) -> str:
    return type(config).__name__.removesuffix("Config").lower()

"""Reads Hugging Face `BltForCausalLM` folders: configuration and tensor names.

Missing keys take the defaults of the `transformers` classes, so that a folder means here what it means there. What
those classes do not say, and what this program does not implement, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bltcli.config import ModelConfig
from bltcli.errors import ModelError
from bltcli.vocab import OUTPUT_IDS

_THRESHOLD: Final = 1.335442066192627
_WINDOW: Final = 512
_GROUPS: Final = (3, 4, 5, 6, 7, 8)
#: Defaults per part: hidden size, layers, heads, FFN size, positions, RoPE theta.
_KEYS: Final = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
_DEFAULTS: Final[dict[str, tuple[int | None, ...]]] = {
    "patcher_config": (768, 14, 12, 2048, 8192, 10_000),
    "encoder_config": (1024, 1, 16, None, 24576, 500_000),
    "decoder_config": (1024, 9, 16, 2816, 24576, 500_000),
    "global_config": (2048, 25, 16, 5632, 4096, 500_000),
}
#: (name here, name there), the first match wins.
PREFIXES: Final = (
    ("decoder.lm_head.", "lm_head."),
    ("patcher.", "model.patcher."),
    ("encoder.hash_embedding.", "model.encoder_hash_tok_embedding."),
    ("global_model.patch_embedding_projection.", "model.local_encoder.patch_embedding_projection."),
    ("global_model.cross_attn.", "model.local_encoder.cross_attn_layers.0."),
    ("global_model.latent_projection.", "model.local_decoder.patch_embedding_projection."),
    ("encoder.", "model.local_encoder."),
    ("global_model.", "model.global_transformer."),
    ("decoder.", "model.local_decoder."),
)


def source_names(name: str) -> tuple[str, ...]:
    """The Hugging Face name of our tensor `name`."""
    ours, theirs = next(pair for pair in PREFIXES if name.startswith(pair[0]))
    return (theirs + name.removeprefix(ours),)


def read_config(data: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a `config.json`. Raises ModelError for anything that makes another model."""
    _refuse_variants(data)
    parts = {name: _table(data, name) for name in _DEFAULTS}
    window = data.get("local_attention_window_len", _WINDOW)
    hash_groups = data.get("encoder_hash_byte_group_size")
    return ModelConfig.from_dict(
        {
            "patcher": {
                **_stack(
                    "patcher_config", parts["patcher_config"], parts["patcher_config"].get("sliding_window", _WINDOW)
                ),
                "threshold_nats": data.get("patching_threshold", _THRESHOLD),
                "max_patch_length": data.get("max_patch_length"),
            },
            "encoder": {
                **_stack("encoder_config", parts["encoder_config"], window),
                "hash_group_sizes": hash_groups or _GROUPS,
                "hash_vocab": data.get("encoder_hash_byte_group_vocab", 500_002),
                "hash_functions": data.get("encoder_hash_byte_group_nb_functions", 1),
            },
            "global_model": _stack("global_config", parts["global_config"], None),
            "decoder": {
                # the decoder runs under the encoder's mask, whatever its own table says
                **_stack("decoder_config", parts["decoder_config"], window),
                "input": "encoder",
                "cross_attn_all_layers": parts["decoder_config"].get("cross_attn_all_layers", True),
            },
            "cross_attn_k": _cross_attn_k(data, parts),
        }
    )


def _stack(name: str, table: Mapping[str, Any], window: int | None) -> dict[str, Any]:
    *sizes, theta = _DEFAULTS[name]
    hidden, layers, heads, ffn, positions = (table.get(key, default) for key, default in zip(_KEYS, sizes, strict=True))
    if type(hidden) is int and not ffn:
        ffn = int(8 * hidden / 3)
    if type(hidden) is int and type(heads) is int and heads and table.get("head_dim") not in (None, hidden // heads):
        raise ModelError(
            f"{name}: head_dim is {table['head_dim']}, only hidden_size / heads = {hidden // heads} is supported"
        )
    rope = table.get("rope_parameters") or {}
    return {
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": table.get("num_key_value_heads") or heads,
        "intermediate_size": ffn,
        "rope_theta": _agreed(
            name, {"rope_theta": table.get("rope_theta"), "rope_parameters": rope.get("rope_theta")}, theta
        ),
        "norm_eps": _agreed(name, {key: table.get(key) for key in ("rms_norm_eps", "norm_eps")}, 1e-5),
        "max_positions": positions,
        "window": window,
    }


def _agreed(where: str, spellings: Mapping[str, Any], default: Any) -> Any:
    """The value that all present spellings of one key agree on."""
    given = {key: value for key, value in spellings.items() if value is not None}
    values = list(given.values())
    if any(value != values[0] for value in values):
        both = " and ".join(f"{key} {value}" for key, value in given.items())
        raise ModelError(f"{where}: {both} disagree; remove the wrong one")
    return values[0] if values else default


def _cross_attn_k(data: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> Any:
    k = data.get("cross_attn_k", 2)
    for name in ("encoder_config", "decoder_config"):
        if parts[name].get("cross_attn_k", 2) != k:
            raise ModelError(f"cross_attn_k is {k} but {parts[name].get('cross_attn_k', 2)} in {name}; make them equal")
    return k


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = data.get(name) or {}
    if not isinstance(table, Mapping):
        raise ModelError(f"{name} is a {type(table).__name__}, expected a table")
    return table


def _refuse_variants(data: Mapping[str, Any]) -> None:
    """Raise ModelError for the first setting that makes another model than the one implemented here."""
    expected: list[tuple[str, Mapping[str, Any], str, tuple[Any, ...]]] = [
        ("", data, "patching_mode", ("entropy",)),
        ("", data, "monotonicity", (False, None)),
        ("", data, "patching_threshold_add", (None, 0, 0.0)),
        ("", data, "pm_size", (0, None)),
        ("", data, "tie_word_embeddings", (False, None)),
        ("", data, "vocab_size", (OUTPUT_IDS,)),
    ]
    for name in _DEFAULTS:
        table = _table(data, name)
        expected += [
            (f"{name}.", table, "hidden_act", ("silu",)),
            (f"{name}.", table, "vocab_size", (OUTPUT_IDS,)),
            (f"{name}.", table, "tie_word_embeddings", (False, None)),
            (f"{name}.", table, "pm_size", (0, None)),
        ]
        for key in ("rope_scaling", "rope_parameters"):
            rope = table.get(key) or {}
            if not isinstance(rope, Mapping):
                raise ModelError(f"{name}.{key} is {rope!r}, expected a table")
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind != "default":
                raise ModelError(f"{name}.{key}: type is {kind!r}, only 'default' is supported")
    for where, table, key, allowed in expected:
        if key in table and table[key] not in allowed:
            raise ModelError(f"{where}{key} is {table[key]!r}, only {allowed[0]!r} is supported")
    encoder = _table(data, "encoder_config")
    if encoder.get("cross_attn_all_layers") and encoder.get("num_hidden_layers", 1) != 1:
        raise ModelError("encoder_config.cross_attn_all_layers is true for several layers, only one layer is supported")

"""Reads Meta's own BLT folders: the model's arguments and tensors, and the entropy model's beside them.

    FOLDER/config.json {"args": {...}} or params.json {"model": {...}, "data": {"patcher_args": {...}}}
    FOLDER/train_args.json               optional, as params.json; holds patcher_args
    FOLDER/*.safetensors                 the model
    FOLDER/entropy_model/ (or a sibling of FOLDER)   params.json {"entropy_model": {...}} or config.json {"args": {...}}

Sizes come from the tensors; only what tensors cannot tell is read from the arguments: heads, RoPE theta, norms,
windows, hash groups, positions and the patching rule. Key names are those of Meta's public argument classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from bltcli.checkpoint.files import pickle_refusal, pickles, read_json, read_tensors, weight_files
from bltcli.config import ModelConfig
from bltcli.errors import ModelError

_THRESHOLD: Final = 1.335442066192627  # the argument class's default
_WINDOW: Final = 512
_HASH: Final = "encoder_hash_tok_embedding."
#: (here, there) for the start of a name, the first match wins; the patcher's tensors come from a folder of their own.
_PREFIXES: Final = (
    ("global_model.patch_embedding_projection.", "local_encoder.patch_embedding_projection."),
    ("global_model.cross_attn.", "local_encoder.cross_attn_layers.0."),
    ("global_model.latent_projection.", "local_decoder.patch_embedding_projection."),
    ("encoder.", "local_encoder."),
    ("global_model.", "global_transformer."),
    ("decoder.", "local_decoder."),
    ("patcher.", "patcher."),
)
_WORDS: Final = {
    "self_attn": "attention",
    "mlp": "feed_forward",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "tok_embeddings",
    "q_norm": "cross_attn_norm_q",
    "k_norm": "cross_attn_norm_kv",
    "q_proj": "wq",
    "k_proj": "wk",
    "v_proj": "wv",
    "o_proj": "wo",
    "gate_proj": "w1",
    "down_proj": "w2",
    "up_proj": "w3",
    "lm_head": "output",
}
#: Arguments that make another model than the one implemented here, with the values that do not.
_SUPPORTED: Final[dict[str, tuple[Any, ...]]] = {
    "cross_attn_encoder": (True,),
    "cross_attn_decoder": (True,),
    "cross_attn_init_by_pooling": (True,),
    "cross_attn_window_encoder": (None,),
    "cross_attn_window_decoder": (None,),
    "downsampling_by_pooling": ("max",),
    "use_rope": (True,),
    "weight_tying": (False,),
    "pm_size": (0,),
    "patching_mode": ("entropy", None, ""),
    "monotonicity": (False,),
    "threshold_add": (None, 0),
    "patching_threshold_add": (None, 0),
    "entropy_model_is_ngram_model": (False,),
    "head_dim": (None,),
}


@dataclass(frozen=True)
class Source:
    """A Meta folder as read: arguments, tensors by their names there (entropy model: "patcher." in front)."""

    args: Mapping[str, Any]
    entropy_args: Mapping[str, Any]
    patcher_args: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]
    configs: tuple[bytes, ...]
    files: tuple[Path, ...]


def source_names(name: str, config: ModelConfig) -> tuple[str, ...]:
    """Meta's name of our tensor `name`; the fused hash table is one tensor per table there."""
    if name == "encoder.hash_embedding.weight":
        tables = config.encoder.hash_functions * len(config.encoder.hash_group_sizes)
        return tuple(f"{_HASH}{table}.weight" for table in range(tables))
    ours, theirs = next(pair for pair in _PREFIXES if name.startswith(pair[0]))
    return (theirs + ".".join(_WORDS.get(word, word) for word in name.removeprefix(ours).split(".")),)


def read_folder(folder: Path, params: Path) -> Source:
    """Read arguments and map tensors. Raises ModelError for files that are missing, broken or pickles."""
    data = read_json(params)
    train = read_json(folder / "train_args.json") if (folder / "train_args.json").exists() else data
    entropy = _entropy_folder(folder)
    entropy_params = next(file for file in (entropy / "params.json", entropy / "config.json") if file.exists())
    entropy_data = read_json(entropy_params)
    for place in (folder, entropy):
        if pickles(place) and not list(place.glob("*.safetensors")):
            raise pickle_refusal(place, folder)
    if not list(entropy.glob("*.safetensors")):
        raise ModelError(
            f"{entropy}: the entropy model's weights are missing; where they are published as a pickle, download that "
            "yourself, then: bltcli convert FOLDER -o OUT --allow-pickle"
        )
    tensors = read_tensors(folder)
    tensors |= {f"patcher.{name}": tensor for name, tensor in read_tensors(entropy).items()}
    return Source(
        args=_table(params, data, "args" if "args" in data else "model"),
        entropy_args=_table(entropy_params, entropy_data, "args" if "args" in entropy_data else "entropy_model"),
        patcher_args=_patcher_args(train) or _patcher_args(entropy_data),
        tensors=tensors,
        configs=(params.read_bytes(), entropy_params.read_bytes()),
        files=(*weight_files(folder), *weight_files(entropy)),
    )


def read_config(source: Source) -> ModelConfig:
    """The configuration of a Meta folder. Raises ModelError for missing arguments and unsupported models."""
    for table in (source.args, source.entropy_args, source.patcher_args):
        for key, allowed in _SUPPORTED.items():
            if key in table and table[key] not in allowed:
                raise ModelError(f"{key} is {table[key]!r}, only {allowed[0]!r} is supported")
    args, tensors = source.args, source.tensors
    positions = args.get("max_encoder_seq_length") or args.get("max_seqlen")
    local = {"positions": positions, "window": args.get("local_attention_window_len", _WINDOW)}
    encoder = _stack(tensors, "local_encoder", args, heads="n_heads_local_encoder", **local)
    decoder = _stack(tensors, "local_decoder", args, heads="n_heads_local_decoder", **local)
    for stack in (encoder, decoder):
        if args.get("cross_attn_nheads") not in (None, stack["num_heads"]):
            raise ModelError(
                f"cross_attn_nheads is {args['cross_attn_nheads']}, only {stack['num_heads']} is supported"
            )
    cross_layers = _count(tensors, "local_decoder.cross_attn_layers.")
    latent_size, _ = _shape(tensors, "local_encoder.patch_embedding_projection.weight")
    patches = {"positions": args.get("max_seqlen"), "window": None}
    return ModelConfig.from_dict(
        {
            "patcher": _patcher(source),
            "encoder": {**encoder, **_hash_tables(source)},
            "global_model": _stack(tensors, "global_transformer", args, heads="n_heads_global", **patches),
            "decoder": {**decoder, "input": "encoder", "cross_attn_all_layers": cross_layers == decoder["num_layers"]},
            "cross_attn_k": latent_size // encoder["hidden_size"],
        }
    )


def _patcher(source: Source) -> dict[str, Any]:
    args = {"rope_theta": 10_000.0, **source.entropy_args}  # Meta's loader ignores the file's value or finds this one
    rule = source.patcher_args
    return {
        **_stack(
            source.tensors,
            "patcher",
            args,
            heads="n_heads",
            positions=args.get("max_seqlen", 8192),
            window=args.get("sliding_window") or _WINDOW,  # Meta's loader sets 512 whatever the file says
        ),
        "threshold_nats": rule.get("threshold", source.args.get("patching_threshold") or _THRESHOLD),
        "max_patch_length": rule.get("max_patch_length", source.args.get("max_patch_length")),
    }


def _hash_tables(source: Source) -> dict[str, Any]:
    groups = source.args.get("encoder_hash_byte_group_size") or []
    if isinstance(groups, str):  # "3,4,5"
        groups = [int(size) for size in groups.split(",") if size.strip().isdigit()]
    if not isinstance(groups, list) or not groups:
        raise ModelError(f"encoder_hash_byte_group_size is {groups!r}, expected the sizes of the hashed n-grams")
    tables = _count(source.tensors, _HASH)
    if not tables or tables % len(groups):
        raise ModelError(f"{tables} hash tables {_HASH}* for {len(groups)} n-gram sizes {groups}")
    rows, _ = _shape(source.tensors, f"{_HASH}0.weight")
    return {"hash_group_sizes": groups, "hash_vocab": rows, "hash_functions": tables // len(groups)}


def _stack(
    tensors: Mapping[str, NDArray[Any]], name: str, args: Mapping[str, Any], *, heads: str, positions: Any, window: Any
) -> dict[str, Any]:
    missing = [key for key in (heads, "rope_theta") if args.get(key) is None]
    if missing or positions is None:
        raise ModelError(f"the arguments lack {(missing or ['max_seqlen'])[0]}, needed for {name}")
    count = args[heads]
    if type(count) is not int or count < 1:
        raise ModelError(f"{heads} is {count!r}, expected a positive number")
    width, hidden = _shape(tensors, f"{name}.layers.0.attention.wq.weight")
    return {
        "hidden_size": hidden,
        "num_layers": _count(tensors, f"{name}.layers."),
        "num_heads": count,
        "num_kv_heads": _shape(tensors, f"{name}.layers.0.attention.wk.weight")[0] // max(1, width // count),
        "intermediate_size": _shape(tensors, f"{name}.layers.0.feed_forward.w1.weight")[0],
        "rope_theta": args["rope_theta"],
        "norm_eps": args.get("norm_eps", 1e-5),
        "max_positions": positions,
        "window": window,
    }


def _shape(tensors: Mapping[str, NDArray[Any]], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ModelError(f"tensor {name} is missing")
    if tensors[name].ndim != 2:
        raise ModelError(f"tensor {name} has {tensors[name].ndim} axes, expected 2")
    return tensors[name].shape


def _count(tensors: Mapping[str, NDArray[Any]], prefix: str) -> int:
    """How many numbered modules start with `prefix`."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _table(file: Path, data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = data.get(key)
    if not isinstance(table, Mapping):
        raise ModelError(f"{file}: {key} is missing or no table")
    return table


def _patcher_args(data: Mapping[str, Any]) -> Mapping[str, Any]:
    table = data.get("data")
    table = table.get("patcher_args") if isinstance(table, Mapping) else None
    return table if isinstance(table, Mapping) else {}


def _entropy_folder(folder: Path) -> Path:
    for place in (folder / "entropy_model", folder.parent / "entropy_model"):
        if (place / "params.json").exists() or (place / "config.json").exists():
            return place
    raise ModelError(f"{folder}: entropy model missing; put its params.json and weights in {folder / 'entropy_model'}")

"""This project's own checkpoint format: config.json and model.safetensors, written atomically, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from bltcli.atomic import atomic_folder
from bltcli.checkpoint.files import read_json
from bltcli.checkpoint.names import expected_shapes
from bltcli.checkpoint.safetensors_map import write_safetensors
from bltcli.checkpoint.weights import DTYPES, Weight, as_weight
from bltcli.config import ModelConfig
from bltcli.errors import ModelError

FORMAT: Final = "bltcli-checkpoint"
FORMAT_VERSION: Final = 1
_OWN_KEYS: Final = ("format", "format_version", "model", "licence")


def source_names(name: str) -> tuple[str, ...]:
    return (name,)


def read_config(data: Mapping[str, Any]) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
    """Model configuration, licence fields and metadata of a `config.json`. Raises ModelError for a newer format."""
    version = data.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ModelError(f"format_version is {version!r}, this bltcli reads up to {FORMAT_VERSION}; update bltcli")
    licence = data.get("licence", {})
    for key, value in (("model", data.get("model")), ("licence", licence)):
        if not isinstance(value, Mapping):
            raise ModelError(f"{key} is missing or no table")
    metadata = {key: value for key, value in data.items() if key not in _OWN_KEYS}
    return ModelConfig.from_dict(data["model"]), dict(licence), metadata


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, NDArray[Any] | Weight],
    *,
    licence: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """Write a checkpoint in this project's own format; `metadata` becomes further keys of config.json.

    The folder appears whole or not at all. An earlier bltcli checkpoint there is replaced; any other folder that is not
    empty raises ModelError, as do names and shapes that do not fit `config`, and weights that are NaN or infinite.
    """
    tensors = {name: as_weight(name, value) for name, value in weights.items()}
    _check(config, tensors)
    clash = sorted(set(metadata) & set(_OWN_KEYS))
    if clash:
        raise ModelError(f"metadata key {clash[0]!r} is reserved in config.json")
    own = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": config.to_dict(), "licence": dict(licence)}
    try:
        with atomic_folder(folder, _is_own) as new:
            (new / "config.json").write_text(json.dumps({**own, **metadata}, indent=2) + "\n", encoding="utf-8")
            write_safetensors(
                new / "model.safetensors",
                {name: (DTYPES[weight.dtype], weight.shape, weight.chunks()) for name, weight in tensors.items()},
                {"format": FORMAT},
            )
    except FileExistsError:
        raise ModelError(f"{folder}: exists, is not empty and is no bltcli checkpoint; choose another folder") from None


def _check(config: ModelConfig, tensors: Mapping[str, Weight]) -> None:
    expected = expected_shapes(config)
    for problem, names in (("is missing", expected.keys() - tensors), ("is unknown", tensors.keys() - expected)):
        if names:
            raise ModelError(f"tensor {min(names)} {problem} ({len(names)} in all)")
    for name, weight in tensors.items():
        if weight.shape != expected[name]:
            raise ModelError(f"tensor {name} is {list(weight.shape)}, the configuration says {list(expected[name])}")


def _is_own(folder: Path) -> bool:
    config = folder / "config.json"
    return config.exists() and read_json(config).get("format") == FORMAT

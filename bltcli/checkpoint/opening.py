"""Opens a checkpoint folder of any known format and checks it against its configuration; loads no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bltcli.checkpoint import hf, meta, native
from bltcli.checkpoint.files import find_licence, identity, pickles, read_json, read_tensors, weight_files
from bltcli.checkpoint.names import expected_shapes
from bltcli.checkpoint.weights import Weight, as_weight
from bltcli.config import ModelConfig
from bltcli.errors import ModelError

D = TypeVar("D")
R = TypeVar("R")


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: every tensor of `config` is there in its shape, and no other."""

    path: Path
    kind: str  # "bltcli", "hf" or "meta"
    config: ModelConfig
    weights: Mapping[str, Weight]  # by the names of `expected_shapes(config)`
    licence: Mapping[str, Any]
    metadata: Mapping[str, Any]  # of the own format: "prompt_format", "training", ...
    sha256: str  # see `files.identity` for what it covers


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint folder `path`, whichever format it has. Nothing is read but headers and configurations.
    Raises ModelError, one line, for everything that is wrong with it."""
    if not path.exists():
        raise ModelError(f"{path}: no such folder")
    if not path.is_dir():
        raise ModelError(f"{path}: is a file; give the folder that holds it")
    config = path / "config.json"
    if not config.exists():
        if (path / "params.json").exists():
            return _open_meta(path, path / "params.json")
        raise ModelError(f"{path}: no checkpoint: it holds neither config.json nor params.json")
    data = read_json(config)
    if data.get("format") == native.FORMAT:
        return _open_native(path, data)
    if data.get("model_type") == "blt":
        return _open_hf(path, data)
    if isinstance(data.get("args"), Mapping):
        return _open_meta(path, config)
    found = {key: data[key] for key in ("format", "model_type") if key in data}
    raise ModelError(f"{config}: describes no Byte Latent Transformer ({found or 'no format, model_type or args'})")


def open_shapes(path: Path) -> Checkpoint:
    """As `open_checkpoint`, for a folder that may hold config.json alone: its weights are then zeros that take no
    memory, the tables float32, as in the published conversions. Raises ModelError also where a configuration leaves
    sizes to the tensors, as Meta's do."""
    config = path / "config.json"
    data = read_json(config) if config.exists() else {}
    known = data.get("format") == native.FORMAT or data.get("model_type") == "blt"
    if not known or list(path.glob("*.safetensors")) or pickles(path):
        return open_checkpoint(path)
    if data.get("model_type") == "blt":
        model = _named(config, hf.read_config, data)
    else:
        model, _, _ = _named(config, native.read_config, data)
    zero = np.zeros((), dtype=np.float32)
    weights = {name: Weight(name, (np.broadcast_to(zero, shape),)) for name, shape in expected_shapes(model).items()}
    return Checkpoint(path, "config.json", model, weights, {}, {}, "")


def _open_native(path: Path, data: Mapping[str, Any]) -> Checkpoint:
    config, licence, metadata = _named(path / "config.json", native.read_config, data)
    weights = _collect(path, config, read_tensors(path), native.source_names)
    sha256 = identity([(path / "config.json").read_bytes()], weight_files(path))
    return Checkpoint(path, "bltcli", config, weights, licence, metadata, sha256)


def _open_hf(path: Path, data: Mapping[str, Any]) -> Checkpoint:
    config = _named(path / "config.json", hf.read_config, data)
    tensors = read_tensors(path)
    if not any(name.startswith("model.patcher.") for name in tensors):
        raise ModelError(f"{path}: holds no entropy model (tensors model.patcher.*); use a checkpoint that includes it")
    weights = _collect(path, config, tensors, hf.source_names)
    sha256 = identity([(path / "config.json").read_bytes()], weight_files(path))
    return Checkpoint(path, "hf", config, weights, find_licence(path), {}, sha256)


def _open_meta(path: Path, params: Path) -> Checkpoint:
    source = meta.read_folder(path, params)
    config = _named(params, meta.read_config, source)
    weights = _collect(path, config, source.tensors, lambda name: meta.source_names(name, config))
    return Checkpoint(path, "meta", config, weights, find_licence(path), {}, identity(source.configs, source.files))


def _named(file: Path, read: Callable[[D], R], data: D) -> R:
    try:
        return read(data)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error


def _collect(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any]],
    source_names: Callable[[str], tuple[str, ...]],
) -> dict[str, Weight]:
    """Our name -> weight, after checking names, dtypes and shapes; errors use the names that stand in the files."""
    parts = (config.patcher, config.encoder, config.global_model, config.decoder)
    layers = sum(part.num_layers for part in parts)
    if layers > len(tensors):  # before listing what a misprinted number announces
        raise ModelError(f"{path}: the configuration has {layers} layers, the files only {len(tensors)} tensors")
    weights: dict[str, Weight] = {}
    used: set[str] = set()
    for name, shape in expected_shapes(config).items():
        sources = source_names(name)
        missing = [source for source in sources if source not in tensors]
        if missing:
            raise ModelError(f"{path}: tensor {missing[0]} is missing")
        rows = shape[0] // len(sources)
        for source in sources:
            if tensors[source].shape != (rows, *shape[1:]):
                found, wanted = list(tensors[source].shape), [rows, *shape[1:]]
                raise ModelError(f"{path}: tensor {source} is {found}, the configuration says {wanted}")
        try:
            weights[name] = as_weight(name, Weight(name, tuple(tensors[source] for source in sources)))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        used.update(sources)
    # position tables are computed here; some writers save them
    unknown = sorted(name for name in tensors.keys() - used if not name.endswith((".inv_freq", ".freqs_cis")))
    if unknown:
        raise ModelError(f"{path}: tensor {unknown[0]} is unknown ({len(unknown)} in all); is this another model?")
    return weights

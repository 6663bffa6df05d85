"""The bundle: a folder with four graphs, the host tables and a manifest of what is in it. Refuses any mismatch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast, get_args

from bltcli.config import ModelConfig, PatcherConfig
from bltcli.embeddings import Tables
from bltcli.errors import ModelError
from bltcli.graphs import GRAPHS, GraphName, GraphSpec, Precision, TensorSpec, choosing_spec, graph_specs

FORMAT: Final = "bltcli-bundle"
FORMAT_VERSION: Final = 4
MANIFEST: Final = "manifest.json"
TABLES: Final = "tables.safetensors"
GOLDEN: Final = "golden.safetensors"
CHOOSING: Final = "choosing_file"  # of the decoder, if it looks ids up
#: Files up to this size are hashed whenever a bundle is opened; larger ones only by `verify_files`.
HASH_ON_OPEN_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; nothing but the manifest is in memory."""

    path: Path
    manifest: dict[str, Any]
    sha256: str  # of the manifest, which holds the hash of every other file
    config: ModelConfig
    precision: Precision

    @cached_property
    def specs(self) -> dict[GraphName, GraphSpec]:
        return graph_specs(self.config, self.precision)

    @property
    def parameters(self) -> dict[str, int]:
        """Weights per graph; the host tables are not in it."""
        return {name: int(self.manifest["graphs"][name]["parameters"]) for name in GRAPHS}

    @property
    def licence(self) -> dict[str, Any]:
        return dict(self.manifest["licence"])

    @property
    def prompt_format(self) -> dict[str, Any]:
        return dict(self.manifest["metadata"].get("prompt_format", {}))

    @property
    def graph_paths(self) -> dict[GraphName, Path]:
        return {name: self.path / str(self.manifest["graphs"][name]["file"]) for name in GRAPHS}

    @property
    def batched_paths(self) -> dict[GraphName, Path]:
        """The graphs in the form that ONNX Runtime on the CPU runs for several texts."""
        return {name: self.path / str(self.manifest["graphs"][name]["batched_file"]) for name in GRAPHS}

    @property
    def device_paths(self) -> dict[GraphName, Path]:
        """The graphs in the form that runs on a GPU: a decoder that looks ids up chooses bytes itself."""
        graphs = self.manifest["graphs"]
        return {name: self.path / str(graphs[name].get(CHOOSING, graphs[name]["file"])) for name in GRAPHS}

    @property
    def device_specs(self) -> dict[GraphName, GraphSpec]:
        """The I/O tables of `device_paths`."""
        specs = dict(self.specs)
        if self.config.decoder.input == "lookup":
            specs["decoder"] = choosing_spec(specs["decoder"])
        return specs

    @property
    def weight_bytes(self) -> dict[GraphName, int]:
        """Bytes of weights that one pass of each graph reads."""
        return {name: int(self.manifest["graphs"][name]["weight_bytes"]) for name in GRAPHS}

    def tables(self) -> Tables:
        """The embedding tables, memory-mapped."""
        from bltcli.checkpoint.safetensors_map import map_safetensors

        tensors = map_safetensors(self.path / TABLES, scattered=True)
        h, config = self.config.hidden_size, self.config.encoder
        for name, rows in (("byte", 260), ("hashed", max(1, config.hash_rows))):
            if name not in tensors or tensors[name].shape != (rows, h):
                found = tensors[name].shape if name in tensors else "missing"
                raise ModelError(f"{self.path / TABLES}: {name} is {found}, expected {(rows, h)}; export again")
        return Tables(byte=tensors["byte"], hashed=tensors["hashed"])

    def verify_files(self, *, up_to_bytes: int | None = None) -> None:
        """Check size and SHA-256 of every file; `up_to_bytes` leaves the hash of larger files out."""
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            if not path.is_file():
                raise ModelError(f"{path} is missing; export the bundle again")
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise ModelError(f"{path} has {size} bytes, the manifest says {entry['bytes']}; export again")
            if (up_to_bytes is None or size <= up_to_bytes) and sha256_of(path) != entry["sha256"]:
                raise ModelError(f"{path} is not the file that was exported (SHA-256 differs); export again")


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def open_bundle(path: Path) -> Bundle:
    """Open a bundle and check it: format version, configuration, I/O tables, file sizes, hashes of files up to 64 MiB.
    ModelError for anything that disagrees."""
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} is no bundle: {MANIFEST}: {error.strerror}; make one with `bltcli export`") from error
    try:
        manifest = json.loads(raw)
        kind, version = manifest["format"], manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is damaged ({error!r}); export the bundle again") from error
    if kind != FORMAT:
        raise ModelError(f"{file}: format is {kind!r}, expected {FORMAT!r}")
    if version != FORMAT_VERSION:
        fix = "update bltcli" if isinstance(version, int) and version > FORMAT_VERSION else "export the bundle again"
        raise ModelError(f"{file}: format version is {version}, this program reads {FORMAT_VERSION}; {fix}")
    try:
        bundle = _read(path, raw, manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{file} is damaged ({error!r}); export the bundle again") from error
    bundle.verify_files(up_to_bytes=HASH_ON_OPEN_BYTES)
    return bundle


def _read(path: Path, raw: bytes, manifest: dict[str, Any]) -> Bundle:
    precision = manifest["precision"]
    if precision not in get_args(Precision):
        raise ModelError(f"{path / MANIFEST}: precision is {precision!r}, expected one of {get_args(Precision)}")
    config = ModelConfig.from_dict(manifest["model"])
    bundle = Bundle(path, manifest, hashlib.sha256(raw).hexdigest(), config, cast(Precision, precision))
    files = manifest["files"]
    for field, made_with in manifest.get("patches", {}).items():
        if patches_entry(config.patcher)[field] != made_with:
            found = patches_entry(config.patcher)[field]
            raise ModelError(
                f"{path / MANIFEST}: {field} of the entropy model is {found}, the bundle was made with {made_with}; "
                "export again"
            )
    for name, spec in bundle.specs.items():
        for side, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
            if manifest["graphs"][name][side] != [tensor_entry(t) for t in tensors]:
                raise ModelError(
                    f"{path / MANIFEST}: the {side} of graph {name} are not those its configuration needs; export again"
                )
    listed = {manifest["graphs"][name][form] for name in GRAPHS for form in ("file", "batched_file")} | {TABLES}
    if config.decoder.input == "lookup":
        listed.add(manifest["graphs"]["decoder"][CHOOSING])
    unlisted = sorted(str(f) for f in listed if f not in files or Path(f).name != f)
    if unlisted:
        raise ModelError(f"{path / MANIFEST}: no size and hash for {unlisted[0]}; export again")
    return bundle


def patches_entry(config: PatcherConfig) -> dict[str, Any]:
    """The rule that cuts patches. It stands in the manifest twice, so that neither is changed without the other: the
    rest of the model knows only patches that were made with it."""
    return {"threshold_nats": config.threshold_nats, "max_patch_length": config.max_patch_length}


def tensor_entry(tensor: TensorSpec) -> dict[str, Any]:
    """One row of the I/O table in the manifest."""
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

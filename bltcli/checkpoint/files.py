"""What lies in a checkpoint folder: JSON, tensors in one file or in shards, licence notices; knows no model."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from bltcli.checkpoint.safetensors_map import map_safetensors, read_header
from bltcli.errors import ModelError

INDEX: Final = "model.safetensors.index.json"
#: What torch.save writes: programs, not data, until proven otherwise.
PICKLES: Final = ("*.pth", "*.pt", "*.bin")
_LICENCE_KEYS: Final = re.compile(r"^(license|license_name|license_link):\s*(.+?)\s*$")
_SAMPLE: Final = 4096


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raises ModelError when it is missing, no JSON, or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: holds a {type(data).__name__}, expected a JSON object")
    return data


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of `folder`: the shards its index names, or its only file. Raises ModelError when a shard
    is missing, when nothing or more than one candidate is there, and for pickles, with the command that converts."""
    index = folder / INDEX
    if index.exists():
        shards = _shard_map(index)
        files = [folder / name for name in sorted(set(shards.values()))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ModelError(f"{folder}: shard {missing[0]} is missing, which {INDEX} names; download it again")
        return files
    files = (
        [folder / "model.safetensors"]
        if (folder / "model.safetensors").exists()
        else sorted(folder.glob("*.safetensors"))
    )
    if len(files) == 1:
        return files
    if files:
        raise ModelError(f"{folder}: {len(files)} safetensors files but no {INDEX} that says what each holds")
    if pickles(folder):
        raise pickle_refusal(folder)
    raise ModelError(f"{folder}: holds no model.safetensors and no {INDEX}")


def pickles(folder: Path) -> list[Path]:
    return sorted(file for pattern in PICKLES for file in folder.glob(pattern))


def pickle_refusal(folder: Path, root: Path | None = None) -> ModelError:
    """The error for weights that are only there as a pickle in `folder` of the checkpoint `root`."""
    name = pickles(folder)[0].name
    command = f"bltcli convert {shlex.quote(str(root or folder))} -o OUT --allow-pickle"
    return ModelError(f"{folder / name} is a pickle, which can run code when loaded; if you trust it: {command}")


def read_tensors(folder: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of `folder`, memory-mapped. Raises ModelError as `weight_files` and `map_safetensors` do."""
    tensors: dict[str, NDArray[Any]] = {}
    for file in weight_files(folder):
        part = map_safetensors(file)
        twice = sorted(tensors.keys() & part.keys())
        if twice:
            raise ModelError(f"{file}: tensor {twice[0]} is also in another shard")
        tensors |= part
    return tensors


def find_licence(folder: Path) -> dict[str, Any]:
    """Licence fields of the README's front matter, and the names of licence files; {} when there are none."""
    found: dict[str, Any] = {}
    readme = folder / "README.md"
    if readme.exists():
        lines = readme.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines and lines[0].strip() == "---":
            for line in lines[1:]:
                if line.strip() == "---":
                    break
                match = _LICENCE_KEYS.match(line)
                if match:
                    found[match[1]] = match[2].strip("\"'")
    files = sorted(file.name for file in folder.glob("LICENSE*") if file.is_file())
    return {**found, "files": files} if files else found


def identity(configs: Iterable[bytes], files: Iterable[Path]) -> str:
    """SHA-256 over the configuration bytes and, per file in order of name: name, size, safetensors header, and the
    first 4096 bytes of every tensor. Sampled, so that 15 GB take milliseconds: it tells checkpoints apart, retrained
    ones too, but proves no file intact."""
    digest = hashlib.sha256()
    for config in configs:
        digest.update(len(config).to_bytes(8, "little") + config)
    for file in sorted(files, key=lambda file: file.name):
        header = read_header(file)
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + header)
        starts = sorted(e["data_offsets"][0] for name, e in json.loads(header).items() if name != "__metadata__")
        with file.open("rb") as stream:
            for start in starts:
                stream.seek(8 + len(header) + start)
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def _shard_map(index: Path) -> dict[str, str]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{index}: weight_map is missing or no table of file names")
    unsafe = [name for name in shards.values() if Path(name).name != name]
    if unsafe:
        raise ModelError(f"{index}: shard {unsafe[0]!r} is no file name of this folder")
    return shards

"""Turns pickled weights into safetensors, in a process of its own and with torch's restricted unpickler.

Run as `python -m bltcli.checkpoint.pickles PICKLE SAFETENSORS`: exit code 3 and one line on stderr when refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from bltcli.checkpoint.files import pickles
from bltcli.checkpoint.opening import Checkpoint, open_checkpoint
from bltcli.checkpoint.safetensors_map import Stream, write_safetensors
from bltcli.checkpoint.weights import CHUNK, DTYPES
from bltcli.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def open_unpickled(folder: Path, scratch: Path) -> Checkpoint:
    """Open the checkpoint `folder` through a copy in `scratch` whose pickles have become safetensors. Raises ModelError
    as `open_checkpoint` does, for pickles that hold more than tensors, and when torch is not installed."""
    copy = scratch / "copy"
    _copy(folder.resolve(), copy)
    try:
        return open_checkpoint(copy)
    except ModelError as error:
        raise ModelError(str(error).replace(str(copy), str(folder))) from error


def _copy(folder: Path, copy: Path) -> None:
    entropy = next(
        (place for place in (folder / "entropy_model", folder.parent / "entropy_model") if place.is_dir()), None
    )
    for target, source in ((copy, folder), (copy / "entropy_model", entropy)):
        if source is None:
            continue
        target.mkdir()
        found = pickles(source)
        for file in source.iterdir():
            if file.is_file() and file not in found:
                (target / file.name).symlink_to(file)
        if found and not list(source.glob("*.safetensors")):
            if len(found) > 1:
                raise ModelError(f"{source}: {len(found)} pickles ({found[0].name}, {found[1].name}), expected one")
            _convert(found[0], target / "model.safetensors")


def _convert(pickle: Path, target: Path) -> None:
    command = [sys.executable, "-m", "bltcli.checkpoint.pickles", str(pickle), str(target)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"the converter ended with code {done.returncode}"
        raise ModelError(last if done.returncode == ModelError.exit_code else f"{pickle}: {last}")


def convert_file(pickle: Path, target: Path) -> None:
    """Write the tensors of `pickle` to the safetensors file `target`. Raises ModelError."""
    try:
        import torch
    except ImportError as error:
        raise ModelError(f"{pickle}: reading pickles needs torch; run: pip install 'bltcli[torch]'") from error
    try:
        data = torch.load(pickle, weights_only=True, mmap=zipfile.is_zipfile(pickle), map_location="cpu")
    except Exception as error:  # whatever a broken or hostile file makes the unpickler raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"{pickle}: refused: no plain pickle of tensors ({reason[:200]})") from error
    tensors = _state_dict(pickle, data)
    write_safetensors(target, {name: _stream(pickle, name, tensor) for name, tensor in tensors.items()})


def _state_dict(pickle: Path, data: Any) -> Mapping[str, Tensor]:
    import torch

    for key in ("model", "state_dict"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping) or not data:
        raise ModelError(f"{pickle}: holds a {type(data).__name__}, expected a table of tensors")
    for name, value in data.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ModelError(f"{pickle}: {name!r} is a {type(value).__name__}, expected a tensor")
    return data


def _stream(pickle: Path, name: str, tensor: Tensor) -> Stream:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelError(f"{pickle}: tensor {name} is {dtype}; weights are {', '.join(DTYPES)}")
    return DTYPES[dtype], tuple(tensor.shape), _chunks(tensor)


def _chunks(tensor: Tensor) -> Iterator[NDArray[Any]]:
    import torch

    dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
    bits = torch.int32 if dtype.itemsize == 4 else torch.int16
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), CHUNK):
        yield flat[start : start + CHUNK].view(bits).numpy().view(dtype)


if __name__ == "__main__":
    try:
        convert_file(Path(sys.argv[1]), Path(sys.argv[2]))
    except ModelError as error:
        sys.stderr.write(f"{error}{os.linesep}")
        sys.exit(error.exit_code)

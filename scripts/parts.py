"""A folder as files of at most so many megabytes, and back: for machines that take and give only small files.

    python scripts/parts.py write DATA OUT --mb 60 --recipe examples/train-gpu-small.toml
    python scripts/parts.py read OUT DATA

The parts together are one tar archive, compressed unless `--plain`. `parts.json`, written last, has their hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, cast

MANIFEST: Final = "parts.json"
_MB: Final = 1_000_000


class _Splitter(io.RawIOBase):
    """Writes into part.000, part.001, ... of at most `limit` bytes each."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.sizes: list[int] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        rest = memoryview(data)
        while rest:
            if not self.sizes or self.sizes[-1] == self.limit:
                self.sizes.append(0)
            taken = rest[: self.limit - self.sizes[-1]]
            with (self.folder / _name(len(self.sizes) - 1)).open("ab") as file:
                file.write(taken)
            self.sizes[-1] += len(taken)
            rest = rest[len(taken) :]
        return len(data)


class _Joiner(io.RawIOBase):
    """Reads parts one after the other."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self.chunks = self._read(parts)
        self.rest = b""

    @staticmethod
    def _read(parts: Sequence[Path]) -> Iterator[bytes]:
        for part in parts:
            with part.open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        self.rest = self.rest or next(self.chunks, b"")
        taken = self.rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self.rest = self.rest[len(taken) :]
        return len(taken)


def write_parts(root: Path, names: Sequence[str], out: Path, mb: float, *, compressed: bool = True) -> int:
    """Write the files or folders `names` of `root` into `out`, emptied first of earlier parts; how many parts."""
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("part.*"), out / MANIFEST]:
        old.unlink(missing_ok=True)
    splitter = _Splitter(out, int(mb * _MB))
    mode: Literal["w|xz", "w|"] = "w|xz" if compressed else "w|"
    with tarfile.open(fileobj=splitter, mode=mode) as archive:
        for name in names:
            archive.add(root / name, name)
    hashes = [_sha256(out / _name(number)) for number in range(len(splitter.sizes))]
    (out / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=1) + "\n")
    return len(hashes)


def read_parts(parts: Path, root: Path) -> None:
    """Unpack `parts` into `root`. Raises ValueError for parts that are missing or not as written."""
    if not (parts / MANIFEST).exists():
        raise ValueError(f"{parts}: holds no {MANIFEST}; the parts were not written to the end")
    hashes = json.loads((parts / MANIFEST).read_text())["sha256"]
    files = [parts / _name(number) for number in range(len(hashes))]
    for file, wanted in zip(files, hashes, strict=True):
        if not file.exists() or _sha256(file) != wanted:
            raise ValueError(f"{file}: is missing or damaged; copy it again")
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BufferedReader(cast(io.RawIOBase, _Joiner(files))), mode="r|*") as archive:
        archive.extractall(root, filter="data")


def _name(number: int) -> str:
    return f"part.{number:03d}"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    write = verbs.add_parser("write")
    write.add_argument("folder", type=Path)
    write.add_argument("out", type=Path)
    write.add_argument("--mb", type=float, default=60)
    write.add_argument("--plain", action="store_true", help="not compressed")
    write.add_argument("--recipe", type=Path, help="only the files that this recipe reads")
    read = verbs.add_parser("read")
    read.add_argument("parts", type=Path)
    read.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.verb == "read":
        read_parts(options.parts, options.folder)
        return
    names = sorted(file.name for file in options.folder.iterdir())
    if options.recipe:
        from bltcli.train.config import load_config

        names = load_config(options.recipe).data.paths
    count = write_parts(options.folder, names, options.out, options.mb, compressed=not options.plain)
    print(f"{count} parts in {options.out}")


if __name__ == "__main__":
    main()

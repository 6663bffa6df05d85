"""TensorRT engines that this user built on this machine, and why one may or may not be loaded.

An engine is executable code. So it is never taken from a bundle, only from the user's own cache folder, which nobody
else may write, and only if it is the very file that was recorded there when it was built. Knows no TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bltcli.atomic import write_atomically
from bltcli.bundle import Bundle
from bltcli.errors import ModelError, UsageError
from bltcli.graphs import GRAPHS, GraphName
from bltcli.models import cache_dir
from bltcli_engines.tensorrt_build import SETTINGS, Profile

ANY_GPU: Final = "any"


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything an engine depends on; when a field differs the engine is stale."""

    graph_sha256: str
    precision: str
    profile: dict[str, int]
    library: str
    library_version: str
    gpu: str  # name, or "any" for engines built ahead of time
    compute_capability: str
    settings: str = SETTINGS

    def differences(self, other: dict[str, Any]) -> list[str]:
        """What a record was built for and this key is not, one phrase per field."""
        ours, theirs = _flat(asdict(self)), _flat(other)
        return [
            f"{name} was {theirs.get(name)!r}, is {value!r}"
            for name, value in ours.items()
            if theirs.get(name) != value
        ]


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    profile = fields.get("profile")
    return {**fields, "profile": None, **(profile if isinstance(profile, dict) else {})}


class EngineStore:
    """The engines of one bundle, one per graph."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.folder = cache_dir() / "engines" / bundle.sha256[:16]

    @property
    def rebuild(self) -> str:
        """The command that builds what is missing or stale, for texts and drafts as long as those of what is held."""
        command = f"bltcli build {shlex.quote(str(self.bundle.path))}"
        with suppress(KeyError, TypeError, ValueError, UsageError):
            held = Profile(**(self._record(GRAPHS[0]) or {})["profile"])
            command += f" --max-batch {held.max_batch:d} --max-bytes {held.max_bytes:d}"
            command += f" --draft-bytes {held.draft_rows - 1:d}"
        return command

    def key(self, graph: GraphName, **fields: Any) -> EngineKey:
        """The key of a graph of this bundle; its hash covers the graph and its weights."""
        file, weights = self.bundle.device_paths[graph].name, f"{self.bundle.graph_paths[graph].name}.data"
        listed = self.bundle.manifest["files"]
        parts = [listed[name]["sha256"] for name in (file, weights) if name in listed]
        return EngineKey(
            graph_sha256=hashlib.sha256("".join(parts).encode()).hexdigest(), precision=self.bundle.precision, **fields
        )

    def profile(self) -> Profile:
        """The profile that the engines were built for. ModelError when there are none."""
        graph = GRAPHS[0]
        if not self._record_file(graph).is_file():
            raise ModelError(f"no usable TensorRT engine for {graph}: none was built; run {self.rebuild}")
        self._require_own()
        try:
            return Profile(**(self._record(graph) or {})["profile"])
        except (KeyError, TypeError, UsageError) as error:
            raise ModelError(
                f"no usable TensorRT engine for {graph}: its record is damaged; run {self.rebuild}"
            ) from error

    def stale(self, graph: GraphName, key: EngineKey) -> list[str]:
        """Why the engine that is held cannot be used, one phrase each; empty when it can. ModelError when somebody else
        could have put it there."""
        if not self._record_file(graph).is_file():
            return ["none was built"]
        self._require_own()
        record = self._record(graph)
        if record is None:
            return ["its record is damaged"]
        found = key.differences(record)
        engine = self._engine_file(graph)
        if not found and (not engine.is_file() or _sha256(engine) != record.get("engine_sha256")):
            found = ["the file is not the one that was built"]
        return found

    def load(self, graph: GraphName, key: EngineKey) -> bytes:
        """The engine of a graph. ModelError, with the command that builds it anew, when it is missing, stale, changed,
        or within the reach of others."""
        reasons = self.stale(graph, key)
        if reasons:
            raise ModelError(f"no usable TensorRT engine for {graph}: {'; '.join(reasons)}; run {self.rebuild}")
        return self._engine_file(graph).read_bytes()

    def save(self, graph: GraphName, key: EngineKey, engine: bytes, **facts: Any) -> None:
        """Keep an engine that was just built, and what it was built for."""
        self._make()
        record = {**asdict(key), "engine_sha256": hashlib.sha256(engine).hexdigest(), "bytes": len(engine), **facts}
        write_atomically(self._engine_file(graph), engine)
        write_atomically(self._record_file(graph), json.dumps(record, indent=1).encode())
        for file in (self._engine_file(graph), self._record_file(graph)):
            file.chmod(0o600)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Hold the store while building; a second builder waits, and then finds what the first has built."""
        import fcntl

        self._make()
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def timings(self) -> Path:
        """What TensorRT has measured of its kernels, from build to build."""
        return self.folder / "timing.cache"

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._require_own()

    def _engine_file(self, graph: GraphName) -> Path:
        return self.folder / f"{graph}.engine"

    def _record_file(self, graph: GraphName) -> Path:
        return self.folder / f"{graph}.json"

    def _record(self, graph: GraphName) -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            record = json.loads(self._record_file(graph).read_bytes())
            return record if isinstance(record, dict) else None
        return None

    def _require_own(self) -> None:
        """ModelError unless the store, its files and the folders up to the cache belong to this user alone."""
        root = cache_dir()
        above = [p for p in (self.folder, *self.folder.parents) if p == root or p.is_relative_to(root)]
        for path in (*above, *sorted(self.folder.glob("*"))):
            found = path.lstat()
            if found.st_uid != os.getuid():
                raise ModelError(
                    f"{path} belongs to another user; engines are loaded only from one's own; {self._fix()}"
                )
            if stat.S_ISLNK(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ModelError(f"{path} can be changed by others ({stat.filemode(found.st_mode)}); {self._fix()}")

    def _fix(self) -> str:
        remove = f"rm -r {shlex.quote(str(self.folder))}"
        return f"run {remove}, see that no one else can write {cache_dir()}, then {self.rebuild}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

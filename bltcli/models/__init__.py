"""The built-in model and the bundles made of it; finds what `--model` names."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from bltcli.bundle import FORMAT_VERSION, is_bundle
from bltcli.errors import ModelError, UsageError
from bltcli.graphs import Precision

BUILTIN = "builtin"


def builtin_checkpoint() -> Path:
    """Folder of the model that ships with the program."""
    return Path(__file__).parent / BUILTIN


def cache_dir() -> Path:
    """Where bundles are kept: BLTCLI_CACHE_DIR, or the platform's cache directory."""
    if given := os.environ.get("BLTCLI_CACHE_DIR"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "bltcli" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bltcli"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bltcli"


def cached_bundles() -> list[Path]:
    """Bundles in the cache, oldest name first."""
    folder = cache_dir() / "bundles"
    return sorted(path for path in folder.glob("*") if is_bundle(path)) if folder.is_dir() else []


def resolve_bundle(model: str | None, precision: str | None, notice: Callable[[str], None]) -> Path:
    """The bundle that `model` names: a bundle folder as it is; nothing or "builtin": the built-in model, exported into
    the cache at first use. ModelError for anything else, UsageError for a precision the bundle does not have."""
    if model is None or model == BUILTIN:
        return _builtin_bundle(precision or "fp32", notice)
    path = Path(model)
    if is_bundle(path):
        from bltcli.bundle import open_bundle

        found = open_bundle(path).precision
        if precision not in (None, found):
            raise UsageError(f"--precision is {precision}, but {path} was exported as {found}; export it again")
        return path
    if path.is_dir():
        raise ModelError(f"{path} is no bundle; make one with `bltcli export {path} -o BUNDLE`")
    raise ModelError(f"no bundle at {path}; give a bundle folder, or {BUILTIN!r}")


def _builtin_bundle(precision: str, notice: Callable[[str], None]) -> Path:
    from bltcli.checkpoint import open_checkpoint
    from bltcli_export import EXPORT_VERSION

    if precision not in get_args(Precision):
        raise UsageError(f"--precision is {precision}; use fp32, fp16, bf16, int8 or int4")
    checkpoint = open_checkpoint(builtin_checkpoint())
    name = f"{BUILTIN}-{checkpoint.sha256[:16]}-{precision}-v{FORMAT_VERSION}.{EXPORT_VERSION}"
    folder = cache_dir() / "bundles"
    if is_bundle(folder / name):
        return folder / name
    from bltcli_export.exporter import export_checkpoint  # half a second of imports, at first use alone

    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        notice(f"{folder} cannot be written: using a temporary folder, each time anew; set BLTCLI_CACHE_DIR to another")
        folder = _temporary_folder()
    notice(f"first use: exporting the built-in model to {folder / name}")
    return export_checkpoint(checkpoint, folder / name, precision=cast(Precision, precision))


def _temporary_folder() -> Path:
    """A folder that is removed when the program ends."""
    import atexit
    import shutil

    folder = Path(tempfile.mkdtemp(prefix="bltcli-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder

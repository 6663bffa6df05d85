"""Fetches checkpoints from the Hugging Face Hub into its shared cache; knows names and errors, no formats.

Token, cache folder, endpoint and offline mode are the library's own: `hf auth login` or HF_TOKEN, HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bltcli.errors import ModelError

#: Weights as data and what describes them; never pickles, never code.
ALLOWED: Final = ("*.json", "*.safetensors", "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md")
_NAME: Final = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.][\w./-]*))?")


def is_hub_name(name: str) -> bool:
    """Whether `name` reads as owner/model or owner/model@revision, and no file or folder has that name."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def fetch(name: str, allowed: Sequence[str] = ALLOWED) -> Path:
    """The folder in the Hub's cache that holds the `allowed` files of `name` ("owner/model[@revision]"), downloaded
    where needed.

    Prints nothing. Raises ModelError when huggingface_hub is not installed, the model or revision does not exist,
    access is refused, or the network fails.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ModelError(f"{name}: no Hub name; it must be owner/model or owner/model@revision")
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise ModelError(f"{name}: huggingface_hub is not installed; run: pip install 'bltcli[hub]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # disabling them warns when the environment forces them on
        disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity_error()
    try:
        folder = Path(
            huggingface_hub.snapshot_download(match["repo"], revision=match["revision"], allow_patterns=list(allowed))
        )
    except Exception as error:  # the network library underneath, and so its errors, changed with the releases
        raise ModelError(_explain(match["repo"], match["revision"], error)) from error
    if not folder.is_dir():
        raise ModelError(f"{name}: has no safetensors weights on the Hub")
    return folder


def _explain(repo: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"{_endpoint()}/{repo}"
        return f"{repo}: access is gated; accept its licence at {page}, then run `hf auth login` (or set HF_TOKEN)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repo}: neither a folder here nor a model at {_endpoint()}; "
            "if it is private, run `hf auth login` (or set HF_TOKEN)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo}: has no revision {revision!r} at {_endpoint()}"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)) and _offline():
        return f"{repo}: not in the local cache, and HF_HUB_OFFLINE forbids to download it; unset HF_HUB_OFFLINE"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return f"{repo}: cannot be stored: {error.strerror or error}"
    cause = error.__cause__ or error
    detail = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    return f"{repo}: cannot be downloaded from {_endpoint()}: {detail}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("TRANSFORMERS_OFFLINE", "0") in ("1", "true", "yes", "on")

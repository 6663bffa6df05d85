"""Fixtures that several test files share: tiny Hugging Face checkpoints, made once per session."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from bltcli.bundle import Bundle, open_bundle
from bltcli.checkpoint import open_checkpoint
from bltcli.graphs import Precision
from bltcli_export.exporter import export_checkpoint
from tests.tiny import tiny_checkpoint


def pytest_configure(config: pytest.Config) -> None:
    import torch
    import transformers

    # tiny models gain nothing from more threads, and threads that wait for a busy core cost minutes
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """form ("1b", "7b" or "gqa") -> folder of a tiny calibrated Hugging Face checkpoint; read it, never change it."""
    from tests.helpers import save_tiny_hf

    folders: dict[str, Path] = {}

    def folder(form: str) -> Path:
        if form not in folders:
            folders[form] = save_tiny_hf(tmp_path_factory.mktemp(f"hf-{form}") / "model", form, seed=0)
        return folders[form]

    return folder


@pytest.fixture(scope="session")
def hf_checkpoint(request: pytest.FixtureRequest, hf_folder: Callable[[str], Path]) -> Path:
    """Folder of a tiny checkpoint; "1b" unless `@pytest.mark.parametrize("hf_checkpoint", ["7b"], indirect=True)`."""
    return hf_folder(getattr(request, "param", "1b"))


class TinyBundle(Protocol):
    def __call__(self, form: str, precision: Precision = "fp32", **options: Any) -> Bundle: ...


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """Bundles of the tiny models of `tests.tiny`, each exported once per test run."""
    folder = tmp_path_factory.mktemp("tiny")

    @functools.cache
    def make(form: str, precision: Precision = "fp32", **options: Any) -> Bundle:
        name = "-".join(map(str, (form, precision, *sorted(options.items()))))
        checkpoint = tiny_checkpoint(folder / f"checkpoint-{name}", form, **options)
        # the parity gate has its own tests; here it would only cost time
        return open_bundle(export_checkpoint(checkpoint, folder / name, precision=precision, check=False))

    return make


@pytest.fixture(scope="session")
def trained_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model trained on blocks of up to 16, see `tests.trained`: half a minute, once per test run."""
    from tests.trained import trained_model, write_trained

    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    write_trained(folder, trained_model(steps=300))
    return folder


@pytest.fixture(scope="session")
def trained_bundle(trained_checkpoint: Path) -> Bundle:
    """`trained_checkpoint`, exported."""
    checkpoint = open_checkpoint(trained_checkpoint)
    return open_bundle(
        export_checkpoint(checkpoint, trained_checkpoint.parent / "bundle", precision="fp32", check=False)
    )


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Folder of toy texts that the sources of `recipe` are read from."""
    from tests.toy_training import write_root

    return write_root(tmp_path / "data")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A training recipe of a few steps."""
    from tests.toy_training import RECIPE

    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a pseudo-terminal that changes no bytes."""
    import pty
    import tty

    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    yield ours, theirs
    os.close(ours)


@pytest.fixture
def hf_copy(hf_checkpoint: Path, tmp_path: Path) -> Path:
    """A tiny Hugging Face folder of one's own, to change."""
    return Path(shutil.copytree(hf_checkpoint, tmp_path / "model"))


@pytest.fixture
def own_checkpoint(hf_checkpoint: Path, tmp_path: Path) -> Path:
    """The same model in this project's own format, to change."""
    from bltcli.checkpoint import open_checkpoint, write_checkpoint

    source = open_checkpoint(hf_checkpoint)
    metadata = {"training": {"steps": 1}}
    write_checkpoint(tmp_path / "own", source.config, source.weights, licence={"license": "mit"}, metadata=metadata)
    return tmp_path / "own"

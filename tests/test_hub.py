"""Downloading from the Hub: against a server on this machine, each fetch in a process of its own, as users run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bltcli.checkpoint import open_checkpoint
from bltcli.checkpoint.hub import fetch, is_hub_name
from bltcli.errors import ModelError
from tests.helpers import edit_json
from tests.hub import FakeHub, fake_hub

FETCH = """
import sys
from bltcli.checkpoint.hub import fetch
from bltcli.errors import ModelError
try:
    sys.stdout.write(str(fetch(sys.argv[1])))
except ModelError as error:
    sys.stdout.write(f"ModelError: {error}")
"""


class Client:
    """A user with a Hub cache of their own."""

    def __init__(self, home: Path, endpoint: str) -> None:
        self.home, self.endpoint = home, endpoint

    def fetch(self, name: str, **environment: str) -> str:
        """What FETCH prints, after checking that it is all that is printed."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "XDG_"))}
        own = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", FETCH, name]
        done = subprocess.run(command, env=keep | own | environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert "\n" not in done.stdout
        return done.stdout


@pytest.fixture
def hub(hf_copy: Path) -> Iterator[FakeHub]:
    """A Hub with "owner/tiny": main, a tag v1 with another configuration, and files that nobody should download."""
    for name in ("consolidated.pth", "pytorch_model.bin", "modeling.py"):
        (hf_copy / name).write_bytes(b"never download this")
    (hf_copy / "README.md").write_text("---\nlicense: other\n---\n")
    with fake_hub() as server:
        server.add("owner/tiny", "main", hf_copy)
        edit_json(hf_copy / "config.json", max_patch_length=8)
        server.add("owner/tiny", "v1", hf_copy)
        yield server


@pytest.fixture
def client(hub: FakeHub, tmp_path: Path) -> Client:
    return Client(tmp_path / "hf-home", hub.url)


def test_a_model_is_fetched_into_the_hub_cache_once(hub: FakeHub, client: Client, hf_checkpoint: Path) -> None:
    folder = Path(client.fetch("owner/tiny"))
    assert folder.is_relative_to(client.home)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == open_checkpoint(hf_checkpoint).config
    assert checkpoint.licence == {"license": "other"}
    assert {"config.json", "model.safetensors"} <= hub.downloaded
    assert not [name for name in hub.downloaded if name.endswith((".pth", ".bin", ".py"))]
    hub.requests.clear()
    assert client.fetch("owner/tiny") == str(folder)
    assert "model.safetensors" not in hub.downloaded


def test_a_revision_can_be_pinned_by_tag_and_by_commit(hub: FakeHub, client: Client) -> None:
    tagged = client.fetch("owner/tiny@v1")
    assert open_checkpoint(Path(tagged)).config.patcher.max_patch_length == 8
    assert client.fetch(f"owner/tiny@{hub.commit('owner/tiny', 'v1')}") == tagged
    assert client.fetch("owner/tiny") != tagged


def test_offline_uses_the_cache_and_says_when_it_cannot(hub: FakeHub, client: Client) -> None:
    line = client.fetch("owner/tiny", HF_HUB_OFFLINE="1")
    assert "not in the local cache, and HF_HUB_OFFLINE forbids" in line
    folder = client.fetch("owner/tiny")
    hub.requests.clear()
    assert client.fetch("owner/tiny", HF_HUB_OFFLINE="1") == folder
    assert hub.requests == []


def test_what_the_hub_refuses_is_said_in_one_line(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    hub.gated.add("meta/gated")
    gated = client.fetch("meta/gated")
    assert f"access is gated; accept its licence at {hub.url}/meta/gated, then run `hf auth login`" in gated
    assert "neither a folder here nor a model at" in client.fetch("owner/nothing")
    assert "has no revision 'v9'" in client.fetch("owner/tiny@v9")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "consolidated.pth").write_bytes(b"...")
    hub.add("owner/pickled", "main", pickled)
    assert "has no safetensors weights" in client.fetch("owner/pickled")


def test_a_network_that_is_down_is_said_in_one_line(tmp_path: Path) -> None:
    with fake_hub() as hub:
        gone = hub.url
    line = Client(tmp_path, gone).fetch("owner/tiny")
    assert line.startswith(f"ModelError: owner/tiny: cannot be downloaded from {gone}: ")
    assert len(line) < 300


def test_without_the_library_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"pip install 'bltcli\[hub\]'"):
        fetch("owner/tiny")


@pytest.mark.parametrize(
    "name", ["owner/model", "a-b/c.d_e", "owner/model@v1.0", "owner/model@refs/pr/1", "o/m@91aa6b8e"]
)
def test_names_on_the_hub(name: str) -> None:
    assert is_hub_name(name)


@pytest.mark.parametrize(
    "name", ["model", "./model", "../a/b", "/a/b", "a/b/c", "owner/model@", "owner/", "a b/c", "owner/model@v 1", ""]
)
def test_names_that_are_no_names_on_the_hub(name: str) -> None:
    assert not is_hub_name(name)
    if name:
        with pytest.raises(ModelError, match="no Hub name"):
            fetch(name)


def test_a_folder_that_exists_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/model").mkdir(parents=True)
    assert not is_hub_name("owner/model")
    shutil.rmtree("owner")
    assert is_hub_name("owner/model")

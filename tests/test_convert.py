"""`bltcli convert`, and what it does with pickles."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from bltcli.checkpoint import open_checkpoint, pickles
from bltcli.commands.convert import command
from bltcli.errors import ModelError, UsageError
from bltcli.nn.loading import load_blt
from tests.helpers import random_ids
from tests.meta import save_meta_twin

IDS = random_ids(120)


def convert(*args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


def refusal(result: Result) -> str:
    assert isinstance(result.exception, ModelError)
    line = str(result.exception)
    assert "\n" not in line
    return line


@torch.no_grad()
def logits_of(folder: Path) -> torch.Tensor:
    model = load_blt(open_checkpoint(folder))
    logits: torch.Tensor = model(model.layout(IDS))
    return logits


def test_a_hugging_face_folder_becomes_an_own_one(hf_copy: Path, tmp_path: Path) -> None:
    (hf_copy / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    result = convert(hf_copy, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert result.stdout == ""
    out = open_checkpoint(tmp_path / "out")
    assert (out.kind, out.licence) == ("bltcli", {"license": "apache-2.0"})
    assert out.config == open_checkpoint(hf_copy).config
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(hf_copy))


def test_a_meta_folder_becomes_an_own_one(hf_checkpoint: Path, tmp_path: Path) -> None:
    result = convert(save_meta_twin(tmp_path / "meta", hf_checkpoint), "-o", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(hf_checkpoint))


@pytest.mark.parametrize("sibling", [False, True], ids=["inside", "sibling"])
def test_pickles_are_converted_when_allowed_and_only_then(sibling: bool, hf_checkpoint: Path, tmp_path: Path) -> None:
    folder = save_meta_twin(tmp_path / "blt" / "blt_1b", hf_checkpoint, pickled=True)
    if sibling:
        (folder / "entropy_model").rename(folder.parent / "entropy_model")
    before = sorted(folder.parent.rglob("*"))
    line = refusal(convert(folder, "-o", tmp_path / "out"))
    assert f"bltcli convert {folder} -o OUT --allow-pickle" in line
    result = convert(folder, "-o", tmp_path / "out", "--allow-pickle")
    assert result.exit_code == 0, result.exception
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(hf_checkpoint))
    assert sorted(folder.parent.rglob("*")) == before, "the source is left as it was"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["blt", "out"], "no temporary folder is left"


def test_a_hugging_face_pickle_is_converted(hf_copy: Path, tmp_path: Path) -> None:
    weights = hf_copy / "model.safetensors"
    tensors = load_file(weights)
    torch.save({n: t.bfloat16() if "norm" in n else t for n, t in tensors.items()}, hf_copy / "pytorch_model.bin")
    weights.unlink()
    result = convert(hf_copy, "-o", tmp_path / "out", "--allow-pickle")
    assert result.exit_code == 0, result.exception
    out = open_checkpoint(tmp_path / "out")
    assert out.weights["decoder.norm.weight"].dtype == "bfloat16"
    assert torch.equal(
        load_file(tmp_path / "out" / "model.safetensors")["decoder.lm_head.weight"], tensors["lm_head.weight"]
    )


class Malicious:
    """Creates a file when it is unpickled by an unpickler that lets it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_is_refused_and_not_executed(hf_checkpoint: Path, tmp_path: Path) -> None:
    folder = save_meta_twin(tmp_path / "meta", hf_checkpoint, pickled=True)
    proof = tmp_path / "executed"
    torch.save({"model": {"x": torch.ones(1)}, "extra": Malicious(proof)}, folder / "consolidated.pth")
    line = refusal(convert(folder, "-o", tmp_path / "out", "--allow-pickle"))
    assert "consolidated.pth: refused: no plain pickle of tensors" in line
    assert not proof.exists()
    assert not (tmp_path / "out").exists()
    torch.load(folder / "consolidated.pth", weights_only=False)
    assert proof.exists(), "the pickle is one that an unrestricted unpickler executes"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle at all", "refused: no plain pickle"),
        ([torch.ones(1)], "holds a list, expected a table of tensors"),
        ({"model": {"a": 1}}, "'a' is a int, expected a tensor"),
        ({"model": {"a": torch.ones(2, dtype=torch.int64)}}, "tensor a is int64"),
    ],
)
def test_pickles_of_something_else_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ModelError, match=message):
        pickles.convert_file(file, tmp_path / "x.safetensors")


def test_without_torch_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"pip install 'bltcli\[torch\]'"):
        pickles.convert_file(tmp_path / "x.pth", tmp_path / "x.safetensors")


def test_errors_name_the_folder_the_user_gave(hf_checkpoint: Path, tmp_path: Path) -> None:
    folder = save_meta_twin(tmp_path / "meta", hf_checkpoint, pickled=True)
    data = torch.load(folder / "consolidated.pth")
    del data["model"]["local_decoder.norm.weight"]
    torch.save(data, folder / "consolidated.pth")
    line = refusal(convert(folder, "-o", tmp_path / "out", "--allow-pickle"))
    assert line == f"{folder}: tensor local_decoder.norm.weight is missing"


def test_two_pickles_are_one_too_many(hf_checkpoint: Path, tmp_path: Path) -> None:
    folder = save_meta_twin(tmp_path / "meta", hf_checkpoint, pickled=True)
    torch.save({}, folder / "consolidated.01.pth")
    assert "2 pickles" in refusal(convert(folder, "-o", tmp_path / "out", "--allow-pickle"))


def test_existing_folders_are_left_alone(hf_checkpoint: Path, own_checkpoint: Path, tmp_path: Path) -> None:
    result = convert(hf_checkpoint, "-o", own_checkpoint)
    assert isinstance(result.exception, UsageError)
    assert isinstance(convert(hf_checkpoint).exception, UsageError)
    (tmp_path / "empty").mkdir()
    assert convert(hf_checkpoint, "-o", tmp_path / "empty").exit_code == 0


def test_nothing_is_left_when_the_checkpoint_is_bad(hf_copy: Path, tmp_path: Path) -> None:
    file = hf_copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # a NaN in the last tensor
    file.write_bytes(data)
    assert "NaN" in refusal(convert(hf_copy, "-o", tmp_path / "out"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]

"""Weights are in memory once, whatever the runtime does while it loads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bltcli.bundle import open_bundle
from bltcli.checkpoint import open_checkpoint
from bltcli.graphs import Precision
from bltcli_export.exporter import export_checkpoint
from tests.full_size import published, write_random

LOAD = """
import re, sys
from contextlib import nullcontext
from pathlib import Path
from bltcli.bundle import open_bundle
import bltcli_engines.onnxruntime_engine as engine

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

if sys.argv[2] == "as it is":
    engine.freed_at_once = nullcontext
bundle = open_bundle(Path(sys.argv[1]))
before = anonymous()
opened = engine.open_onnxruntime(bundle.specs, bundle.graph_paths, bundle.weight_bytes, 1)
print(anonymous() - before)
"""


def held(folder: Path, allocator: str) -> float:
    """Anonymous memory that the four graphs take, over the size of their files."""
    done = subprocess.run([sys.executable, "-c", LOAD, folder, allocator], capture_output=True, check=True)
    files = open_bundle(folder).manifest["files"]
    return int(done.stdout) / sum(entry["bytes"] for name, entry in files.items() if name.endswith(".data"))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "otherwise"), [("int8", 1.25), ("fp32", 0.0)])
def test_loaded_weights_take_as_much_memory_as_their_files(
    tmp_path: Path, precision: Precision, otherwise: float
) -> None:
    """And it is the C library's setting that does it where the runtime rewrites weights, as it does quantised ones."""
    data = published(2, 256, 4, 704, 2, 1536, 12, 4096, 4) | {"encoder_hash_byte_group_vocab": 50}
    data["patcher_config"] |= {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    checkpoint = open_checkpoint(write_random(tmp_path / "checkpoint", data))
    folder = export_checkpoint(checkpoint, tmp_path / "bundle", precision=precision, check=False)
    assert held(folder, "freed at once") < 1.15
    assert held(folder, "as it is") > otherwise

"""Who may import whom: the layers of the program, and nothing heavy before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {
    "bltcli.config",
    "bltcli.vocab",
    "bltcli.graphs",
    "bltcli.stats",
    "bltcli.errors",
    "bltcli.memory",
    "bltcli.quantised",
}
#: For each place: what of ours it may import when it is imported. What a function needs later is not bound by this.
ALLOWED = {
    "bltcli/errors.py": set(),
    "bltcli/vocab.py": set(),
    "bltcli/strict.py": {"bltcli.errors"},
    "bltcli/config.py": {"bltcli.errors", "bltcli.strict"},
    "bltcli/graphs.py": {"bltcli.config", "bltcli.vocab"},
    "bltcli/stats.py": {"bltcli.graphs"},
    "bltcli/quantised.py": set(),
    "bltcli/nn": LEAVES | {"bltcli.nn", "bltcli.layout", "bltcli.checkpoint"},
    "bltcli/checkpoint": LEAVES | {"bltcli.checkpoint", "bltcli.atomic"},
    "bltcli/decoding": LEAVES | {"bltcli.decoding", "bltcli.sampling"},
    "engines/bltcli_engines": LEAVES | {"bltcli_engines", "bltcli.nn", "bltcli.checkpoint"},
}


def own_imports(file: Path) -> set[str]:
    """Modules of ours that `file` imports at module level, type-checking blocks left out."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] in ("bltcli", "bltcli_export", "bltcli_engines")}


@pytest.mark.parametrize("place", ALLOWED)
def test_a_layer_imports_only_what_lies_below_it(place: str) -> None:
    path = ROOT / place
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        for name in own_imports(file):
            allowed = any(name == a or name.startswith(f"{a}.") for a in ALLOWED[place])
            assert allowed, f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("bltcli.cli", ["numpy", "torch", "onnx", "onnx_ir", "onnxruntime", "rich"]),
        ("bltcli.pipeline", ["torch", "onnx", "onnx_ir", "onnxruntime"]),
        ("bltcli_export.exporter", ["torch"]),
        ("bltcli.checkpoint", ["torch", "onnx", "onnxruntime"]),
        ("bltcli_engines.onnxruntime_cuda", ["torch"]),
        ("bltcli_engines.tensorrt_engine, bltcli_engines.cuda_device", ["torch", "onnx", "onnxruntime"]),
    ],
)
def test_heavy_packages_are_imported_only_where_they_are_used(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print(*[m for m in {absent} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""

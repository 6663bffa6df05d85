"""Checkpoint -> bundle: writes the graphs, the host tables and the manifest; fails when a graph is not the model."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx_ir as ir

from bltcli import __version__
from bltcli.atomic import atomic_folder
from bltcli.bundle import (
    CHOOSING,
    FORMAT,
    FORMAT_VERSION,
    GOLDEN,
    MANIFEST,
    TABLES,
    is_bundle,
    open_bundle,
    patches_entry,
    sha256_of,
    tensor_entry,
)
from bltcli.checkpoint import Checkpoint, Weight
from bltcli.checkpoint.identity import check_patcher
from bltcli.checkpoint.names import HOST_TABLES, component_parameters, expected_shapes
from bltcli.checkpoint.safetensors_map import Stream, write_safetensors
from bltcli.checkpoint.weights import DTYPES
from bltcli.errors import ModelError, UsageError
from bltcli.graphs import DTYPES as GRAPH_DTYPES
from bltcli.graphs import GRAPHS, Precision
from bltcli.memory import available_bytes
from bltcli.quantised import STEPS, block_of
from bltcli_export.batched import write_batched
from bltcli_export.builder import IR_VERSION, OPSET, Builder
from bltcli_export.choosing import write_choosing
from bltcli_export.graphs import build_graph

if TYPE_CHECKING:
    from bltcli_export.parity import Parity


class Component(NamedTuple):
    """One row of a dry run."""

    name: str
    parameters: int
    bytes: int


def dry_run(checkpoint: Checkpoint, precision: Precision) -> list[Component]:
    """What a bundle of `checkpoint` will hold, without writing it."""
    rows, parameters = [], component_parameters(checkpoint.config)
    for name in GRAPHS:
        g = build_graph(name, checkpoint.config, checkpoint.weights, precision)
        rows.append(Component(name, parameters[name], weight_bytes(g)))
    for table, source in HOST_TABLES.items():
        weight = checkpoint.weights[source]
        itemsize = table_dtype(weight, precision).itemsize
        count = int(np.prod(weight.shape))
        rows.append(Component(f"{table} table", count, count * itemsize))
    return rows


def export_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    *,
    precision: Precision,
    check: bool = True,
    notice: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a bundle to `out`, atomically. `check` holds every graph against the torch model, or against the golden
    outputs that lie in the checkpoint; a difference beyond the tolerance raises ModelError and leaves nothing. So does
    an entropy model other than the one that the checkpoint says it was trained with."""
    check_patcher(checkpoint)
    if check and not (checkpoint.path / GOLDEN).is_file():
        _require_memory(checkpoint, precision)
    needed = sum(row.bytes for row in dry_run(checkpoint, precision))
    try:
        with atomic_folder(out, is_bundle) as folder:
            free = shutil.disk_usage(folder).free
            if free < needed * 1.05:
                raise ModelError(f"{out.parent} has {free:,} bytes free, the bundle needs {needed:,}; free some space")
            _write(checkpoint, folder, precision, check, notice)
    except FileExistsError:
        raise UsageError(f"{out} exists and is no bundle; choose another folder") from None
    except NotADirectoryError as error:
        raise UsageError(f"{error.filename} is a file, so {out} cannot be made; choose another folder") from error
    except OSError as error:
        raise ModelError(f"{out}: cannot write the bundle: {error.strerror or error}") from error
    return out


def check_bytes(as_float32: int, as_loaded: int) -> int:
    """Memory that the check takes: PyTorch's weights in float32, the graphs' as ONNX Runtime's CPU holds them, and a
    fifth more for what lives between. Tables stay in their file."""
    return (as_float32 + as_loaded) * 6 // 5


def _memory_to_check(checkpoint: Checkpoint, precision: Precision) -> int:
    widened = precision if precision in STEPS else "fp32"  # ONNX Runtime's CPU widens 16 bits
    graphs = [sum(row.bytes for row in dry_run(checkpoint, kind)[: len(GRAPHS)]) for kind in ("fp32", widened)]
    return check_bytes(*graphs)


def _require_memory(checkpoint: Checkpoint, precision: Precision) -> None:
    """Better refused before the work than killed after it."""
    needed, available = _memory_to_check(checkpoint, precision), available_bytes()
    if available is not None and needed > available:
        raise ModelError(
            f"checking the graphs against PyTorch takes {needed:,} bytes of memory, {available:,} are available; free "
            "some, or export with --no-check (the manifest records it) and run bltcli verify on a larger machine"
        )


def _write(
    checkpoint: Checkpoint, folder: Path, precision: Precision, check: bool, notice: Callable[[str], None]
) -> None:
    graphs: dict[str, Any] = {}
    parameters = component_parameters(checkpoint.config)
    for name in GRAPHS:
        notice(f"writing {name}.onnx")
        g = build_graph(name, checkpoint.config, checkpoint.weights, precision)
        graphs[name] = {
            **write_forms(g, folder),
            "parameters": parameters[name],
            "weight_bytes": weight_bytes(g),
            "inputs": [tensor_entry(t) for t in g.spec.inputs],
            "outputs": [tensor_entry(t) for t in g.spec.outputs],
        }
    notice(f"writing {TABLES}")
    write_tables(checkpoint, folder / TABLES, precision)
    golden = checkpoint.path / GOLDEN
    if golden.is_file():
        shutil.copyfile(golden, folder / GOLDEN)
    write_manifest(folder, checkpoint, precision, graphs, None)
    if check:
        minutes = " (minutes at this size)" if _memory_to_check(checkpoint, precision) > 2**31 else ""
        notice(f"checking the graphs against the model{minutes}")
        write_manifest(folder, checkpoint, precision, graphs, _check(checkpoint, folder, precision))


def _check(checkpoint: Checkpoint, folder: Path, precision: Precision) -> Parity:
    """Run the parity gate on what was written; for bfloat16, which ONNX Runtime's CPU cannot multiply, on the float32
    twin with the same rounded weights."""
    from bltcli_export.parity import check_parity  # brings the engine along, which a dry run does without

    if precision != "bf16":
        return check_parity(open_bundle(folder), checkpoint)
    with tempfile.TemporaryDirectory() as name:
        twin = Path(name)
        for graph in GRAPHS:
            g = build_graph(graph, checkpoint.config, checkpoint.weights, "fp32", round_to="bfloat16")
            write_forms(g, twin)
        shutil.copyfile(folder / TABLES, twin / TABLES)
        manifest = json.loads((folder / MANIFEST).read_bytes())
        graphs = manifest["graphs"]
        for graph, spec in open_bundle(folder).specs.items():
            as_float = [
                [{**tensor_entry(t), "dtype": "float32" if t.dtype == "bfloat16" else t.dtype} for t in side]
                for side in (spec.inputs, spec.outputs)
            ]
            graphs[graph] = {**graphs[graph], "inputs": as_float[0], "outputs": as_float[1]}
        write_manifest(twin, checkpoint, "fp32", graphs, None)
        return check_parity(open_bundle(twin), checkpoint, rounded_to="bfloat16")


def write_forms(g: Builder, folder: Path) -> dict[str, str]:
    """Write a graph in each of its forms; their files by their keys in the manifest."""
    name, suffixes = g.spec.name, {"file": "", "batched_file": ".batched"}
    if name == "decoder" and "ids" in g.inputs:
        suffixes[CHOOSING] = ".choosing"
    files = {form: f"{name}{suffix}.onnx" for form, suffix in suffixes.items()}
    save_graph(g, folder / files["file"])
    write_batched(folder / files["file"], folder / files["batched_file"])
    if CHOOSING in files:
        write_choosing(folder / files["file"], folder / files[CHOOSING], g.spec)
    return files


def save_graph(g: Builder, path: Path) -> None:
    """The graph and, beside it, its weights as external data, read and written one tensor at a time."""
    ir.save(g.model(), str(path), external_data=f"{path.name}.data", size_threshold_bytes=1024)


def weight_bytes(g: Builder) -> int:
    """Bytes of weights one run reads; of an embedding table only single rows are read."""
    size: int = sum(
        value.const_value.nbytes
        for value in g.tape.initializers
        if value.const_value is not None
        and not str(value.name).endswith("embed_tokens.weight")
        and not str(value.name).startswith("constant_")
    )
    return size


def table_dtype(weight: Weight, precision: Precision) -> np.dtype[Any]:
    """float32 bundles keep a table as the checkpoint has it (exact when widened), all others have 16 bits: those of the
    checkpoint, or else the graphs' own, or float16."""
    if precision == "fp32" or weight.dtype != "float32":
        return DTYPES[weight.dtype]
    return DTYPES[GRAPH_DTYPES[precision] if precision in ("fp16", "bf16") else "float16"]


def write_tables(checkpoint: Checkpoint, path: Path, precision: Precision) -> None:
    """The host tables, streamed."""
    weights = {name: checkpoint.weights[source] for name, source in HOST_TABLES.items()}
    write_safetensors(path, {name: _converted(w, table_dtype(w, precision)) for name, w in weights.items()})


def _converted(weight: Weight, dtype: np.dtype[Any]) -> Stream:
    return dtype, weight.shape, (chunk.astype(dtype) for chunk in weight.chunks())


def write_manifest(
    folder: Path, checkpoint: Checkpoint, precision: Precision, graphs: dict[str, Any], parity: Parity | None
) -> None:
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)}
        for p in sorted(folder.iterdir())
        if p.name != MANIFEST
    }
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "precision": precision,
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "model": checkpoint.config.to_dict(),
        **quantised_entry(checkpoint, precision),
        "patches": patches_entry(checkpoint.config.patcher),
        "graphs": graphs,
        "tables": {
            "file": TABLES,
            "parameters": sum(int(np.prod(checkpoint.weights[t].shape)) for t in HOST_TABLES.values()),
        },
        "files": files,
        "parity": parity.to_dict() if parity else {"checked": False},
        "licence": dict(checkpoint.licence),
        "metadata": dict(checkpoint.metadata),
        "source": {
            "kind": checkpoint.kind,
            "sha256": checkpoint.sha256,
            "tensors": len(expected_shapes(checkpoint.config)),
        },
        "versions": _versions(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def quantised_entry(checkpoint: Checkpoint, precision: Precision) -> dict[str, Any]:
    """How a quantised bundle holds the weights of its graphs: how many in blocks of which length, and in float32."""
    if precision not in ("int8", "int4"):
        return {}
    counts: Counter[str] = Counter()
    for name in checkpoint.weights.keys() - set(HOST_TABLES.values()):
        shape = checkpoint.weights[name].shape
        counts[str(block_of(name, shape) or "float32")] += int(np.prod(shape))
    scheme = "symmetric, to the nearest, a float32 scale per output and block of inputs"
    return {
        "quantised": {"bits": int(precision[3:]), "scheme": scheme, "weights_by_block": dict(sorted(counts.items()))}
    }


def _versions() -> dict[str, str]:
    found = {"bltcli": __version__, "python": platform.python_version()}
    for package in ("onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "numpy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

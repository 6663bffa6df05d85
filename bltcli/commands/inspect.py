"""`bltcli inspect`: what a bundle or a checkpoint holds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bltcli import render, settings, streams
from bltcli.commands import json_option, options
from bltcli.errors import ModelError


@click.command(
    epilog="""\b
Examples:
  bltcli export -o bundle
  bltcli inspect bundle
  bltcli inspect bundle --json""",
)
@click.argument("folder", type=click.Path())
@options(json_option, settings.verbosity_options)
def command(folder: str, json: bool) -> None:
    """Show the configuration, graphs, sizes, hashes and licence of FOLDER, a bundle or a checkpoint."""
    path = Path(folder)
    if not path.is_dir():
        raise ModelError(f"{folder}: " + ("is a file; name the folder it is in" if path.exists() else "no such folder"))
    from bltcli.bundle import is_bundle

    facts = of_bundle(path) if is_bundle(path) else of_checkpoint(path)
    streams.write_stdout(render.to_json(facts) if json else human(facts).encode())


def of_bundle(path: Path) -> dict[str, Any]:
    from bltcli.bundle import open_bundle, tensor_entry

    bundle, found = open_bundle(path), files(path)
    graphs: dict[str, dict[str, Any]] = {
        name: {
            "parameters": bundle.parameters[name],
            "bytes": sum(count for file, count in found.items() if file.startswith(bundle.graph_paths[name].name)),
            "bytes_per_pass": bundle.weight_bytes[name],
            "inputs": [tensor_entry(tensor) for tensor in spec.inputs],
            "outputs": [tensor_entry(tensor) for tensor in spec.outputs],
        }
        for name, spec in bundle.specs.items()
    }
    tables = bundle.tables()
    return {
        "kind": "bundle",
        "path": str(path),
        "precision": bundle.precision,
        "sha256": bundle.sha256,
        "licence": dict(bundle.licence),
        "config": bundle.config.to_dict(),
        "graphs": graphs,
        "tables": {
            "parameters": tables.byte.size + tables.hashed.size,
            "bytes": tables.byte.nbytes + tables.hashed.nbytes,
        },
        "files": found,
        "manifest": dict(bundle.manifest),
    }


def of_checkpoint(path: Path) -> dict[str, Any]:
    from bltcli.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    components: dict[str, dict[str, int]] = {}
    for name, weight in checkpoint.weights.items():
        part = components.setdefault(name.split(".")[0], {"tensors": 0, "parameters": 0, "bytes": 0})
        part["tensors"] += 1
        part["parameters"] += math.prod(weight.shape)
        part["bytes"] += weight.nbytes
    return {
        "kind": f"checkpoint ({checkpoint.kind})",
        "path": str(path),
        "sha256": checkpoint.sha256,
        "licence": dict(checkpoint.licence),
        "config": checkpoint.config.to_dict(),
        "components": components,
        "files": files(path),
        "metadata": dict(checkpoint.metadata),
    }


def files(path: Path) -> dict[str, int]:
    """Bytes of every file below `path`."""
    return {str(f.relative_to(path)): f.stat().st_size for f in sorted(path.rglob("*")) if f.is_file()}


def human(facts: Mapping[str, Any]) -> str:
    """The same for reading; the manifest is left to --json."""
    licence = ", ".join(f"{key}: {value}" for key, value in facts["licence"].items()) or "not stated"
    keys = [key for key in ("kind", "precision", "sha256") if key in facts]
    sections = [render.table([*((key, facts[key]) for key in keys), ("licence", licence)])]
    sections.append(configuration(facts["config"]))
    parts = {**facts["graphs"], "tables": facts["tables"]} if "graphs" in facts else facts["components"]
    rows = [
        (name, f"{part['parameters']:,}", render.size(part["bytes"]), render.size(part.get("bytes_per_pass", 0)))
        for name, part in parts.items()
    ]
    head = ("component", "parameters", "size", "read per pass")
    columns = slice(None) if "graphs" in facts else slice(3)
    sections.append(render.table([row[columns] for row in (head, *rows)]))
    sections += [io_table(name, graph) for name, graph in facts.get("graphs", {}).items()]
    sections.append(render.table([("file", "size"), *((n, render.size(b)) for n, b in facts["files"].items())]))
    return "\n".join(sections)


def configuration(config: Mapping[str, Any]) -> str:
    """One column per part of the model."""
    parts = {name: part for name, part in config.items() if isinstance(part, Mapping)}
    keys = list(dict.fromkeys(key for part in parts.values() for key in part))
    rows = [(key, *(show(part[key]) if key in part else "" for part in parts.values())) for key in keys]
    whole = [(name, show(value)) for name, value in config.items() if name not in parts]
    return render.table([("configuration", *parts), *rows]) + render.table(whole)


def show(value: Any) -> str:
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def io_table(name: str, graph: Mapping[str, Any]) -> str:
    """Inputs and outputs of one graph; the caches of all layers share one row."""
    rows: dict[tuple[str, ...], None] = {}
    for side in ("inputs", "outputs"):
        for tensor in graph[side]:
            label = re.sub(r"\.\d+\.(key|value)$", ".*", tensor["name"])
            rows[(f"{name} {side[:-1]}", label, tensor["dtype"], f"[{', '.join(map(str, tensor['shape']))}]")] = None
    return render.table(list(rows))

"""What a bundle will take, on disk and in memory, before anything is written: reads shapes, never weights."""

from __future__ import annotations

import math
from typing import Final, NamedTuple, get_args

from bltcli.bundle import TABLES
from bltcli.cache import STEP
from bltcli.checkpoint import Checkpoint
from bltcli.config import ModelConfig
from bltcli.graphs import GRAPHS, Precision, graph_specs
from bltcli.texts import LATENT_SLOTS, PREFILL_ROWS, slide_step
from bltcli_export.exporter import check_bytes, dry_run
from bltcli_export.graphs import build_graph

PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
BYTES_PER_PATCH: Final = 4


class Component(NamedTuple):
    """A graph or the host tables; bytes by precision."""

    name: str
    parameters: int
    file_bytes: dict[Precision, int]
    cache_bytes: dict[Precision, int]  # of one text


def plan(checkpoint: Checkpoint, context: int) -> list[Component]:
    """The components of a bundle of `checkpoint` at every precision, and what their caches hold at most for one text of
    `context` bytes, in patches of BYTES_PER_PATCH."""
    sizes = {precision: dry_run(checkpoint, precision) for precision in PRECISIONS}
    files: dict[Precision, dict[str, int]] = {precision: file_bytes(checkpoint, precision) for precision in PRECISIONS}
    caches: dict[Precision, dict[str, int]] = {
        precision: cache_bytes(checkpoint.config, precision, context) for precision in PRECISIONS
    }
    found = [
        Component(
            name,
            sizes["fp32"][number].parameters,
            _of(name, files),
            _of(name, caches),
        )
        for number, name in enumerate(GRAPHS)
    ]
    tables = {precision: sizes[precision][len(GRAPHS) :] for precision in PRECISIONS}
    nothing = dict.fromkeys(PRECISIONS, 0)
    parameters = sum(row.parameters for row in tables["fp32"])
    bytes_of: dict[Precision, int] = {
        precision: sum(row.bytes for row in tables[precision]) for precision in PRECISIONS
    }
    return [*found, Component(TABLES, parameters, bytes_of, nothing)]


def _of(name: str, sizes: dict[Precision, dict[str, int]]) -> dict[Precision, int]:
    return {precision: entry[name] for precision, entry in sizes.items()}


def file_bytes(checkpoint: Checkpoint, precision: Precision) -> dict[str, int]:
    """Bytes of each graph's weights and constants, rotary tables among them; nodes take some kilobytes more."""
    graphs = {name: build_graph(name, checkpoint.config, checkpoint.weights, precision) for name in GRAPHS}
    return {
        name: sum(value.const_value.nbytes for value in g.tape.initializers if value.const_value is not None)
        for name, g in graphs.items()
    }


def cache_bytes(config: ModelConfig, precision: Precision, context: int) -> dict[str, int]:
    """Bytes of state per graph for one text of `context` bytes: keys, values and what it hands to the next graph."""
    held = min(context, config.reach - 1 + slide_step(config)) + PREFILL_ROWS
    patches = -(-((context + PREFILL_ROWS) // BYTES_PER_PATCH + 2) // STEP) * STEP
    sizes = {
        "batch": 1,
        "slots": -(-held // STEP) * STEP,
        "patch_slots": patches,
        "latent_slots": min(patches, LATENT_SLOTS),
    }
    return {
        name: sum(
            math.prod(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
            * (4 if tensor.dtype == "float32" else 2)
            for tensor in spec.inputs
            if tensor.name in spec.state
        )
        for name, spec in graph_specs(config, precision).items()
    }


def tables_of(components: list[Component], context: int) -> list[list[tuple[str, ...]]]:
    """Two tables as text: files by component and precision, and memory while one text of `context` bytes is decoded."""
    from bltcli import render

    def row(name: str, values: dict[Precision, int]) -> tuple[str, ...]:
        return (name, *(render.size(values[precision]) for precision in PRECISIONS))

    def total(values: list[dict[Precision, int]]) -> dict[Precision, int]:
        return {precision: sum(entry[precision] for entry in values) for precision in PRECISIONS}

    files, caches = [c.file_bytes for c in components], [c.cache_bytes for c in components]
    counts = [*(c.parameters for c in components), sum(c.parameters for c in components)]
    named = [*(c.name for c in components), "total"]
    on_disk = [
        (line[0], f"{count:,}", *line[1:])
        for count, line in zip(counts, map(row, named, [*files, total(files)]), strict=True)
    ]
    held = total(files[:-1])
    held["fp16"] = held["fp32"]  # ONNX Runtime's CPU widens them when it loads
    checking: dict[Precision, int] = {
        p: check_bytes(held["fp32"], held["fp32" if p == "bf16" else p]) for p in PRECISIONS
    }
    patches = context // BYTES_PER_PATCH
    in_memory = [
        *(row(f"caches, {c.name}", c.cache_bytes) for c in components if any(c.cache_bytes.values())),
        row("weights", held),
        row("together", total([held, *caches])),
        row("tables, mapped from the file", files[-1]),
        row("export, checking against PyTorch", checking),
    ]
    return [
        [("files", "parameters", *PRECISIONS), *on_disk],
        [(f"memory at {context:,} bytes, {patches:,} patches", *PRECISIONS), *in_memory],
    ]

"""One benchmark from settings to report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bltcli.bench.floor import DEFINITION, Bandwidth
from bltcli.bench.machine import cores, environment
from bltcli.bench.measure import Contender, Task, open_contenders, take_turns
from bltcli.bench.noise import spread
from bltcli.bench.paper import DIFFERENCES
from bltcli.bench.report import DEFINITIONS, FORMAT, VERSION, make_rows, task_facts
from bltcli.bench.settings import Setting, with_reference
from bltcli.bundle import Bundle
from bltcli.pipeline import Pipeline, open_model

Report = dict[str, Any]

IN_HOST_MEMORY = ("ort-cpu", "torch")  # engines whose bandwidth is that of the machine's memory


def run_bench(
    settings: Sequence[Setting],
    bundle_of: Callable[[str | None], Bundle],
    task: Task,
    *,
    engine: str = "auto",
    threads: int = 0,
    repeats: int = 5,
    paper: tuple[str, str] = ("3B", "FR-EN"),
    others: Sequence[Contender] = (),
    probe_bytes: int | None = None,
    opener: Callable[..., Pipeline] = open_model,
    advance: Callable[[int], None] = lambda done: None,
) -> Report:
    """Run `settings` (and `others`: programs that are not ours) in turns and report, as an object for JSON.

    `bundle_of` opens the bundle of a precision (None: the default one). `probe_bytes`: size of the arrays of the
    bandwidth probe, in place of its own choice. `opener`: see `open_contenders`. UsageError or ModelError where a
    setting cannot run on its bundle.
    """
    chosen = with_reference(settings)
    ours = open_contenders(chosen, bundle_of, task, engine=engine, threads=threads, opener=opener)
    contenders: list[Contender] = [*ours, *others]
    on_host = [c for c in ours if c.model.engine_name in IN_HOST_MEMORY]
    counts = {c.model.engine_name: engine_threads(c.bundle, c.model.engine_name, threads) for c in on_host}
    probes = {count: Bandwidth(count, probe_bytes) for count in set(counts.values())}
    seen: dict[int, list[dict[str, float]]] = {count: [] for count in probes}

    def probe() -> None:
        for count, bandwidth in probes.items():
            seen[count].append(bandwidth.probe())

    turns = take_turns(contenders, repeats, probe, advance)
    found = {name: _bandwidth(probes[count], seen[count]) for name, count in counts.items()}
    rows = make_rows(contenders, turns, {name: facts["bytes_per_s"] for name, facts in found.items()}, paper)
    return {
        "format": FORMAT,
        "version": VERSION,
        **environment(),
        "task": task_facts(task),
        "bundles": {c.bundle.precision: c.bundle.sha256 for c in ours},
        "repeats": repeats,
        "bandwidth": found,
        "definitions": {**DEFINITIONS, "bandwidth": DEFINITION},
        "paper_note": DIFFERENCES,
        "rows": rows,
    }


def engine_threads(bundle: Bundle, engine_name: str, threads: int) -> int:
    """How many threads the engine computes with, `threads` 0 being its own choice."""
    if threads:
        return threads
    if engine_name == "torch":
        import torch

        return torch.get_num_threads()
    from bltcli_engines.onnxruntime_engine import SMALL_GRAPH_BYTES

    return cores() if max(bundle.weight_bytes.values()) >= SMALL_GRAPH_BYTES else 1


def _bandwidth(probe: Bandwidth, seen: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    kernels = {name: spread([rates[name] for rates in seen]).to_dict() for name in seen[0]}
    best = max(kernels, key=lambda name: kernels[name]["median"])
    return {
        "bytes_per_s": kernels[best]["median"],
        "kernel": best,
        "kernels": kernels,
        "threads": probe.threads,
        "array_bytes": probe.array_bytes,
    }


def open_bundles(
    model: str | None, precision: str | None, notice: Callable[[str], None]
) -> Callable[[str | None], Bundle]:
    """Opens the bundle that --model names, in the precision of a setting or of the run."""
    from bltcli.bundle import open_bundle
    from bltcli.models import resolve_bundle

    return lambda own: open_bundle(resolve_bundle(model, own or precision, notice))

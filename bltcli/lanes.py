"""Opens a bundle for many texts: one batch, or several side by side."""

from __future__ import annotations

from bltcli.bench.machine import cores
from bltcli.bundle import Bundle
from bltcli.pipeline import Pipeline, open_model

SMALL_GRAPH_BYTES = 64_000_000  # of weights: graphs of 2 to 21 MB gain from lanes; larger ones were not measured
MOST = 4  # lanes share one interpreter, which a small model keeps busy for a tenth to a fourth of a lane's time
LEAST_ROWS = 2


def open_lanes(
    bundle: Bundle, *, engine: str = "auto", rows: int = 1, threads: int = 0, exact: bool = True
) -> list[Pipeline]:
    """`rows` texts, shared out among as many pipelines as gain from running side by side (`serve_lanes`): on the CPU
    one per core where the graphs are small, at most MOST and `threads` if that is given; else one. See `open_model`."""
    small = max(bundle.weight_bytes.values()) < SMALL_GRAPH_BYTES
    lanes = max(1, min(threads or cores(), rows // LEAST_ROWS, MOST)) if small and engine in ("auto", "ort-cpu") else 1
    most = -(-rows // lanes)
    first = open_model(bundle, engine=engine, rows=most, threads=1 if lanes > 1 else threads, exact=exact)
    if first.engine_name != "ort-cpu" and most < rows:  # a GPU, which one batch uses best
        return [open_model(bundle, engine=engine, rows=rows, threads=threads, exact=exact)]
    return [first, *(first.twin(len(range(lane, rows, lanes))) for lane in range(1, lanes))]

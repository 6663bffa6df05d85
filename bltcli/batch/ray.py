"""The same predictor over a Ray cluster: Ray Data sends batches of texts to actors that hold a model each."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bltcli.batch.ordering import Result
from bltcli.batch.predictor import Predictor
from bltcli.batch.run import Runner
from bltcli.decoding.driver import Request

#: Of the window, items and bytes: what is on the cluster at once. An actor opens its model once per so many.
BOUNDS: Final = (1 << 17, 1 << 30)
#: Texts that are sent together, per text that is decoded together: rows stay full until the last ones.
SENT_PER_ROW: Final = 8


class Actor:
    """What Ray runs on its workers: tables of texts in, tables of results out."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        found = self._predictor(table.to_pydict())
        texts = pa.array(found["output"], type=pa.binary())
        return pa.table({"number": found["number"], "output": texts, "end": found["end"], "error": found["error"]})


def ray_runner(predictor: Predictor, actors: int | None = None) -> Runner:
    """A runner on the cluster that RAY_ADDRESS names, or on one begun on this machine, with `actors` (default: as many
    as its processors allow). The bundle's folder must be there on every machine; the built-in model is."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by itself; else it warns
    import pyarrow as pa

    ray: Any = importlib.import_module("ray")  # an extra: type checkers need not have it
    importlib.import_module("ray.data")

    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if predictor.model is not None and Path(predictor.model).exists():
        predictor = replace(predictor, model=str(Path(predictor.model).resolve()))
    predictor = replace(predictor, threads=predictor.threads or 1)  # what each actor asks Ray for
    count = actors or max(1, int(ray.cluster_resources().get("CPU", 1) // predictor.threads))

    def run(requests: Iterator[Request]) -> Iterator[Result]:
        texts = list(requests)
        if not texts:
            return
        table = pa.table(
            {
                "number": [request.record for request in texts],
                "prompt": pa.array([request.prompt for request in texts], type=pa.binary()),
                "max_bytes": [min(request.stop.max_bytes, 2**62) for request in texts],
                "stop": pa.array([list(request.stop.strings) for request in texts], type=pa.list_(pa.binary())),
            }
        )
        size = min(SENT_PER_ROW * predictor.rows, -(-len(texts) // count))
        sent = ray.data.from_arrow([table.slice(at, size) for at in range(0, len(texts), size)])
        found = sent.map_batches(
            Actor, fn_constructor_args=(predictor,), batch_format="pyarrow", batch_size=size,
            num_cpus=predictor.threads,
            compute=ray.data.ActorPoolStrategy(min_size=min(count, -(-len(texts) // size)), max_size=count),
        )  # fmt: skip
        for row in found.iter_rows():
            yield Result(int(row["number"]), row["output"], row["end"] or None, row["error"] or None)

    return run

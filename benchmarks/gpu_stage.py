"""What every stage of benchmarks/gpu.py is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bltcli.bundle import Bundle, open_bundle
from bltcli.errors import ModelError
from bltcli.models import resolve_bundle
from bltcli.pipeline import Pipeline, open_model

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage on one model and engine."""

    stage: str
    model: str
    precision: str
    engine: str
    prompts: int
    new_bytes: int
    repeats: int
    bytes_per_s: float | None = None  # of memory, where the stage "bandwidth" has run

    def share(self, bytes_per_s: float) -> float | None:
        """Of the measured bandwidth; above 1 where weights stay in a cache."""
        return None if self.bytes_per_s is None else bytes_per_s / self.bytes_per_s

    def bundle(self, precision: str | None = None) -> Bundle:
        path = self.model if self.model == "builtin" else str(Path(self.model))
        wanted = (precision or self.precision or None) if self.model == "builtin" else None
        return open_bundle(resolve_bundle(path, wanted, print))

    def open(self, engine: str | None = None) -> Pipeline:
        return open_model(self.bundle(), engine=engine or self.engine)


def free_bytes() -> int | None:
    """GPU memory that is free; None without a GPU."""
    from bltcli_engines.gpu import describe_gpu

    try:
        return describe_gpu().free_bytes
    except ModelError:
        return None

"""The only place where passes, their bytes and their time are counted."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bltcli.graphs import GraphSpec
from bltcli.stats import Ledger
from bltcli.vocab import IdArray
from bltcli_engines.protocol import Arrays, Buffer, DraftsBytes, Engine, Runs


class CountingEngine:
    """An engine that charges each run to what is open in the ledger at that moment."""

    def __init__(self, engine: Engine, ledger: Ledger) -> None:
        self.engine, self._ledger, self._name = engine, ledger, engine.spec.name
        self.buffers: Mapping[str, Buffer] = {}
        self.outputs: Arrays = {}  # of the last run

    @property
    def spec(self) -> GraphSpec:
        return self.engine.spec

    @property
    def weight_bytes(self) -> int:
        return self.engine.weight_bytes

    @property
    def kv_bytes(self) -> int:
        return self.engine.kv_bytes

    def bind(self, buffers: Mapping[str, Buffer]) -> None:
        self.buffers = buffers
        self.engine.bind(buffers)

    def fork(self) -> CountingEngine:
        return CountingEngine(self.engine.fork(), self._ledger)

    def run(self, feeds: Arrays, counts: NDArray[Any], few: Runs | None = None) -> Arrays:
        """One pass; by `few`, if given: the same graph for some rows. Texts take part whose number in `counts` is not
        zero."""
        engine, began = few or self.engine, perf_counter()
        self.outputs = engine.run(feeds)
        seconds = perf_counter() - began
        texts = int(np.count_nonzero(counts))
        self._ledger.work.charge(self._name, engine.weight_bytes, engine.kv_bytes, seconds, texts)
        return self.outputs

    @property
    def chooses(self) -> bool:
        """Whether this is a decoder that chooses bytes itself."""
        return any(s.name == "addend" for s in self.spec.inputs)

    def draft(self, feeds: Arrays, counts: IdArray) -> IdArray:
        """As many passes in one submission as the longest of `counts`, the bytes that each text drafts; for an engine
        that `chooses`."""
        engine, began = self.engine, perf_counter()
        assert isinstance(engine, DraftsBytes)
        steps = int(counts.max())
        drafts = engine.draft(feeds, steps)
        seconds = perf_counter() - began
        for step in range(steps):
            texts = int(np.count_nonzero(counts > step))
            self._ledger.work.charge(self._name, engine.weight_bytes, engine.kv_bytes, seconds / steps, texts)
        return drafts

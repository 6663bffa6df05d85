"""A graph for a few rows of a batch: their state goes through smaller buffers."""

from __future__ import annotations

from bltcli_engines.onnxruntime_engine import OrtBuffer, OrtEngine
from bltcli_engines.protocol import Arrays

LATENTS = "past_cross_kv"  # written, never read by the global model


class FewRows:
    """The global graph in ONNX Runtime on the CPU, run for those rows of a batch that need it, on the same weights.

    Copying the keys and values that a row has costs far less than computing the rows that have nothing to do.
    """

    def __init__(self, engine: OrtEngine, most: int) -> None:
        """At most `most` rows at a time, of the buffers that `engine` is bound to."""
        self.spec, self.weight_bytes = engine.spec, engine.weight_bytes
        self._whole, self._part = engine.buffers, engine.fork()
        self._own = {name: OrtBuffer((most, *buffer.array.shape[1:]), buffer.dtype)
                     for name, buffer in self._whole.items()}  # fmt: skip
        self._part.bind(self._own)
        self._most, self._rows = most, most

    @property
    def kv_bytes(self) -> int:
        """Of the rows of the last run."""
        return self._part.kv_bytes // self._most * self._rows

    def run(self, feeds: Arrays) -> Arrays:
        """`feeds` are those of the rows that feeds["batch_rows"] numbers, [n]."""
        rows, starts = feeds["batch_rows"].tolist(), feeds["write_indices"].tolist()
        of_latents = feeds["latent_write_indices"].tolist()
        columns, self._rows = feeds["position_ids"].shape[1], len(rows)
        self._take(rows, starts, feeds)
        found = self._part.run(feeds)
        for name in self.spec.state:
            own, whole = self._own[name].array, self._whole[name].array
            for at, (row, start) in enumerate(zip(rows, of_latents if name == LATENTS else starts, strict=True)):
                whole[row, :, start : start + columns] = own[at, :, start : start + columns]
        return found

    def _take(self, rows: list[int], starts: list[int], feeds: Arrays) -> None:
        """Copy what the rows have up to now, and of the byte states those in their patches."""
        for name, buffer in self._whole.items():
            if self._own[name].capacity != buffer.capacity:
                self._own[name].resize(buffer.capacity)
            own, whole = self._own[name].array, buffer.array
            for at, (row, start) in enumerate(zip(rows, starts, strict=True)):
                if name == "states":
                    read = feeds["patch_index"][at]
                    own[at, 0, read] = whole[row, 0, read]
                elif name != LATENTS:
                    own[at, :, :start] = whole[row, :, :start]

"""Patcher, encoder, global model and decoder over four engines: bytes in, next-byte logits out, for a batch of texts.

Implements `ByteModel` by passes of single graphs (`bltcli.passes`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bltcli.bundle import Bundle
from bltcli.decoding import MethodOptions
from bltcli.decoding.denoise import Bools, Certainty, OfLogits, Told, Unmask
from bltcli.decoding.driver import run_whole
from bltcli.decoding.protocol import Choose, TellsGraphs
from bltcli.decoding.rows import NOTHING
from bltcli.errors import UsageError
from bltcli.graphs import GraphName
from bltcli.passes import Passes
from bltcli.sampling import FloatArray
from bltcli.vocab import MASK, OUTPUT_IDS, IdArray, encode
from bltcli_engines.protocol import Engine


class Pipeline(Passes):
    """A batch of texts over four engines."""

    bundle_sha256 = ""
    _nursery: Pipeline | None = None

    @property
    def block_size(self) -> int:
        return self.config.block_size

    @property
    def nursery(self) -> Pipeline:
        """One more text on the same weights, to run a prompt in while others are decoded; `adopt` takes it in."""
        if self._nursery is None:
            self._nursery = self.twin(1)
        return self._nursery

    def twin(self, rows: int) -> Pipeline:
        """`rows` more texts on the same weights."""
        engines: dict[GraphName, Engine] = {name: counted.engine.fork() for name, counted in self.engines.items()}
        exact = self.row_multiple == self._runtime.row_multiple
        model = type(self)(self.config, self._runtime, engines, self.tables, rows=rows, exact=exact)
        model.bundle_sha256 = self.bundle_sha256
        return model

    @property
    def tuned(self) -> MethodOptions | None:
        """What `bltcli tune` found for this bundle and engine on this machine."""
        from bltcli.bench.profiles import find_profile

        profile = find_profile(self.bundle_sha256, self.engine_name)
        return None if profile is None else profile.options()

    def extend(self, ids: Sequence[IdArray]) -> FloatArray:
        return self._decode(*self._absorb(ids, peek=False))

    def absorb(self, ids: Sequence[IdArray], *, peek: bool = False) -> None:
        self._absorb(ids, peek=peek)

    def draft(self, pending: IdArray, counts: IdArray, choose: Choose) -> list[IdArray]:
        assert self.decoded.tolist() == self.lengths.tolist(), "drafting needs what `absorb` left to the decoder"
        longest = max(counts.tolist())
        self.make_room(longest + self._pad(1))
        positions = self.lengths[:, None] + np.arange(longest)
        place = self.place(positions, self.config.decoder.window)
        if self._chooses and isinstance(choose, TellsGraphs):
            feeds = {"ids": pending[:, None], "latent_index": self.latest[:, None], **place}
            drafts = self.engines["decoder"].draft({**feeds, "addend": choose.addends(positions + 1)}, counts)
        else:
            drafts = self._draft_by_byte(pending, counts, choose, positions, place)
        return [drafts[row, : counts[row]] for row in range(self.rows)]

    def _draft_by_byte(
        self, pending: IdArray, counts: IdArray, choose: Choose, positions: IdArray, place: dict[str, Any]
    ) -> IdArray:
        """Drafts [b, longest] whose bytes the host chooses. Their rows have `positions` [b, longest], and `place`."""
        longest = positions.shape[1]
        drafts = np.zeros((self.rows, longest), dtype=np.int64)
        lookup = self.config.decoder.input == "lookup"
        latent = self.latest[:, None]  # for every drafted byte
        current = pending.copy()
        for step in range(longest):
            drafting = counts > step
            live = np.flatnonzero(drafting)
            if not lookup:  # encoder states of drafted bytes are exact, and kept
                held = [current[:0]] * self.rows
                for row in live.tolist():
                    held[row] = current[row : row + 1]
                self.store(self.lengths + step, held)
                self._encode(self.lengths + np.minimum(step + 1, counts))
            # drafted rows are run again by the verifying pass, so a single row needs no padding here
            here = {
                "position_ids": place["position_ids"][:, step : step + 1],
                "write_indices": place["write_indices"] + step,
                "attn_bias": place["attn_bias"][:, :, step : step + 1],
            }
            at = positions[:, step : step + 1]
            logits = self._run_decoder(current[:, None], at, latent, here, drafting)["logits"]
            chosen = choose(logits[live, 0], live, positions[live, step] + 1)
            drafts[live, step] = current[live] = chosen
        return drafts

    def denoise(
        self, pending: Sequence[IdArray], counts: IdArray, unmask: Unmask, choose: Choose
    ) -> tuple[list[IdArray], list[FloatArray]]:
        longest = max(counts.tolist())
        block = np.full((self.rows, longest), MASK, dtype=np.int64)
        revealed = np.zeros((self.rows, longest, OUTPUT_IDS), dtype=np.float32)
        masked = np.arange(longest) < counts[:, None]
        starts = self.lengths + np.array([len(ids) for ids in pending], dtype=np.int64)
        most = max(map(len, pending))  # a row with no block begins behind its own
        self.make_room(most + self._pad(max((starts - self.decoded).tolist()) + longest))
        addends: FloatArray | None = None  # where the graph chooses
        if self._chooses and isinstance(choose, TellsGraphs) and not choose.cuts:
            addends = choose.addends(starts[:, None] + np.arange(longest))
        # the first pass also runs what the decoder has not seen yet, whose keys the later ones find cached
        rows, first_pass = self._block_rows(counts, starts, pending), True
        while masked.any():
            live: Bools = np.logical_or.reduce(masked, axis=1)
            run = self._run_blocks(rows, block, live, addends)
            found = {name: values[self._row, rows.columns] for name, values in run.items()}
            logits = found["logits"]
            if addends is None:
                certainty: Certainty = OfLogits(logits[live])
            else:
                certainty = Told(found["confidence"][live], found["entropy"][live])
            shown = np.zeros_like(masked)
            shown[live] = unmask.reveal(certainty, masked[live])
            row, column = np.nonzero(shown)
            if addends is None:
                block[row, column] = choose(logits[row, column], row, starts[row] + column)
            else:
                block[row, column] = found["best"][row, column]
            revealed[row, column] = logits[row, column]
            masked &= ~shown
            if first_pass and masked.any():
                rows, first_pass = self._block_rows(counts, starts, None), False
        parts = [(block[row, :count], revealed[row, :count]) for row, count in enumerate(counts.tolist())]
        return [ids for ids, _ in parts], [logits for _, logits in parts]

    def look_ahead(self, ids: Sequence[IdArray], counts: IdArray) -> tuple[FloatArray, FloatArray]:
        added, _ = self._absorb(ids, peek=False)
        longest = max(1, *counts.tolist())
        self.make_room(self._pad(max((self.lengths - self.decoded).tolist()) + longest))
        rows = self._block_rows(counts, self.lengths, [NOTHING] * self.rows, all_behind=True)
        logits: FloatArray = self._run_blocks(rows, np.full((self.rows, longest), MASK), rows.present > 0)["logits"]
        own = np.minimum((rows.clean - added)[:, None] + np.arange(max(added.tolist())), logits.shape[1] - 1)
        return logits[self._row, own], logits[self._row, rows.columns]


def open_model(
    bundle: Bundle, *, engine: str = "auto", rows: int = 1, threads: int = 0, exact: bool = True
) -> Pipeline:
    """A pipeline of `rows` texts over a bundle, see `open_engines`. `threads` 0: the engine's choice. ModelError when
    the engine cannot run this bundle."""
    from bltcli.engine_choice import open_engines

    runtime, engines = open_engines(bundle, engine, rows=rows, threads=threads)
    model = Pipeline(bundle.config, runtime, engines, bundle.tables(), rows=rows, exact=exact)
    model.bundle_sha256 = bundle.sha256
    return model


def patch_text(bundle: Bundle, data: bytes, *, engine: str = "auto") -> list[tuple[bytes, list[float]]]:
    """How the patcher splits a text: each patch's bytes, and the entropy in nats that was expected of each byte.

    The first patch is BOS alone and left out; the last may be open still.
    """
    model = open_model(bundle, engine=engine)
    ids = encode(data)
    if len(ids) > model.max_bytes:
        raise UsageError(f"the text has {len(data)} bytes, the model's context holds {model.max_bytes - 1}")
    expected: list[float] = [float("nan")]  # of BOS: nothing comes before it
    for pieces, _ in run_whole(model, {0: ids}):
        expected += model.engines["patcher"].outputs["entropy"][0, : len(pieces[0])].tolist()
    return [
        (data[start - 1 : end - 1], expected[start:end])
        for start, end in itertools.pairwise([*model.patch_starts(0)[1:], len(ids)])
        if end > start
    ]

"""Patcher, encoder, global model and decoder over four engines: bytes in, next-byte logits out, for a batch of texts.

Implements `ByteModel`. State is indexed by position and lives in the engines' buffers; the host keeps, per text, its
ids, how many patches were closed up to each byte, and where each patch starts. Rewinding moves two lengths.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bltcli.bundle import Bundle
from bltcli.cache import KVCache
from bltcli.config import ModelConfig
from bltcli.decoding.denoise import Unmask
from bltcli.decoding.driver import run_whole
from bltcli.decoding.protocol import Choose
from bltcli.embeddings import Tables
from bltcli.errors import UsageError
from bltcli.graphs import GraphName
from bltcli.ngrams import hash_rows
from bltcli.patcher import closes_patch
from bltcli.sampling import FloatArray
from bltcli.stats import Work
from bltcli.vocab import MASK, OUTPUT_IDS, IdArray, encode
from bltcli_engines.counting import CountingEngine
from bltcli_engines.protocol import Engine, Runtime
from bltcli_engines.state import bind_state

PREFILL_ROWS = 128
MAX_CONSTANT = 64  # bounds up to this are padded to the bound itself
MIN_PATCH_BYTES = 16  # other patches: padded to powers of two from here on, see `_patch_bytes`


class Pipeline:
    """A batch of texts over four engines."""

    def __init__(
        self,
        config: ModelConfig,
        runtime: Runtime,
        engines: Mapping[GraphName, Engine],
        tables: Tables,
        *,
        rows: int = 1,
        exact: bool = True,
    ) -> None:
        """`exact` keeps every call to a number of rows that makes values independent of the call; without it single
        rows run unpadded: faster, and no promise that speculation equals plain decoding to the last bit."""
        self.config, self.engine_name, self.tables, self.rows = config, runtime.name, tables, rows
        self.row_multiple = runtime.row_multiple if exact else 1
        self.prefill_rows = PREFILL_ROWS
        self.work = Work()
        self.engines: dict[GraphName, CountingEngine] = {
            name: CountingEngine(engine, lambda: self.work) for name, engine in engines.items()
        }
        byte_buffers, patch_buffers = bind_state(self.engines, runtime, rows)
        self.byte_cache, self.patch_cache = KVCache(byte_buffers, rows), KVCache(patch_buffers, rows)
        # indexed by position + _margin: reading a little before or after the text needs no clipping
        self._margin = max(config.encoder.hash_group_sizes, default=1) - 1
        shape = (rows, self._margin + config.max_bytes + PREFILL_ROWS + 2)
        self._ids = np.zeros(shape, dtype=np.int64)
        self._closed = np.zeros(shape, dtype=np.int64)  # patches closed up to and including a byte
        self._row = np.arange(rows)[:, None]
        self._starts = np.zeros(
            (rows, config.global_model.max_positions + 1), dtype=np.int64
        )  # of patch m: the open one
        self._encoded = np.zeros(rows, dtype=np.int64)  # byte states that are valid for the ids above
        self._decoded = np.zeros(rows, dtype=np.int64)  # bytes whose decoder keys are valid; behind after `absorb`
        self._peeked = np.zeros(rows, dtype=np.int64)  # 1 where the last latent is that of the open patch
        local = (config.patcher, config.encoder, config.decoder)
        self._reach = max(stack.window or config.max_bytes for stack in local)
        self._placed_for: tuple[Any, ...] = ()
        self._placed: dict[str, Any] = {}

    @property
    def max_bytes(self) -> int:
        return self.config.max_bytes

    @property
    def block_size(self) -> int:
        return self.config.block_size

    @property
    def lengths(self) -> IdArray:
        return self.byte_cache.lengths

    @property
    def patches(self) -> IdArray:
        return self.patch_cache.lengths

    @property
    def room(self) -> IdArray:
        bytes_left = self.config.max_bytes - self.lengths
        return np.minimum(bytes_left, self.config.global_model.max_positions - self.patches)

    def patch_starts(self, row: int) -> list[int]:
        """Position of the first byte of each patch of text `row`, the open one included."""
        starts: list[int] = self._starts[row, : self.patches[row] + 1].tolist()
        return starts

    def clear(self, row: int) -> None:
        self.byte_cache.clear(row)
        self.patch_cache.clear(row)
        self._encoded[row] = self._decoded[row] = self._peeked[row] = 0

    def rewind(self, lengths: IdArray) -> None:
        self.byte_cache.rewind(lengths)
        closed = self._closed[self._row[:, 0], self._margin + np.maximum(lengths - 1, 0)]
        self.patch_cache.rewind(np.where(lengths > 0, closed, 0))
        np.minimum(self._encoded, lengths, out=self._encoded)
        np.minimum(self._decoded, lengths, out=self._decoded)
        self._peeked[:] = 0

    def extend(self, ids: Sequence[IdArray]) -> FloatArray:
        return self._decode(self._absorb(ids, peek=False))

    def absorb(self, ids: Sequence[IdArray], *, peek: bool = False) -> None:
        self._absorb(ids, peek=peek)

    def _absorb(self, ids: Sequence[IdArray], *, peek: bool) -> IdArray:
        """Run ids through patcher, encoder and global model; how many there were, [b]."""
        counts = np.array([len(row) for row in ids], dtype=np.int64)
        assert counts.max() >= 1
        assert (counts <= self.room).all(), "the context's end is the driver's business"
        starts = self.lengths.copy()
        rows = self._pad(int(counts.max()))
        self._make_room(counts + rows)
        self._store(starts, ids)
        place = self._place(starts, counts, rows, self.config.patcher.window)
        padded = self._window(self._ids, starts, rows)
        entropy = self.engines["patcher"].run({"ids": padded, **place})["entropy"]
        self._encode(starts + counts)
        self._close_patches(starts, counts, entropy, peek=peek)
        self.byte_cache.append(counts)
        return counts

    def draft(self, pending: IdArray, counts: IdArray, choose: Choose) -> list[IdArray]:
        assert (self._decoded == self.lengths).all(), "drafting needs what `absorb` left to the decoder"
        longest = int(counts.max())
        drafts = np.zeros((self.rows, longest), dtype=np.int64)
        if longest:
            self._make_room(np.full_like(counts, longest + self._pad(1)))
        lookup = self.config.decoder.input == "lookup"
        place = self._place(self.lengths, counts, longest, self.config.decoder.window)
        latent = np.maximum(self.patches - 1, 0)[:, None]  # the last closed one, for every drafted byte
        current = pending.copy()
        for step in range(longest):
            live = counts > step
            if not lookup:  # encoder states of drafted bytes are exact, and kept
                self._store(
                    self.lengths + step, [current[r : r + 1] if live[r] else current[:0] for r in range(self.rows)]
                )
                self._encode(self.lengths + np.minimum(step + 1, counts))
            # drafted rows are run again by the verifying pass, so a single row needs no padding here
            row = {
                "position_ids": place["position_ids"][:, step : step + 1],
                "write_indices": place["write_indices"] + step,
                "attn_bias": place["attn_bias"][:, :, step : step + 1],
            }
            logits = self._run_decoder(current[:, None], (self.lengths + step)[:, None], latent, row)
            chosen = choose(logits[live, 0], np.flatnonzero(live), self.lengths[live] + step + 1)
            drafts[live, step] = current[live] = chosen
        return [drafts[row, : counts[row]] for row in range(self.rows)]

    def denoise(
        self, pending: Sequence[IdArray], counts: IdArray, unmask: Unmask, choose: Choose
    ) -> tuple[list[IdArray], list[FloatArray]]:
        longest = int(counts.max())
        block = np.full((self.rows, longest), MASK, dtype=np.int64)
        revealed = np.zeros((self.rows, longest, OUTPUT_IDS), dtype=np.float32)
        masked = np.arange(longest) < counts[:, None]
        starts = self.lengths + np.array([len(ids) for ids in pending], dtype=np.int64)
        if longest:
            self._make_room(starts - self.lengths + longest + self._pad(1))
        passes = 0
        while masked.any():
            logits = self._block_pass(block, counts, pending if passes == 0 else None, starts)
            live = np.flatnonzero(masked.any(axis=1))
            shown = np.zeros_like(masked)
            shown[live] = unmask.reveal(logits[live], masked[live])
            row, column = np.nonzero(shown)
            block[row, column] = choose(logits[row, column], row, starts[row] + column)
            revealed[row, column] = logits[row, column]
            masked &= ~shown
            passes += 1
        parts = [(block[row, :count], revealed[row, :count]) for row, count in enumerate(counts.tolist())]
        return [ids for ids, _ in parts], [logits for _, logits in parts]

    def _block_pass(
        self, block: IdArray, counts: IdArray, pending: Sequence[IdArray] | None, starts: IdArray
    ) -> FloatArray:
        """One decoder pass over blocks at starts[r]: logits [b, B, 260]. With `pending`, the first one: before the
        block, it also runs what the decoder has not seen yet, as clean rows whose keys later passes find cached."""
        first, latest = starts.copy(), np.maximum(self.patches - 1, 0) + self._peeked
        if pending is not None:
            first = np.where(counts > 0, self._decoded, starts)
        clean = starts - first
        present = np.where(counts > 0, clean + counts, 0)
        rows = self._pad(int(present.max()))
        ids = np.zeros((self.rows, rows), dtype=np.int64)
        latents = np.repeat(latest[:, None], rows, axis=1)
        for row in np.flatnonzero(counts).tolist():
            if pending is not None:
                behind = int(self.lengths[row] - first[row])
                at = self._margin + int(first[row])
                ids[row, :behind] = self._ids[row, at : at + behind]
                ids[row, behind : clean[row]] = pending[row]
                latents[row, :behind] = np.maximum(self._closed[row, at : at + behind] - 1, 0)
            ids[row, clean[row] : present[row]] = block[row, : counts[row]]
        place = {
            **self.byte_cache.place(first, present, rows, self.config.max_bytes),
            "attn_bias": self.byte_cache.bias(first, present, rows, self.config.decoder.window, causal=clean),
        }
        logits = self._run_decoder(ids, ids, latents, place)
        if pending is not None:
            self._decoded[counts > 0] = self.lengths[counts > 0]
        columns = np.minimum(clean[:, None] + np.arange(block.shape[1]), rows - 1)
        found: FloatArray = logits[self._row, columns]
        return found

    def _pad(self, rows: int) -> int:
        return -(-rows // self.row_multiple) * self.row_multiple

    def _make_room(self, counts: IdArray) -> None:
        """Slide what no row needs any more, then hold counts[r] positions beyond each text."""
        for row in range(self.rows):
            open_patch = self._starts[row, self.patches[row]] if self.lengths[row] else 0
            self.byte_cache.slide(row, min(int(self._decoded[row]) - self._reach + 1, int(open_patch)))
        self.byte_cache.reserve(self.lengths + counts)

    def _store(self, starts: IdArray, ids: Sequence[IdArray]) -> None:
        """Write ids; byte states stay valid up to the first id that changes."""
        for row, new in enumerate(ids):
            if len(new):
                start = int(starts[row])
                held = self._ids[row, self._margin + start : self._margin + start + len(new)]
                changed = np.flatnonzero(held != new)
                if changed.size:
                    self._encoded[row] = min(int(self._encoded[row]), start + int(changed[0]))
                held[:] = new

    def _window(self, held: IdArray, starts: IdArray, rows: int, before: int = 0) -> IdArray:
        """What `held` (ids or closed patches) has for positions starts[r] - before .. starts[r] + rows - 1; anything
        outside the text."""
        window: IdArray = held[self._row, (starts + self._margin)[:, None] + np.arange(-before, rows)]
        return window

    def _place(self, starts: IdArray, counts: IdArray, rows: int, window: int | None) -> dict[str, Any]:
        """Positions, slots and mask of byte rows; kept, as the graphs of one pass mostly ask for the same."""
        cache = self.byte_cache
        key = (rows, window, cache.capacity, starts.tobytes(), counts.tobytes(), cache.bases.tobytes())
        if key != self._placed_for:
            self._placed_for = key
            self._placed = {
                **cache.place(starts, counts, rows, self.config.max_bytes),
                "attn_bias": cache.bias(starts, counts, rows, window),
            }
        return self._placed

    def _encode(self, ends: IdArray) -> None:
        """Bring byte states up to ends[r]; those a draft has computed already are kept."""
        starts = np.minimum(self._encoded, ends)
        counts = ends - starts
        if not counts.any():
            return
        rows = self._pad(int(counts.max()))
        self.byte_cache.reserve(starts + rows)
        config = self.config.encoder
        place = self._place(starts, counts, rows, config.window)
        ids = self._window(self._ids, starts, rows, self._margin)
        index = hash_rows(ids, starts[:, None] + np.arange(rows), config)
        self.engines["encoder"].run({"embeds": self.tables.gather(ids[:, self._margin :], index), **place})
        self._encoded[:] = ends

    def _close_patches(self, starts: IdArray, counts: IdArray, entropy: FloatArray, *, peek: bool) -> None:
        """Decide which of the new bytes end a patch, and run the global model once over all patches that ended; with
        `peek` over the open ones too, whose latents count until the next byte comes."""
        patches: list[list[tuple[int, int]]] = []  # per row: first byte and length of each patch
        self._peeked[:] = 0
        for row in range(self.rows):
            patches.append([])
            start, count, closed = int(starts[row]), int(counts[row]), int(self.patches[row])
            if not count:
                continue
            first = int(self._starts[row, closed]) if start else 0
            ends = closes_patch(
                entropy[row, :count], position=start, open_bytes=start - first, config=self.config.patcher
            )
            self._closed[row, self._margin + start : self._margin + start + count] = closed + np.cumsum(ends)
            for end in (np.flatnonzero(ends) + start + 1).tolist():
                patches[row].append((first, end - first))
                first = end
                closed += 1
                self._starts[row, closed] = first
            if not start:
                self._starts[row, 0] = 0
            if peek and first < start + count:
                patches[row].append((first, start + count - first))
                self._peeked[row] = 1
        if any(patches):
            self._run_global(patches)

    def _run_global(self, patches: list[list[tuple[int, int]]]) -> None:
        counts = np.array([len(row) for row in patches], dtype=np.int64)
        columns = self._pad(int(counts.max()))
        longest = self._patch_bytes(max(length for row in patches for _, length in row))
        first = np.repeat(self.byte_cache.bases[:, None], columns, axis=1)
        length = np.ones(
            (self.rows, columns), dtype=np.int64
        )  # a padding patch: one byte, written beyond the real ones
        for row, closed in enumerate(patches):
            for column, (start, size) in enumerate(closed):
                first[row, column], length[row, column] = start, size
        slots = (first - self.byte_cache.bases[:, None])[:, :, None]
        cache, stack = self.patch_cache, self.config.global_model
        starts = self.patches.copy()
        cache.reserve(starts + columns)
        self.engines["global"].run(
            {
                "patch_index": slots + np.minimum(np.arange(longest), length[:, :, None] - 1),
                "patch_len": length,
                **cache.place(starts, counts, columns, stack.max_positions),
                "attn_bias": cache.bias(starts, counts, columns, stack.window),
            }
        )
        cache.append(counts - self._peeked)

    def _patch_bytes(self, longest: int) -> int:
        """Padded patch length. Constant where patches are bounded tightly; else a power of two, so that the sums over a
        patch are grouped alike whichever other patches are in the call."""
        bound = self.config.patcher.max_patch_length
        return (
            bound
            if bound is not None and bound <= MAX_CONSTANT
            else max(MIN_PATCH_BYTES, 1 << (longest - 1).bit_length())
        )

    def _decode(self, counts: IdArray) -> FloatArray:
        """Run the decoder up to the texts' ends: logits of the last counts[r] bytes, [b, q, 260]."""
        starts = self._decoded.copy()
        present = self.lengths - starts
        rows = self._pad(int(present.max()))
        latents = np.maximum(self._window(self._closed, starts, rows) - 1, 0)
        latents[np.arange(rows) >= present[:, None]] = 0  # padding reads what is there for certain
        ids = self._window(self._ids, starts, rows)
        place = self._place(starts, present, rows, self.config.decoder.window)
        logits = self._run_decoder(ids, starts[:, None] + np.arange(rows), latents, place)
        self._decoded[:] = self.lengths
        behind = present - counts
        if behind.any():
            columns = np.minimum(behind[:, None] + np.arange(int(counts.max())), rows - 1)
            logits = logits[self._row, columns]
        return logits

    def _run_decoder(self, ids: IdArray, positions: IdArray, latents: IdArray, place: dict[str, Any]) -> FloatArray:
        if self.config.decoder.input == "lookup":
            rows = {"ids": ids}
        else:
            rows = {"state_index": positions - self.byte_cache.bases[:, None]}
        logits: FloatArray = self.engines["decoder"].run({**rows, "latent_index": latents, **place})["logits"]
        return logits


def open_model(
    bundle: Bundle, *, engine: str = "auto", rows: int = 1, threads: int = 0, exact: bool = True
) -> Pipeline:
    """A pipeline of `rows` texts over a bundle. Engines: ort-cpu (auto takes it), torch. `threads` 0: the engine's
    choice. ModelError when the engine cannot run this bundle; an explicit choice never falls back."""
    runtime: Runtime
    if engine in ("auto", "ort-cpu"):
        from bltcli_engines.onnxruntime_engine import open_onnxruntime

        runtime, engines = open_onnxruntime(bundle.specs, bundle.graph_paths, bundle.weight_bytes, threads)
    elif engine == "torch":
        from bltcli_engines.torch_engine import open_torch

        runtime, engines = open_torch(bundle.config, bundle.specs, bundle.graph_paths, threads)
    else:
        raise UsageError(f"--engine is {engine}; use auto, ort-cpu or torch")
    return Pipeline(bundle.config, runtime, engines, bundle.tables(), rows=rows, exact=exact)


def patch_text(bundle: Bundle, data: bytes, *, engine: str = "auto") -> list[tuple[bytes, list[float]]]:
    """How the patcher splits a text: each patch's bytes, and the entropy in nats that was expected of each byte.

    The first patch is BOS alone and left out; the last may be open still.
    """
    model = open_model(bundle, engine=engine)
    ids = encode(data)
    if len(ids) > model.max_bytes:
        raise UsageError(f"the text has {len(data)} bytes, the model's context holds {model.max_bytes - 1}")
    expected: list[float] = [float("nan")]  # of BOS: nothing comes before it
    for pieces, _ in run_whole(model, [ids]):
        expected += model.engines["patcher"].outputs["entropy"][0, : len(pieces[0])].tolist()
    return [
        (data[start - 1 : end - 1], expected[start:end])
        for start, end in itertools.pairwise([*model.patch_starts(0)[1:], len(ids)])
        if end > start
    ]

"""One pass of each graph over the rows of a batch of texts: what goes in, and where what comes out belongs.

State lives in the engines' buffers, indexed by position; `Texts` knows what stands where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bltcli.config import ModelConfig
from bltcli.decoding.rows import Bools, where
from bltcli.embeddings import Tables
from bltcli.graphs import GraphName
from bltcli.ngrams import hash_rows
from bltcli.sampling import FloatArray
from bltcli.stats import Ledger
from bltcli.texts import PREFILL_ROWS, Patches, Span, Texts
from bltcli.vocab import OUTPUT_IDS, IdArray
from bltcli_engines.counting import CountingEngine
from bltcli_engines.protocol import Arrays, Engine, Runs, RunsFewRows, Runtime
from bltcli_engines.state import bind_state

MAX_CONSTANT = 64  # bounds up to this are padded to the bound itself
FEW = 4  # rows of a batch from which on the global model runs for those that closed a patch alone
MIN_PATCH_BYTES = 16  # other patches: padded to powers of two from here on, see `_patch_bytes`


class BlockRows(NamedTuple):
    """The rows of a decoder pass over a block per text."""

    ids: IdArray  # [b, rows]
    clean: IdArray  # how many come before each text's block, [b]
    columns: IdArray  # number of each byte of the blocks among the rows, [b, B]; where a block is shorter, any
    present: IdArray  # how many rows are a text's own, padding left out, [b]
    latents: IdArray  # [b, rows]
    place: dict[str, Any]


class Passes(Texts):
    """A batch of texts, and four engines to run them through."""

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
        self.engine_name, self.tables, self._runtime = runtime.name, tables, runtime
        self.row_multiple = runtime.row_multiple if exact else 1
        self.prefill_rows = PREFILL_ROWS // self.row_multiple * self.row_multiple
        self._pairs = exact and runtime.pairs_texts
        self.promised = exact and runtime.promised  # bitwise, that a row's value depends on nothing else in its call
        self.ledger = Ledger()
        self.engines: dict[GraphName, CountingEngine] = {
            name: CountingEngine(engine, self.ledger) for name, engine in engines.items()
        }
        self._chooses = self.engines["decoder"].chooses
        # byte states that no decoder reads can wait for the end of a patch; in a batch one ends in nearly every call
        self._encodes_late = config.decoder.input == "lookup" and rows == 1
        super().__init__(config, rows, runtime.slot_step, bind_state(self.engines, runtime, rows))
        self._few: Runs | None = None  # the global model for at most half of the rows
        if isinstance(runtime, RunsFewRows) and rows >= FEW:
            self._few = runtime.few_rows(engines["global"], rows // 2 + 1)

    def _pad(self, rows: int, texts: int | None = None) -> int:
        """Rows per text of a call whose values count, of which `rows` are needed; `texts`: of how many, default all."""
        if rows == 1 and self._pairs and (texts or self.rows) % self.row_multiple == 0:
            return 1
        return -(-rows // self.row_multiple) * self.row_multiple

    def _absorb(self, ids: Sequence[IdArray], *, peek: bool) -> tuple[IdArray, Span]:
        """Run ids through patcher, encoder and global model; how many there were, [b], and the rows that they took."""
        counts = np.array([len(row) for row in ids], dtype=np.int64)
        assert any(counts.tolist())
        assert min((self.room - counts).tolist()) >= 0, "the context's end is the driver's business"
        most = max(counts.tolist())  # states that a draft left may lie as far ahead
        self.make_room(most + self._pad(max((self.lengths - self.behind + counts).tolist())))
        if max((self.lengths - self.encoded).tolist()) + most > self.prefill_rows:
            self._encode(self.lengths)  # the bytes of an open patch and these are more than a call takes
        self.store(self.lengths, ids)
        span = self.span(self.lengths, self._pad(most), self.config.patcher.window)
        feeds = {"ids": span.own_ids, **span.place}
        entropy = self.engines["patcher"].run(feeds, counts)["entropy"]
        patches = self.close_patches(counts, entropy, peek=peek)
        if any(patches) or not self._encodes_late:
            self._encode(self.lengths + counts, span)
        if any(patches):
            self._run_global(patches)
        self.byte_cache.append(counts)
        return counts, span

    def _encode(self, ends: IdArray, last: Span | None = None) -> None:
        """Bring byte states up to ends[r], from where a draft or the last patch that ended has left them."""
        starts = np.minimum(self.encoded, ends)
        longest = max((ends - starts).tolist())
        if not longest:
            return
        config = self.config.encoder
        span = self.span(starts, self._pad(longest), config.window, last)
        embeds = self.tables.gather(span.own_ids, hash_rows(span.ids, None, config))
        self.engines["encoder"].run({"embeds": embeds, **span.place}, ends - starts)
        self.encoded[:] = ends

    def _run_global(self, patches: Patches) -> None:
        counts = np.array([len(row) for row in patches], dtype=np.int64)
        longest = self._patch_bytes(max(length for row in patches for _, length in row))
        few, chosen = self._few, np.flatnonzero(counts)
        if 2 * len(chosen) > self.rows or few is None:
            few, chosen = None, np.arange(self.rows)
        elif self._pairs and len(chosen) % self.row_multiple:
            chosen = np.append(chosen, np.flatnonzero(counts == 0)[0])
        columns = self._pad(max(counts.tolist()), len(chosen))
        # a padding patch has one byte, and is written beyond the real ones
        first, length = np.zeros((len(chosen), columns), np.int64), np.ones((len(chosen), columns), np.int64)
        for at, row in enumerate(chosen.tolist()):
            for column, (start, size) in enumerate(patches[row]):
                first[at, column], length[at, column] = start - self.byte_cache.bases[row], size
        cache, stack = self.patch_cache, self.config.global_model
        cache.reserve(columns)
        self.make_latent_room(columns)
        positions = self.patches[chosen, None] + np.arange(columns)
        self.engines["global"].run(
            {
                "batch_rows": chosen,
                "patch_index": first[:, :, None] + np.minimum(np.arange(longest), length[:, :, None] - 1),
                "patch_len": length,
                "latent_write_indices": (self.patches - self.latent_cache.bases)[chosen],
                "position_ids": np.minimum(positions, stack.max_positions - 1),
                "write_indices": positions[:, 0],
                "attn_bias": cache.bias(positions, stack.window),
            },
            counts,
            few,
        )
        cache.append(counts - self.peeked)

    def _patch_bytes(self, longest: int) -> int:
        """Padded patch length. Constant where patches are bounded tightly; else a power of two, so that the sums over a
        patch are grouped alike whichever other patches are in the call."""
        bound = self.config.patcher.max_patch_length
        if bound is not None and bound <= MAX_CONSTANT:
            return bound
        return max(MIN_PATCH_BYTES, 1 << (longest - 1).bit_length())

    def _decode(self, counts: IdArray, last: Span) -> FloatArray:
        """Run the decoder up to the texts' ends: logits of the last counts[r] bytes, [b, q, 260]."""
        present = self.lengths - self.decoded
        span = self.span(self.decoded, self._pad(max(present.tolist())), self.config.decoder.window, last)
        latents = self.latents(span.positions)
        run = self._run_decoder(span.own_ids, span.positions, latents, span.place, present)
        logits: FloatArray = run["logits"]
        self.decoded[:] = self.lengths
        if span.positions is last.positions:
            return logits
        columns = np.minimum((present - counts)[:, None] + np.arange(max(counts.tolist())), logits.shape[1] - 1)
        found: FloatArray = logits[self._row, columns]
        return found

    def _block_rows(
        self, counts: IdArray, starts: IdArray, pending: Sequence[IdArray] | None, *, all_behind: bool = False
    ) -> BlockRows:
        """The rows of a decoder pass over blocks of counts[r] bytes at starts[r], and for the first such pass of clean
        ones before them: what the decoder is behind with, then `pending`, which is not in the text yet; of every text
        whose block has room, and with `all_behind` of those without."""
        runs = counts > 0
        if all_behind:
            runs |= self.decoded < starts
        first = starts if pending is None else np.where(runs, self.decoded, starts)
        clean = starts - first
        present = np.where(runs, clean + counts, 0)
        rows = self._pad(max(present.tolist()))
        positions = first[:, None] + np.arange(rows)
        ids = self.ids_at(first, rows)
        if pending is not None:
            for row in where(runs):
                ids[row, clean[row] - len(pending[row]) : clean[row]] = pending[row]
        latents = np.where(positions >= self.lengths[:, None], self.latest[:, None], self.latents(positions))
        columns = np.minimum(clean[:, None] + np.arange(max(1, *counts.tolist())), rows - 1)
        place = self.place(positions, self.config.decoder.window, (clean, present))
        return BlockRows(ids, clean, columns, present, latents, place)

    def _run_blocks(self, rows: BlockRows, block: IdArray, live: Bools, addends: FloatArray | None = None) -> Arrays:
        """One decoder pass over `rows` for the texts that are `live`, with the ids of block [b, B]: what it finds, with
        `addends` of those where the graph chooses."""
        ids = rows.ids
        for row in where(live):
            clean, present = rows.clean[row], rows.present[row]
            ids[row, clean:present] = block[row, : present - clean]
        addend = None
        if addends is not None:
            addend = np.zeros((*ids.shape, OUTPUT_IDS), dtype=np.float32)
            addend[self._row, rows.columns] = addends
        found = self._run_decoder(ids, ids, rows.latents, rows.place, live, addend)
        np.copyto(self.decoded, self.lengths, where=rows.present > 0)
        return found

    def _run_decoder(
        self,
        ids: IdArray,
        positions: IdArray,
        latents: IdArray,
        place: dict[str, Any],
        counts: NDArray[Any],
        addend: FloatArray | None = None,
    ) -> Arrays:
        feeds = {"latent_index": latents, **place}
        if self.config.decoder.input == "lookup":
            feeds["ids"] = ids
        else:
            feeds["state_index"] = positions - self.byte_cache.bases[:, None]
        if self._chooses:
            feeds["addend"] = np.zeros((*ids.shape, OUTPUT_IDS), dtype=np.float32) if addend is None else addend
        return self.engines["decoder"].run(feeds, counts)

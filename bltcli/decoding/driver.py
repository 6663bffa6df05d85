"""Runs a method over prompts until every text has ended: the one loop of the command line, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np

from bltcli.decoding.protocol import ByteModel, DecodingMethod
from bltcli.decoding.rows import Rows
from bltcli.decoding.stop import FinishReason, Output, Stop
from bltcli.errors import UsageError
from bltcli.sampling import FloatArray, Sampler
from bltcli.stats import DecodeStats, Work
from bltcli.vocab import IdArray, encode


@dataclass(frozen=True)
class Chunk:
    """Bytes of one text, in order; the last chunk of a text carries the reason and may be empty."""

    record: int
    data: bytes
    finish_reason: FinishReason | None


class CountedModel(ByteModel, Protocol):
    """A byte model whose passes are charged to `work` (see the counting engine)."""

    prefill_rows: int  # most byte rows per text in one call
    work: Work


def generate(
    model: CountedModel,
    method: DecodingMethod,
    prompts: Sequence[bytes],
    *,
    sampler: Sampler,
    stop: Stop,
    stats: DecodeStats,
    records: Sequence[int] | None = None,
) -> Iterator[Chunk]:
    """Continue `prompts`, one per row of the model, yielding bytes as they are certain.

    `records` number the texts for the noise of sampling (default 0, 1, ...). Counters and clocks go to `stats`, also
    when the caller stops early. UsageError when a prompt leaves no room to generate.
    """
    began = perf_counter()
    rows = Rows(model, sampler, stats, len(prompts))
    outputs = [Output(stop) for _ in prompts]
    numbers = list(range(len(prompts))) if records is None else list(records)
    stats.prompt_bytes += sum(map(len, prompts))
    try:
        model.work = stats.prefill
        texts = [encode(prompt) for prompt in prompts]
        for row, logits in enumerate(prefill(model, texts)):
            rows.start(row, texts[row], record=numbers[row], logits=logits, wanted=stop.max_bytes)
        stats.prefill_s = perf_counter() - began
        model.work = stats.decode
        while True:
            room = model.room
            for row in np.flatnonzero(rows.active).tolist():
                yield from _released(rows, outputs[row], row, numbers[row], began, full=room[row] < 1)
            if not rows.active.any():
                return
            method.round(rows)
            stats.rounds += 1
    finally:
        for row in np.flatnonzero(rows.active).tolist():
            rows.finish(row)
        stats.wall_s += perf_counter() - began


def generate_texts(
    model: CountedModel,
    method: DecodingMethod,
    prompts: Sequence[bytes],
    *,
    sampler: Sampler | None = None,
    stop: Stop | None = None,
    records: Sequence[int] | None = None,
) -> tuple[list[bytes], DecodeStats]:
    """`generate` to the end: what each prompt was continued with (greedily by default), and what it took."""
    stats = DecodeStats()
    numbers = list(range(len(prompts))) if records is None else list(records)
    texts = dict.fromkeys(numbers, b"")
    sampler, stop = sampler or Sampler(), stop or Stop()
    for chunk in generate(model, method, prompts, sampler=sampler, stop=stop, stats=stats, records=numbers):
        texts[chunk.record] += chunk.data
    return list(texts.values()), stats


def _released(rows: Rows, output: Output, row: int, record: int, began: float, *, full: bool) -> Iterator[Chunk]:
    """What is certain of one text after a round; closes the row at its end. `full`: its context has no room left."""
    data = output.add(rows.take(row))
    if output.reason is None and full:
        data += output.end("context")
    if output.reason is not None:
        rows.finish(row)
    if data or output.reason is not None:
        stats = rows.stats
        if data and not stats.ttfb_s:
            stats.ttfb_s = perf_counter() - began
        stats.new_bytes += len(data)
        yield Chunk(record, data, output.reason)


def prefill(model: CountedModel, prompts: Sequence[IdArray]) -> list[FloatArray]:
    """Run whole prompts (ids with BOS) from empty texts; the next-byte logits [260] of each prompt's last byte.
    UsageError when a prompt leaves no room for another byte."""
    for ids in prompts:
        if len(ids) >= model.max_bytes:
            raise UsageError(f"the prompt has {len(ids) - 1} bytes, the model's context holds {model.max_bytes - 2}")
    last: list[FloatArray] = [np.empty(0, np.float32)] * len(prompts)
    for pieces, logits in run_whole(model, prompts):
        for row, piece in enumerate(pieces):
            if len(piece):
                last[row] = logits[row, len(piece) - 1].copy()
    return last


def run_whole(model: CountedModel, texts: Sequence[IdArray]) -> Iterator[tuple[list[IdArray], FloatArray]]:
    """Run whole texts from empty ones in calls of at most `prefill_rows` byte rows, yielding each call's pieces and its
    logits [b, q, 260]. The values do not depend on the split. UsageError where the context ends before a text does."""
    for row in range(len(texts)):
        model.clear(row)
    start = 0
    while start < max(map(len, texts), default=0):
        unfinished = [row for row, ids in enumerate(texts) if len(ids) > start]
        size = min(model.prefill_rows, *(int(model.room[row]) for row in unfinished))
        if size < 1:
            longest = max(len(texts[row]) for row in unfinished) - 1
            raise UsageError(f"the text has {longest} bytes, the model's context is full of patches after {start - 1}")
        pieces = [ids[start : start + size] for ids in texts]
        yield pieces, model.extend(pieces)
        start += size

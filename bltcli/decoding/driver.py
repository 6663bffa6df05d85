"""Runs a method over prompts until every text has ended: the one loop of the command line, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from bltcli.decoding.protocol import ByteModel, DecodingMethod
from bltcli.decoding.rows import NOTHING, Rows, where
from bltcli.decoding.stop import FinishReason, Output, Stop
from bltcli.errors import UsageError
from bltcli.sampling import FloatArray, Sampler
from bltcli.stats import DecodeStats, Work
from bltcli.vocab import IdArray, encode


@dataclass(frozen=True)
class Request:
    """One text to continue. `record` numbers it, for the noise of sampling too."""

    record: int
    prompt: bytes
    stop: Stop


@dataclass(frozen=True)
class Chunk:
    """Bytes of one text, in order; the last chunk of a text carries the reason and may be empty."""

    record: int
    data: bytes
    finish_reason: FinishReason | None


class CountedModel(ByteModel, Protocol):
    """A byte model whose passes are charged to `work` (see the counting engine), and whose rows texts may join."""

    prefill_rows: int  # most byte rows per text in one call

    @property
    def work(self) -> Work: ...

    @work.setter
    def work(self, work: Work) -> None: ...

    @property
    def nursery(self) -> CountedModel:
        """A model of one text on the same weights."""
        ...

    def adopt(self, row: int, other: Any, source: int) -> None:
        """Take over text `source` of `other`, a nursery of this model, as text `row`."""
        ...


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
    """`serve` texts with one end in common; `records` number them (default 0, 1, ...)."""
    numbers = range(len(prompts)) if records is None else records
    requests = [Request(number, prompt, stop) for number, prompt in zip(numbers, prompts, strict=True)]
    yield from serve(model, method, requests, sampler=sampler, stats=stats)


def serve(
    model: CountedModel,
    method: DecodingMethod,
    requests: Iterable[Request],
    *,
    sampler: Sampler,
    stats: DecodeStats,
    refused: Callable[[Request, UsageError], None] | None = None,
) -> Iterator[Chunk]:
    """Continue texts, as many at a time as the model has rows; as one ends, the next request takes its row.

    Requests are drawn only when there is a row for them. Counters and clocks go to `stats`, also when the caller stops
    early. A prompt that leaves no room to generate goes to `refused`, or raises its UsageError.
    """
    began = perf_counter()
    rows = Rows(model, sampler, stats, len(model.lengths))
    queue, outputs = iter(requests), dict[int, Output]()
    try:
        while True:
            room = model.room.tolist()
            for row in where(rows.active):
                yield from _released(rows, outputs[row], row, began, full=room[row] < 1)
            if _admit(model, rows, queue, outputs, refused):
                continue  # its first byte may be its last
            if not where(rows.active):
                return
            method.round(rows)
            stats.rounds += 1
    finally:
        for row in where(rows.active):
            rows.finish(row)
        stats.wall_s += perf_counter() - began


def _admit(
    model: CountedModel,
    rows: Rows,
    queue: Iterator[Request],
    outputs: dict[int, Output],
    refused: Callable[[Request, UsageError], None] | None,
) -> bool:
    """Start the next requests in the free rows; whether there were any."""
    free = where(~rows.active)
    joining = dict(zip(free, queue, strict=False)) if free else {}
    if not joining:
        return False
    stats, began = rows.stats, perf_counter()
    texts = {row: encode(request.prompt) for row, request in joining.items()}
    for row, found in prefill(model, texts, stats):
        request = joining[row]
        if isinstance(found, UsageError):
            if refused is None:
                raise found
            refused(request, found)
            continue
        outputs[row] = Output(request.stop)
        stats.prompt_bytes += len(request.prompt)
        wanted = min(request.stop.max_bytes, model.max_bytes)
        rows.start(row, texts[row], record=request.record, logits=found, wanted=wanted)
    stats.prefill_s += perf_counter() - began
    return True


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


def _released(rows: Rows, output: Output, row: int, began: float, *, full: bool) -> Iterator[Chunk]:
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
        yield Chunk(int(rows.records[row]), data, output.reason)


def prefill(
    model: CountedModel, texts: Mapping[int, IdArray], stats: DecodeStats
) -> Iterator[tuple[int, FloatArray | UsageError]]:
    """Run whole prompts (row -> ids with BOS) from empty texts: the next-byte logits [260] of each one's last byte, or
    why it leaves no room for another. Few at a time go through the nursery, so that no other row is computed."""
    fitting: dict[int, IdArray] = {}
    for row, ids in texts.items():
        if len(ids) >= model.max_bytes:
            reason = f"the prompt has {len(ids) - 1} bytes, the model's context holds {model.max_bytes - 2}"
            yield row, UsageError(reason)
        else:
            fitting[row] = ids
    together = 2 * len(fitting) >= len(model.lengths)
    for group in [fitting] if together and fitting else [{row: ids} for row, ids in fitting.items()]:
        try:
            if together:
                model.work = stats.prefill
                yield from _last_logits(model, group).items()
            else:
                (row,) = group
                model.nursery.work = stats.prefill
                last = _last_logits(model.nursery, {0: group[row]})[0]
                model.adopt(row, model.nursery, 0)
                yield row, last
        except UsageError as error:  # its patches fill the context
            if len(group) == 1:
                yield next(iter(group)), error
            else:
                for row, ids in group.items():
                    yield from prefill(model, {row: ids}, stats)
        finally:
            model.work = stats.decode


def _last_logits(model: CountedModel, texts: Mapping[int, IdArray]) -> dict[int, FloatArray]:
    last: dict[int, FloatArray] = {}
    for pieces, logits in run_whole(model, texts):
        for row, piece in enumerate(pieces):
            if len(piece):
                last[row] = logits[row, len(piece) - 1].copy()
    return last


def run_whole(model: CountedModel, texts: Mapping[int, IdArray]) -> Iterator[tuple[list[IdArray], FloatArray]]:
    """Run whole texts (row -> ids) from empty ones in calls of at most `prefill_rows` byte rows, yielding each call's
    pieces by row and its logits [b, q, 260]. Other rows are left alone, and the values do not depend on the split.
    UsageError where the context ends before a text does."""
    for row in texts:
        model.clear(row)
    start = 0
    while start < max(map(len, texts.values()), default=0):
        unfinished = [row for row, ids in texts.items() if len(ids) > start]
        size = min(model.prefill_rows, *(int(model.room[row]) for row in unfinished))
        if size < 1:
            longest = max(len(texts[row]) for row in unfinished) - 1
            raise UsageError(f"the text has {longest} bytes, the model's context is full of patches after {start - 1}")
        pieces = [texts[row][start : start + size] if row in texts else NOTHING for row in range(len(model.lengths))]
        yield pieces, model.extend(pieces)
        start += size

"""Runs a method over prompts until every text has ended: the one loop of the command line, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any, Protocol

from bltcli.decoding.protocol import ByteModel, DecodingMethod
from bltcli.decoding.rows import NOTHING, Rows, where
from bltcli.decoding.stop import FinishReason, Output, Stop
from bltcli.errors import UsageError
from bltcli.sampling import FloatArray, Sampler
from bltcli.stats import DecodeStats, Ledger
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


#: A request whose prompt leaves no room to generate, and why.
Misfit = tuple[Request, UsageError]
Refused = Callable[[Request, UsageError], None]


class CountedModel(ByteModel, Protocol):
    """A byte model whose passes are charged to the work in its `ledger`, and whose rows texts may join."""

    prefill_rows: int  # most byte rows per text in one call
    ledger: Ledger

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
    refused: Refused | None = None,
) -> Iterator[Chunk]:
    """Continue texts, as many at a time as the model has rows; as one ends, the next request takes its row.

    Requests are drawn only when there is a row for them. Counters and clocks go to `stats`, also when the caller stops
    early. A prompt that leaves no room to generate goes to `refused`, or raises its UsageError.
    """
    began, queue, lane = perf_counter(), iter(requests), Lane(model, method, sampler, stats)
    try:
        while (joining := list(islice(queue, lane.free))) or lane.busy:
            chunks, misfits = lane.step(joining)
            yield from chunks
            hand_back(misfits, refused)
    finally:
        lane.leave()
        stats.wall_s += perf_counter() - began


def hand_back(misfits: Sequence[Misfit], refused: Refused | None) -> None:
    """Tell of requests that could not be started, or raise what is wrong with the first."""
    for request, error in misfits:
        if refused is None:
            raise error
        refused(request, error)


class Lane:
    """Texts over one model: rounds of one method, and between rounds others take the places of those that ended."""

    def __init__(self, model: CountedModel, method: DecodingMethod, sampler: Sampler, stats: DecodeStats) -> None:
        self._model, self._method, self._began = model, method, perf_counter()
        self._rows = Rows(model, sampler, stats, len(model.lengths))
        self._outputs: dict[int, Output] = {}

    @property
    def free(self) -> int:
        """How many texts can join."""
        return len(self._rows.active) - self.busy

    @property
    def busy(self) -> int:
        """How many texts are under way."""
        return sum(self._rows.active.tolist())

    def step(self, joining: Sequence[Request]) -> tuple[list[Chunk], list[Misfit]]:
        """Start the texts that join, if any, or else decode a round; what is certain then, and who could not join."""
        misfits: list[Misfit] = []
        if joining:  # the first byte of a text may be its last
            misfits = self._admit(joining)
        else:
            self._method.round(self._rows)
            self._rows.stats.rounds += 1
        room = self._model.room.tolist()
        chunks = [self._released(row, full=room[row] < 1) for row in where(self._rows.active)]
        return [chunk for chunk in chunks if chunk is not None], misfits

    def collect(self) -> DecodeStats:
        """What was counted up to now; the lane begins to count anew."""
        stats, self._rows.stats = self._rows.stats, DecodeStats()
        self._model.ledger.work = self._rows.stats.decode
        return stats

    def leave(self) -> None:
        """Let all texts go."""
        for row in where(self._rows.active):
            self._rows.finish(row)

    def _admit(self, joining: Sequence[Request]) -> list[Misfit]:
        stats, began, misfits = self._rows.stats, perf_counter(), list[Misfit]()
        requests = dict(zip(where(~self._rows.active), joining, strict=False))
        texts = {row: encode(request.prompt) for row, request in requests.items()}
        for row, found in prefill(self._model, texts, stats):
            request = requests[row]
            if isinstance(found, UsageError):
                misfits.append((request, found))
                continue
            self._outputs[row] = Output(request.stop)
            stats.prompt_bytes += len(request.prompt)
            wanted = min(request.stop.max_bytes, self._model.max_bytes)
            self._rows.start(row, texts[row], record=request.record, logits=found, wanted=wanted)
        stats.prefill_s += perf_counter() - began
        return misfits

    def _released(self, row: int, *, full: bool) -> Chunk | None:
        """What is certain of one text; closes the row at its end. `full`: its context has no room left."""
        output, stats = self._outputs[row], self._rows.stats
        data = output.add(self._rows.take(row))
        if output.reason is None and full:
            data += output.end("context")
        if output.reason is not None:
            self._rows.finish(row)
        if not data and output.reason is None:
            return None
        if data and not stats.ttfb_s:
            stats.ttfb_s = perf_counter() - self._began
        stats.new_bytes += len(data)
        return Chunk(int(self._rows.records[row]), data, output.reason)


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
                model.ledger.work = stats.prefill
                yield from _last_logits(model, group).items()
            else:
                (row,) = group
                model.nursery.ledger.work = stats.prefill
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
            model.ledger.work = stats.decode


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

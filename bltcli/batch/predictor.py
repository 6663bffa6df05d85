"""A model as a function from records to records: opens itself where it is called, and outlives a lack of memory.

`Predictor` can be pickled: Ray Data, Dask or Spark send it to their workers, where each opens a model of its own.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bltcli.batch.memory import rows_that_fit
from bltcli.batch.ordering import Result
from bltcli.bundle import Bundle, open_bundle
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import CountedModel, Request, serve
from bltcli.decoding.protocol import DecodingMethod
from bltcli.decoding.stop import Stop
from bltcli.errors import BltError, UsageError
from bltcli.models import resolve_bundle
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli.streams import complain

#: What runtimes say when memory is gone; ONNX Runtime and PyTorch raise errors of their own.
_NO_MEMORY: Final = ("bad_alloc", "failed to allocate memory", "out of memory", "can't allocate memory")
_TAKEN: Final = ("prompt", "number", "max_bytes", "stop")

Columns = Mapping[str, Sequence[Any]]


@dataclass(kw_only=True)
class Predictor:
    """Continues prompts, at most `rows` at a time. All its fields are plain values; the model is opened when needed."""

    model: str | None = None  # a bundle's folder; None: the built-in model
    precision: str | None = None
    engine: str = "auto"
    threads: int = 0
    exact: bool = True
    method: MethodOptions = field(default_factory=MethodOptions)
    sampler: Sampler = field(default_factory=Sampler)
    stop: Stop = field(default_factory=Stop)  # of records that name none
    rows: int = 16
    notice: Callable[[str], None] = complain

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UsageError(f"--batch-size is {self.rows}; use at least 1")
        self._opened: Pipeline | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @property
    def bundle(self) -> Bundle:
        return open_bundle(resolve_bundle(self.model, self.precision, self.notice))

    def __call__(self, batch: Columns) -> dict[str, list[Any]]:
        """One batch of records, as columns: `prompt` (bytes or text) and, where wanted, `number` (keys the noise of
        sampling; default 0, 1, ...), `max_bytes`, `stop` (a list of bytes or texts). Returns all other columns as they
        are, and `number`, `output` (bytes), `end` (why it ended, or "") and `error` (or "")."""
        count = len(batch["prompt"])
        numbers = [int(number) for number in batch.get("number", range(count))]
        requests = [Request(number, *self._asked(batch, at)) for at, number in enumerate(numbers)]
        found = {result.record: result for result in self.results(requests, DecodeStats())}
        results = [found[number] for number in numbers]
        return {
            **{name: list(column) for name, column in batch.items() if name not in _TAKEN},
            "number": numbers,
            "output": [result.output for result in results],
            "end": [result.end or "" for result in results],
            "error": [result.error or "" for result in results],
        }

    def results(self, requests: Iterable[Request], stats: DecodeStats) -> Iterator[Result]:
        """A result per request, as they come; counters go to `stats`.

        Out of memory, the batch is halved and what was under way begins again: the same output, later. Another failure
        of the engine is borne by the request that causes it. ModelError or UsageError where the model, or the method
        over it, cannot be used at all.
        """
        feed = _Feed(iter(requests))
        while (first := feed.first()) is not None:
            model = self.open(len(first.prompt) + first.stop.max_bytes)
            method = self.method.make(model)
            try:
                yield from self._served(model, method, feed, stats)
            except Exception as error:
                if isinstance(error, BltError) or error is feed.broken:
                    raise
                self.close()
                yield from self._recovered(feed, stats, error)

    def _served(self, model: CountedModel, method: DecodingMethod, feed: _Feed, stats: DecodeStats) -> Iterator[Result]:
        outputs: dict[int, bytearray] = {}
        refused: list[Result] = []
        chunks = serve(
            model, method, feed, sampler=self.sampler, stats=stats,
            refused=lambda request, error: refused.append(Result(request.record, error=str(error))),
        )  # fmt: skip
        for chunk in chunks:
            data = outputs.setdefault(chunk.record, bytearray())
            data += chunk.data
            if chunk.finish_reason is not None:
                del outputs[chunk.record]
                yield feed.finished(Result(chunk.record, bytes(data), chunk.finish_reason))
            while refused:
                yield feed.finished(refused.pop())
        while refused:
            yield feed.finished(refused.pop())

    def _recovered(self, feed: _Feed, stats: DecodeStats, error: Exception) -> Iterator[Result]:
        """Go on after a failure: with fewer texts at a time, or without the request that causes it."""
        suspects = list(feed.running.values())
        if out_of_memory(error) and self.rows > 1:
            self.rows //= 2
            self.notice(f"out of memory; going on with {self.rows} texts at a time")
            feed.again()
        elif len(suspects) == 1:
            yield feed.finished(Result(suspects[0].record, error=_line(error)))
        else:
            alone = replace(self, rows=1)
            for request in suspects:
                for result in alone.results([request], stats):
                    yield feed.finished(result)

    def open(self, longest: int) -> Pipeline:
        """The model, opened for as many texts of `longest` bytes, continuation included, as memory seems to hold."""
        while self._opened is None:
            bundle = self.bundle
            rows = rows_that_fit(bundle, self.rows, longest)
            if rows < self.rows:
                self.notice(f"memory holds {rows} texts of {longest} bytes at a time, not {self.rows}")
                self.rows = rows
            try:
                self._opened = open_model(
                    bundle, engine=self.engine, rows=self.rows, threads=self.threads, exact=self.exact
                )
            except Exception as error:
                if self.rows == 1 or not out_of_memory(error):
                    raise
                self.rows //= 2
                self.notice(f"out of memory; going on with {self.rows} texts at a time")
        return self._opened

    def close(self) -> None:
        """Free the model; it is opened again when it is needed."""
        self._opened = None
        gc.collect()

    def _asked(self, batch: Columns, at: int) -> tuple[bytes, Stop]:
        max_bytes = int(batch["max_bytes"][at]) if "max_bytes" in batch else self.stop.max_bytes
        strings = tuple(map(_bytes, batch["stop"][at])) if "stop" in batch else self.stop.strings
        return _bytes(batch["prompt"][at]), Stop(max_bytes=max_bytes, strings=strings)


class _Feed(Iterator[Request]):
    """Requests on their way to a model; those under way can begin again."""

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests
        self._next: deque[Request] = deque()  # drawn, and not handed out
        self.running: dict[int, Request] = {}
        self.broken: Exception | None = None  # where the requests come from failed, not the model

    def __next__(self) -> Request:
        request = self._next.popleft() if self._next else self._drawn()
        self.running[request.record] = request
        return request

    def first(self) -> Request | None:
        """The request that comes next; None when there is none now."""
        if not self._next:
            try:
                self._next.append(self._drawn())
            except StopIteration:
                return None
        return self._next[0]

    def _drawn(self) -> Request:
        try:
            return next(self._requests)
        except StopIteration:
            raise
        except Exception as error:
            self.broken = error
            raise

    def again(self) -> None:
        self._next.extendleft(reversed(self.running.values()))
        self.running.clear()

    def finished(self, result: Result) -> Result:
        del self.running[result.record]
        return result


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def _bytes(text: Any) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""A model as a function from records to records: opens itself where it is called, and outlives a lack of memory.

`Predictor` can be pickled: Ray Data, Dask or Spark send it to their workers, where each opens a model of its own.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bltcli.batch.memory import rows_that_fit
from bltcli.batch.ordering import Item, Result, Window, noise_key
from bltcli.batch.run import run_items
from bltcli.bundle import Bundle, open_bundle
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import Request
from bltcli.decoding.lanes import serve_lanes
from bltcli.decoding.stop import Stop
from bltcli.errors import BltError, UsageError
from bltcli.lanes import open_lanes
from bltcli.models import resolve_bundle
from bltcli.pipeline import Pipeline
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli.streams import complain

#: What runtimes say when memory is gone; ONNX Runtime and PyTorch raise errors of their own.
_NO_MEMORY: Final = ("bad_alloc", "failed to allocate memory", "out of memory", "can't allocate memory")
_TAKEN: Final = ("prompt", "max_bytes", "stop")

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
        self._opened: list[Pipeline] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": []}

    @property
    def bundle(self) -> Bundle:
        return open_bundle(resolve_bundle(self.model, self.precision, self.notice))

    def __call__(self, batch: Columns) -> dict[str, list[Any]]:
        """One batch of records, as columns: `prompt` (bytes or text) and, where wanted, `number` (keys the noise of
        sampling; without it the prompt does), `max_bytes`, `stop` (a list of bytes or texts). Returns the columns, but
        for `prompt`, `max_bytes` and `stop`, as they are, and `output` (bytes), `end` (why it ended, or "") and `error`
        (or ""): a record that cannot be run fails alone."""
        items = [self._item(batch, at) for at in range(len(batch["prompt"]))]
        window, stats = Window(_Listed(items), ahead=2 * len(items) + 2), DecodeStats()
        done = run_items(window, lambda requests: self.results(requests, stats))
        results = [item.found[0] if item.requests else Result(0, error=str(item.content)) for item in done]
        return {
            **{name: list(column) for name, column in batch.items() if name not in _TAKEN},
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
            failure = yield from self._until_failure(feed, stats, len(first.prompt) + first.stop.max_bytes)
            if failure is not None:
                self.close()  # nothing holds the model any more: neither a frame, nor an error's traceback
                yield from self._recovered(feed, stats, failure)

    def _until_failure(self, feed: _Feed, stats: DecodeStats, longest: int) -> Generator[Result, None, _Failure | None]:
        try:
            yield from self._served(feed, stats, longest)
        except Exception as error:  # engines raise errors of every kind
            if isinstance(error, BltError) or error is feed.broken or not feed.running:
                raise  # no text's fault
            return _Failure(_line(error), out_of_memory(error))
        return None

    def _served(self, feed: _Feed, stats: DecodeStats, longest: int) -> Iterator[Result]:
        outputs: dict[int, bytearray] = {}
        refused: list[Result] = []
        chunks = serve_lanes(
            [(model, self.method.make(model)) for model in self.open(longest)], feed, sampler=self.sampler, stats=stats,
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

    def _recovered(self, feed: _Feed, stats: DecodeStats, failure: _Failure) -> Iterator[Result]:
        """Go on after a failure: with fewer texts at a time, or without the request that causes it."""
        suspects = list(feed.running.values())
        if failure.out_of_memory and self.rows > 1:
            self.rows //= 2
            self.notice(f"out of memory; going on with {self.rows} texts at a time")
            feed.again()
        elif len(suspects) == 1:
            yield feed.finished(Result(suspects[0].record, error=failure.line))
        else:
            alone = replace(self, rows=1)
            for request in suspects:
                for result in alone.results([request], stats):
                    yield feed.finished(result)
            alone.close()

    def open(self, longest: int) -> list[Pipeline]:
        """The model, opened for as many texts of `longest` bytes, continuation included, as memory seems to hold: as
        one batch or as several side by side."""
        while not self._opened:
            bundle = self.bundle
            rows = rows_that_fit(bundle, self.rows, longest)
            if rows < self.rows:
                self.notice(f"memory holds {rows} texts of {longest} bytes at a time, not {self.rows}")
                self.rows = rows
            try:
                self._opened = open_lanes(
                    bundle, engine=self.engine, rows=self.rows, threads=self.threads, exact=self.exact
                )
            except Exception as error:  # engines raise errors of every kind
                if self.rows == 1 or not out_of_memory(error):
                    raise
                self.rows //= 2
                self.notice(f"out of memory; going on with {self.rows} texts at a time")
        return self._opened

    def close(self) -> None:
        """Free the model; it is opened again when it is needed."""
        self._opened = []
        gc.collect()

    def _item(self, batch: Columns, at: int) -> Item:
        """Record `at` of a batch: an item of one request, or of none and what is wrong with it."""
        try:
            prompt = _bytes(batch["prompt"][at])
            number = int(batch["number"][at]) if "number" in batch else noise_key(prompt)
            max_bytes = int(batch["max_bytes"][at]) if "max_bytes" in batch else self.stop.max_bytes
            strings = tuple(map(_bytes, batch["stop"][at])) if "stop" in batch else self.stop.strings
            stop = Stop(max_bytes=max_bytes, strings=strings)
        except (UsageError, TypeError, ValueError) as error:
            return Item(at, _line(error), [], 0)
        return Item(at, None, [Request(number, prompt, stop)], len(prompt))


@dataclass(frozen=True)
class _Failure:
    line: str
    out_of_memory: bool


class _Listed:
    """Items that are all there."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)

    def take(self, *, wait: bool) -> Item:
        return next(self._items)


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
        except Exception as error:  # whatever it is, it is not the model's
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
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    raise UsageError(f"{text!r} is neither text nor bytes")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, BltError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

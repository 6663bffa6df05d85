"""Out of order for speed, back in order for people: texts of like length together, within a bounded look-ahead.

Knows no model, no file format and no journal.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from bltcli.decoding.driver import Request
from bltcli.decoding.stop import FinishReason

#: Items that may be under way at once, per text that is decoded together.
AHEAD_PER_ROW: Final = 64
#: Bytes of input under way at once, whatever the number of records.
AHEAD_BYTES: Final = 32 * 2**20


@dataclass(frozen=True)
class Result:
    """What a request came to: `output` and why it ended, or the error."""

    record: int
    output: bytes = b""
    end: FinishReason | None = None
    error: str | None = None


@dataclass
class Item:
    """A record of the input: what it asks of the model, perhaps nothing, and what came back."""

    number: int  # its place in the input
    content: Any  # what the caller wants to find again
    requests: Sequence[Request]
    size: int  # bytes of input
    ran: bool = field(init=False, default=False)  # asked the model for something, now and not in an earlier run
    results: list[Result | None] = field(init=False)
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = len(self.requests)
        self.results = [None] * self.missing

    @property
    def done(self) -> bool:
        return not self.missing

    def put(self, part: int, result: Result) -> None:
        assert self.results[part] is None
        self.results[part] = result
        self.missing -= 1

    @property
    def found(self) -> list[Result]:
        """The results, once they are all there."""
        return [result for result in self.results if result is not None]


class Source(Protocol):
    """Items in the order of the input."""

    def take(self, *, wait: bool) -> Item | None:
        """The next one; None when there is none now and `wait` is not set. StopIteration at the end."""
        ...


#: What part of an item came to in an earlier run, if it did.
Known = Callable[[Item, int], Result | None]


def noise_key(name: bytes) -> int:
    """A record number below 2^62 for the text of this name: it keys the noise of sampling wherever the text stands."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 2


class Window(Iterator[Request]):
    """The requests of a source, those of like length one after another; its items, in order.

    No item begins that is `ahead` or more behind the oldest unfinished one, so what is held is bounded. Iterating stops
    when there is nothing to hand out *now*, and may go on later: when requests have been `place`d, or more input is
    there. It waits for input only while nothing is held, so whatever is finished can be taken by `ready` before.

    A request that is running already is not handed out again: one result is for both. Another one of the same record
    waits until that has ended.
    """

    def __init__(
        self, source: Source, *, ahead: int, ahead_bytes: int = AHEAD_BYTES, known: Known | None = None
    ) -> None:
        assert ahead >= 2
        self._source, self._ahead, self._ahead_bytes = source, ahead, ahead_bytes
        self._known = known or (lambda _item, _part: None)
        self._held: deque[Item] = deque()  # admitted and not handed back, in order
        self._held_bytes = 0
        self._block: list[tuple[Item, int]] = []  # to be handed out, last first
        self._running: dict[int, list[tuple[Item, int]]] = {}  # by the request's record; all want the same
        self._rising = False
        self._ended = False

    @property
    def exhausted(self) -> bool:
        """Whether everything was handed back and nothing will come."""
        return self._ended and not self._held

    def __next__(self) -> Request:
        if not self._block:
            self._refill()
        for at in range(len(self._block) - 1, -1, -1):
            item, part = self._block[at]
            request = item.requests[part]
            running = self._running.setdefault(request.record, [])
            if not running or running[0][0].requests[running[0][1]] == request:
                running.append(self._block.pop(at))
                if len(running) == 1:
                    return request
        raise StopIteration

    def place(self, result: Result) -> list[tuple[Item, int]]:
        """Put a result where it belongs; which parts of which items that are."""
        places = self._running.pop(result.record)
        for item, part in places:
            item.put(part, result)
        return places

    def ready(self) -> Iterator[Item]:
        """The items that are finished and whose turn it is."""
        while self._held and self._held[0].done:
            item = self._held.popleft()
            self._held_bytes -= item.size
            yield item

    def _refill(self) -> None:
        """Admit the next items: half a window of them, so that the next block can be drawn while the slow ones of this
        one still run. Neighbouring blocks rise and fall in turns: lengths change slowly across their border too."""
        for _ in range(self._ahead // 2):
            room = len(self._held) < self._ahead and self._held_bytes < self._ahead_bytes
            if self._ended or (self._held and not room):
                break
            try:
                item = self._source.take(wait=not self._held)
            except StopIteration:
                self._ended = True
                break
            if item is None:
                break
            self._held.append(item)
            self._held_bytes += item.size
            for part in range(len(item.requests)):
                result = self._known(item, part)
                if result is not None:
                    item.put(part, result)
                else:
                    item.ran = True
                    self._block.append((item, part))
        sign = -1 if self._rising else 1
        self._block.sort(key=lambda entry: (sign * len(entry[0].requests[entry[1]].prompt), -entry[0].number))
        self._rising ^= bool(self._block)

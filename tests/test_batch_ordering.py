"""Out of order and back: nothing is lost, nothing runs far ahead, and nothing finished waits for more input."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from time import perf_counter

from hypothesis import given, settings
from hypothesis import strategies as st

from bltcli.batch.ordering import Item, Result, Window
from bltcli.decoding.driver import Request
from bltcli.decoding.stop import Stop

STOP = Stop(max_bytes=4)


def item(number: int, *sizes: int) -> Item:
    requests = [Request(number + (part << 40), b"x" * size, STOP) for part, size in enumerate(sizes)]
    return Item(number, None, requests, sum(sizes))


class Given:
    """A source that has nothing at some moments (where an entry is None)."""

    def __init__(self, items: list[Item | None]) -> None:
        self.items = items
        self.drawn = 0
        self.waits: list[bool] = []

    def take(self, *, wait: bool) -> Item | None:
        self.waits.append(wait)
        while self.items and self.items[0] is None:
            self.items.pop(0)
            if not wait:
                return None
        if not self.items:
            raise StopIteration
        self.drawn += 1
        return self.items.pop(0)


def serve(window: Window, rows: int, rng: random.Random) -> Iterator[int]:
    """Run at most `rows` requests at a time, ending in any order; the numbers of the items handed back."""
    while not window.exhausted:
        running: list[Request] = []
        while True:
            running += [request for _, request in zip(range(rows - len(running)), window, strict=False)]
            if not running:
                break
            ended = running.pop(rng.randrange(len(running)))
            window.place(Result(ended.record, b"", "eos"))
            for done in window.ready():
                assert done.done
                yield done.number
        yield from (done.number for done in window.ready())


@settings(deadline=None)
@given(
    st.lists(st.none() | st.lists(st.integers(1, 50), max_size=3), max_size=60),
    st.integers(1, 5),
    st.integers(2, 9),
    st.integers(0, 999),
)
def test_every_item_comes_back_once_and_in_order(
    sizes: list[list[int] | None], rows: int, ahead: int, seed: int
) -> None:
    given_sizes = [entry for entry in sizes if entry is not None]
    numbers = iter(range(len(given_sizes)))
    source = Given([None if entry is None else item(next(numbers), *entry) for entry in sizes])
    window = Window(source, ahead=ahead)
    back = 0
    for number in serve(window, rows, random.Random(seed)):
        assert number == back
        back += 1
        assert source.drawn - back < ahead
    assert back == len(given_sizes)


def test_nothing_begins_a_window_ahead_of_the_oldest() -> None:
    source = Given([item(n, 10) for n in range(100)])
    window = Window(source, ahead=8)
    oldest = next(window)  # of items alike the first goes first; it never ends
    others = []
    for request in window:
        others.append(request.record)
        window.place(Result(request.record))
        assert not list(window.ready())
    assert sorted([oldest.record, *others]) == list(range(8))
    window.place(Result(oldest.record))
    assert [done.number for done in window.ready()] == list(range(8))
    assert next(window).record == 8


def test_bytes_bound_the_window_too() -> None:
    source = Given([item(n, 60) for n in range(50)])
    window = Window(source, ahead=40, ahead_bytes=100)
    running = [request.record for request in window]
    assert len(running) == source.drawn == 2
    for record in running:
        window.place(Result(record))
    assert len(list(window.ready())) == 2
    one = Window(Given([item(0, 500)]), ahead=40, ahead_bytes=100)
    assert next(one).record == 0  # what is larger than the bound goes alone


def test_requests_of_like_length_follow_each_other() -> None:
    rng = random.Random(1)
    source = Given([item(n, rng.randint(1, 400)) for n in range(400)])
    lengths = []
    window = Window(source, ahead=200)
    while not window.exhausted:
        for request in window:
            lengths.append(len(request.prompt))
            window.place(Result(request.record))
        list(window.ready())
    steps = [abs(a - b) for a, b in itertools.pairwise(lengths)]
    assert len(lengths) == 400
    assert sum(steps) / len(steps) < 15  # in the order of the input: 133
    assert max(steps) < 100  # where one block meets the next, too


def test_input_is_waited_for_only_when_everything_is_handed_back() -> None:
    source = Given([item(0, 5), None, item(1), None, item(2, 5), None])
    window = Window(source, ahead=8)
    first = next(window)
    assert source.waits == [True, False]
    assert next(window, None) is None  # there is a blank item, and no request
    assert source.waits[2:] == [False, False]
    window.place(Result(first.record))
    assert next(window).record == 2
    window.place(Result(2))
    assert True not in source.waits[1:]  # items were held
    assert [done.number for done in window.ready()] == [0, 1, 2]
    assert not window.exhausted
    assert next(window, None) is None
    assert source.waits[-1]
    assert window.exhausted


def test_a_record_that_is_there_twice_runs_one_after_the_other() -> None:
    twins = [Item(n, None, [Request(7, b"x" * (n + 1), STOP)], 1) for n in range(3)]
    window = Window(Given([*twins, item(3, 1)]), ahead=20)
    assert [request.record for request in window] == [7, 3]
    for _ in range(2):
        window.place(Result(7))
        assert next(window).record == 7
    window.place(Result(7))
    window.place(Result(3))
    assert [done.number for done in window.ready()] == [0, 1, 2, 3]


def test_what_is_asked_twice_runs_once() -> None:
    twins = [Item(n, None, [Request(7, b"xx", STOP)], 1) for n in range(3)]
    window = Window(Given([*twins, item(3, 1)]), ahead=20)
    assert [request.record for request in window] == [7, 3]
    assert [(i.number, part) for i, part in window.place(Result(7, b"y", "eos"))] == [(0, 0), (1, 0), (2, 0)]
    assert [done.found[0].output for done in window.ready()] == [b"y"] * 3
    assert next(window, None) is None


def test_a_line_of_many_pieces_takes_time_in_proportion() -> None:
    def seconds(pieces: int) -> float:
        sizes = [40 - at * 40 // pieces for at in range(pieces)]  # the first pieces end first
        window, done = Window(Given([item(0, *sizes)]), ahead=8), []
        began = perf_counter()
        for request in window:
            assert not done
            window.place(Result(request.record))
            done += window.ready()
        assert len(done) == 1
        return perf_counter() - began

    many, few = (min(seconds(pieces) for _ in range(3)) for pieces in (40_000, 4_000))
    assert many < 40 * few  # 10 times the pieces


def test_what_is_known_is_not_asked_again() -> None:
    known = {(0, 1): Result(1 << 40, b"old", "eos"), (1, 0): Result(1, b"older", "eos")}
    window = Window(Given([item(0, 3, 4), item(1, 5)]), ahead=9, known=lambda i, part: known.get((i.number, part)))
    assert [request.record for request in window] == [0]
    window.place(Result(0, b"new", "eos"))
    assert [[r.output for r in done.found] for done in window.ready()] == [[b"new", b"old"], [b"older"]]

"""Items in, items out in order: a window over the input, a model, and a journal where one is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bltcli.batch.journal import Journal
from bltcli.batch.ordering import Item, Result, Window
from bltcli.decoding.driver import Request

#: Turns requests into results, in any order; may end early when there is no request at the moment.
Runner = Callable[[Iterator[Request]], Iterator[Result]]


def run_items(
    window: Window,
    runner: Runner,
    *,
    journal: Journal | None = None,
    done: Callable[[Result, Sequence[Item]], None] = lambda _result, _items: None,
) -> Iterator[Item]:
    """The items of a window, in order, each as soon as it and all before it are finished.

    With a journal, which the window must know, what is run is in it before it is handed out. `done` is told of every
    result that was run, and of the items that it finished, whose turn may come later.
    """
    while not window.exhausted:
        for result in runner(window):
            places = window.place(result)
            if journal is not None:
                for item, part in places:
                    journal.add(item, part, result)
            done(result, [item for item, _ in places if item.done])
            yield from window.ready()
        yield from window.ready()

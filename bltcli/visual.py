"""A text in the making, drawn on a terminal: masked, drafted, verified, kept and refused bytes in their colours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bltcli.trace import Event
from bltcli.vocab import BOS, EOS, MASK, OFFSET

if TYPE_CHECKING:
    from rich.text import Text

FRAME_SECONDS: Final = 0.06
ROWS: Final = 12  # lines of text that are shown
#: Kind of byte -> Rich style. Readable on dark and light backgrounds, and told apart without colours too.
STYLES: Final = {
    "text": "",
    "pending": "bold",
    "masked": "dim",
    "drafted": "underline yellow",
    "verifying": "underline cyan",
    "refused": "strike red",
}
_SHOWN: Final = {EOS: "∎", MASK: "░", OFFSET + 10: "⏎", OFFSET + 9: "⇥"}

Cell = tuple[int, str]  # id, kind


class Picture:
    """What is known of one text; follows events."""

    def __init__(self, prompt: list[int]) -> None:
        self.text = list(prompt)  # ids that were run
        self.flight: list[Cell] = []  # beyond them
        self.doing = ""
        self.drafts = ""  # how many were kept, where the event says so
        self._running: list[int] = []

    def follow(self, event: Event) -> None:
        """Take one event of this text."""
        kind, ids = event["event"], event.get("ids", [])
        self.doing = {"draft": "drafting", "reveal": "denoising", "verify": "verifying", "absorb": "committing"}.get(
            kind, self.doing
        )
        if kind in ("draft", "reveal"):
            pending: list[Cell] = [(i, "pending") for i in event["pending"]]
            self.flight = pending + [(i, "masked" if i == MASK else "drafted") for i in ids]
        elif kind == "verify":
            # what ran before and was not verified was committed before it ran
            self.text, self._running = (self.text + self._running)[: event["position"]], ids
            self.flight = [(i, "pending" if n == 0 else "verifying") for n, i in enumerate(ids)]
        elif kind == "absorb":
            self.text, self.flight = self.text[: event["position"]] + ids, []
        elif kind == "keep":
            kept = event["length"] - len(self.text)
            if event.get("drafted"):
                self.drafts = f"; {event['accepted']} of {event['drafted']} drafted bytes kept"
            self.flight = [(i, "refused") for i in self._running[kept:]]
            self.text += self._running[: max(0, kept)]
            self._running = []

    def cells(self, columns: int) -> list[list[Cell]]:
        """The last ROWS lines of at most `columns` cells, [row][column]."""
        rows: list[list[Cell]] = [[]]
        for cell in [*((i, "text") for i in self.text if i != BOS), *self.flight]:
            if len(rows[-1]) == columns:
                rows.append([])
            rows[-1].append(cell)
            if cell[0] == OFFSET + 10:
                rows.append([])
        return rows[-ROWS:]

    def draw(self, columns: int) -> Text:
        """The picture for a terminal of `columns`, with a legend."""
        from rich.text import Text

        drawn = Text(no_wrap=True, overflow="crop")
        for row in self.cells(columns):
            for run in _runs(row):
                drawn.append(show([i for i, _ in run]), STYLES[run[0][1]])
            drawn.append("\n")
        for kind in ("masked", "drafted", "verifying", "refused"):
            drawn.append(f"{'░' if kind == 'masked' else ''}{kind}", STYLES[kind])
            drawn.append("  ")
        drawn.append(self.doing + self.drafts, "dim")
        return drawn


def _runs(row: list[Cell]) -> Iterator[list[Cell]]:
    """Neighbours of one kind together, so that whole characters are drawn."""
    run: list[Cell] = []
    for cell in row:
        if run and run[0][1] != cell[1]:
            yield run
            run = []
        run.append(cell)
    if run:
        yield run


def show(ids: list[int]) -> str:
    """Ids as printable characters; bytes that are no character alone show as U+FFFD."""
    shown, data = "", b""
    for i in ids:
        if OFFSET <= i < MASK and i not in _SHOWN:
            data += bytes([i - OFFSET])
        else:
            shown += _printable(data) + _SHOWN.get(i, "�")
            data = b""
    return shown + _printable(data)


def _printable(data: bytes) -> str:
    return "".join(c if c.isprintable() else "�" for c in data.decode(errors="replace"))


@contextmanager
def screen(prompt: list[int], *, frame_s: float = FRAME_SECONDS) -> Iterator[Callable[[Event], None]]:
    """Draw row 0 of the events that the yielded function is given on stderr, one frame per event."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    picture = Picture(prompt)
    with Live(picture.draw(console.width), console=console, auto_refresh=False, transient=True) as live:

        def draw(event: Event) -> None:
            if event.get("row", 0) == 0:
                picture.follow(event)
                live.update(picture.draw(console.width), refresh=True)
                time.sleep(frame_s)

        yield draw

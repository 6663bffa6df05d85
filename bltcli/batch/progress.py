"""What people and machines see of a run while it lasts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, perf_counter
from typing import Final

from bltcli import render, settings, streams
from bltcli.batch.metrics import Meter

LINE_SECONDS: Final = 0.5
FILE_SECONDS: Final = 5.0


@contextmanager
def reported(
    meter: Meter, *, progress: bool | None, metrics_file: str | None, text_on_stdout: bool
) -> Iterator[Callable[[], None]]:
    """Yields a function to call often: it keeps the progress line and the metrics file up to date. The latter is
    written once more when the block ends, however it ends; then a summary goes to stderr, unless it ended by an error.

    The line shows by default where stderr is a terminal and the text itself is not seen there, the summary where stderr
    is a terminal or records failed; `progress` True asks for both in a log too, as plain lines. Metrics that cannot be
    written any more are said to end, and end no run.
    """

    def write_metrics() -> None:
        nonlocal metrics_file
        if metrics_file is None:
            return
        try:
            streams.write_whole(metrics_file, meter.prometheus(render.peak_rss_bytes()).encode())
        except OSError as error:
            streams.complain(f"cannot write {metrics_file}: {error.strerror}; the metrics end here")
            metrics_file = None

    def summary() -> None:
        if progress or streams.is_terminal(sys.stderr) or meter.failed or settings.verbosity() > 0:
            render.notice(meter.line(final=True))

    meter.began = perf_counter()
    seen = text_on_stdout and streams.is_terminal(sys.stdout)
    with _told(summary), _line(meter, False if progress is None and seen else progress) as show:
        timers = [_Timer(LINE_SECONDS, show), _Timer(FILE_SECONDS, write_metrics)]

        def tick() -> None:
            for timer in timers:
                timer.tick()

        write_metrics()
        try:
            yield tick
        finally:
            write_metrics()


@contextmanager
def _told(summary: Callable[[], None]) -> Iterator[None]:
    """Gives the summary when the block is over, or was interrupted; not where a failure is said instead."""
    try:
        yield
    except KeyboardInterrupt:
        summary()
        raise
    summary()


class _Timer:
    """Does something at most so often."""

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self._seconds, self._action, self._due = seconds, action, monotonic() + seconds

    def tick(self) -> None:
        if monotonic() >= self._due:
            self._action()
            self._due = monotonic() + self._seconds


@contextmanager
def _line(meter: Meter, wanted: bool | None) -> Iterator[Callable[[], None]]:
    """A line that draws itself over itself on a terminal; yields what to call for it to be told again in a log."""
    if wanted is False or settings.verbosity() < 0 or not (wanted or streams.is_terminal(sys.stderr)):
        yield lambda: None
    elif streams.is_terminal(sys.stderr):
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(
            get_renderable=lambda: Text(meter.line()), console=Console(stderr=True), transient=True,
            refresh_per_second=1 / LINE_SECONDS, redirect_stdout=False,
        ):  # fmt: skip
            yield lambda: None
    else:
        yield lambda: streams.complain(meter.line())

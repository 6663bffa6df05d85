"""A line in is a line out: what of a line goes to the model, and what its translation is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from bltcli.batch.journal import bytes_fields
from bltcli.batch.lines import Line, Lines
from bltcli.batch.ordering import Item, noise_key
from bltcli.batch.segments import Segments, split
from bltcli.bundle import Bundle
from bltcli.decoding.driver import Request
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.prompts import Prompts, known_directions

OnError = Literal["empty", "copy"]
Status = Literal["ok", "truncated", "failed"]

_CUT_OFF: Final = ("length", "context")
#: Context that is neither prompt nor translation: the text's beginning and its end.
_AROUND: Final = 2
MIN_PIECE_BYTES: Final = 4  # a character


def direction(bundle: Bundle, to: str, from_: str | None) -> str:
    """The direction to translate in, such as "en>fr". UsageError for one that the bundle does not know, and where
    `from_` is left out and several languages are possible."""
    known = known_directions(bundle)
    if not known:
        raise UsageError(
            f"{bundle.path} does not say that it was trained on translations; bltcli batch takes any prompt"
        )
    if from_ is not None:
        wanted = f"{from_}>{to}"
        if wanted not in known:
            raise UsageError(f"--from {from_} --to {to}: {bundle.path} was trained on {', '.join(known)}")
        return wanted
    fitting = [found for found in known if found.endswith(f">{to}")]
    if not fitting:
        raise UsageError(f"--to {to}: {bundle.path} was trained on {', '.join(known)}")
    if len(fitting) > 1:
        raise UsageError(f"--to {to} can be {' or '.join(fitting)}; say which with --from")
    return fitting[0]


def piece_bytes(bundle: Bundle, prompts: Prompts, wanted: int, max_bytes: int) -> int:
    """Bytes of a line that go through the model at once: `wanted`, or fewer where the context holds no more beside a
    translation of `max_bytes`, even if every byte is a patch. UsageError where it holds nothing."""
    context = min(bundle.config.max_bytes, bundle.config.global_model.max_positions)
    room = context - _AROUND - len(prompts.prompt(b"")) - max_bytes
    if room < MIN_PIECE_BYTES:
        most = max_bytes + room - MIN_PIECE_BYTES
        raise UsageError(f"--max-bytes is {max_bytes}, the context of {context} leaves no room; use at most {most}")
    return min(wanted, room)


class LineSource:
    """Lines as items: each piece of a line is a request. Its own bytes key the noise of sampling, so that a line has
    one translation, whatever stands around it."""

    def __init__(self, lines: Lines, prompts: Prompts, *, limit: int, max_bytes: int) -> None:
        self._lines, self._prompts, self._limit = lines, prompts, limit
        # a translation of a line is a line
        self._stop = Stop(max_bytes=max_bytes, strings=(b"\n",))
        self._number = 0
        self._first_of_file: dict[int, int] = {}

    def take(self, *, wait: bool) -> Item | None:
        line = self._lines.take(wait=wait)
        if line is None:
            return None
        number, self._number = self._number, self._number + 1
        in_file = number - self._first_of_file.setdefault(line.file, number)
        segments = split(line.body, self._limit)
        asked = [self._prompts.prompt(piece) for piece in segments.pieces]
        requests = [Request(noise_key(prompt), prompt, self._stop) for prompt in asked]
        return Item(number, SourceLine(line, segments, in_file + 1), requests, len(line.body) + len(line.end))


@dataclass(frozen=True)
class SourceLine:
    """What an item of `LineSource` holds; `number` counts the lines of its file from 1."""

    line: Line
    segments: Segments
    number: int


@dataclass(frozen=True)
class Translation:
    """One line of output, without its end."""

    source: SourceLine
    output: bytes
    status: Status
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record of --jsonl, without its id."""
        pieces = len(self.source.segments.pieces)
        sizes = {"source_bytes": len(self.source.line.body), "output_bytes": len(self.output), "pieces": pieces}
        error = {} if self.error is None else {"error": self.error}
        texts = {**bytes_fields("source", self.source.line.body), **bytes_fields("output", self.output)}
        return {**texts, "status": self.status, **error, "stats": sizes}


def translation(item: Item, *, on_error: OnError, raw: bool) -> Translation:
    """The line that a finished item of `LineSource` comes to. Bytes of the model that are no UTF-8 become U+FFFD unless
    `raw`, and a carriage return, which some programs take for a line's end, a space. What is not translated, blank
    lines and white space around pieces, stays as it is."""
    source: SourceLine = item.content
    errors = [result.error for result in item.found if result.error is not None]
    if errors:
        return Translation(source, source.line.body if on_error == "copy" else b"", "failed", errors[0])
    pieces = [_clean(result.output, raw) for result in item.found]
    cut_off = any(result.end in _CUT_OFF for result in item.found)
    return Translation(source, source.segments.joined(pieces), "truncated" if cut_off else "ok")


def _clean(output: bytes, raw: bool) -> bytes:
    whole = output if raw else output.decode(errors="replace").encode()
    return whole.replace(b"\r", b" ")

"""Translation: line-aligned test sets, the prompts of a translation, and what counts as its output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bltcli.errors import UsageError
from bltcli.streams import read_file
from bltcli.train.data import translation

#: Languages by the codes of directions; others are named by their code.
LANGUAGES: Final = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sv": "Swedish", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
#: The paper's tasks by direction.
PAPER_TASKS: Final = {"fr>en": "FR-EN", "de>en": "DE-EN"}


@dataclass(frozen=True)
class Pair:
    source: str
    target: str


def read_pairs(source: Path, target: Path, limit: int | None = None) -> list[Pair]:
    """The lines of two files, side by side; the first `limit` of them. UsageError when they do not match up."""
    lines = [_lines(path) for path in (source, target)]
    if len(lines[0]) != len(lines[1]):
        raise UsageError(f"{source} has {len(lines[0])} lines, {target} {len(lines[1])}; they must match line by line")
    if not lines[0]:
        raise UsageError(f"{source} has no lines")
    return [Pair(*pair) for pair in zip(*lines, strict=True)][:limit]


@dataclass(frozen=True)
class Prompts:
    """Sources to prompts. Without `shots` (pairs shown first, perhaps none) in the form that bltcli's own models are
    trained on: the direction, the source, each on a line; the translation follows and ends the text. With them in a
    plain form for models that were trained on text at large, which a line's end closes."""

    direction: str
    shots: Sequence[Pair] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_-]+>[A-Za-z_-]+", self.direction):
            raise UsageError(f"--direction is {self.direction!r}; write it as fr>en")

    @property
    def stop(self) -> tuple[bytes, ...]:
        return () if self.shots is None else (b"\n",)

    def prompt(self, source: str) -> bytes:
        if self.shots is None:
            return translation(self.direction, source.encode(), b"")
        from_, to = (LANGUAGES.get(code, code) for code in self.direction.split(">"))
        shown = "".join(f"{from_}: {pair.source}\n{to}: {pair.target}\n\n" for pair in self.shots)
        return f"{shown}{from_}: {source}\n{to}:".encode()


def hypothesis(output: bytes) -> str:
    """An output as the one line that is scored: U+FFFD for what is no UTF-8, spaces for line ends."""
    return " ".join(output.decode(errors="replace").splitlines()).strip()


def _lines(path: Path) -> list[str]:
    lines = read_file(str(path)).split(b"\n")
    if not lines[-1]:
        lines.pop()
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError:
            raise UsageError(f"{path}: line {number} is no valid UTF-8") from None
    return texts

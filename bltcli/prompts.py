"""Prompts of a translation, in the form a model was trained on or with examples shown first. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bltcli.bundle import Bundle
from bltcli.errors import UsageError
from bltcli.train.data import translation

#: Languages by the codes of directions; others are named by their code.
LANGUAGES: Final = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sv": "Swedish", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
DIRECTION: Final = r"[A-Za-z_-]+>[A-Za-z_-]+"


@dataclass(frozen=True)
class Pair:
    source: str
    target: str


@dataclass(frozen=True)
class Prompts:
    """Sources to prompts. Without `shots` (pairs shown first, perhaps none) in the form that bltcli's own models are
    trained on: the direction, the source, each on a line; the translation follows and ends the text. With them in a
    plain form for models that were trained on text at large, which a line's end closes.

    A source without a line feed cannot leave its place in either form, whatever it says.
    """

    direction: str
    shots: Sequence[Pair] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(DIRECTION, self.direction):
            raise UsageError(f"--direction is {self.direction!r}; write it as fr>en")

    @property
    def stop(self) -> tuple[bytes, ...]:
        return () if self.shots is None else (b"\n",)

    def prompt(self, source: str | bytes) -> bytes:
        source = source.encode() if isinstance(source, str) else source
        if self.shots is None:
            return translation(self.direction, source, b"")
        from_, to = (LANGUAGES.get(code, code) for code in self.direction.split(">"))
        shown = "".join(f"{from_}: {pair.source}\n{to}: {pair.target}\n\n" for pair in self.shots)
        return f"{shown}{from_}: ".encode() + source + f"\n{to}:".encode()


def known_directions(bundle: Bundle) -> list[str]:
    """The directions, such as "en>fr", that a bundle says it was trained on."""
    return re.findall(DIRECTION, str(bundle.prompt_format.get("translation", "")))


def check_prompts(prompts: Prompts, bundle: Bundle) -> None:
    """UsageError when the bundle does not say that it was trained on translations in its own form."""
    form = str(bundle.prompt_format.get("translation", ""))
    if prompts.shots is None and not form:
        raise UsageError(
            f"{bundle.path} names no form for translations; show it examples: --shots 4 --examples SOURCE REFERENCE"
        )
    if prompts.shots is None and ">" in form and prompts.direction not in form:
        raise UsageError(f"--direction is {prompts.direction}; {bundle.path} was trained on: {form}")

"""A method in one line of text: "blt-d block=8 unmask=confidence alpha=0.7"."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

from bltcli.decoding import MethodOptions
from bltcli.errors import UsageError


def _draft_bytes(text: str) -> Any:
    return text if text == "auto" else int(text)


def _flag(text: str) -> bool:
    return {"yes": True, "no": False}[text]


#: Key -> field of MethodOptions and its reader.
_KEYS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "k": ("draft_bytes", _draft_bytes),
    "block": ("block", int),
    "unmask": ("unmask", str),
    "alpha": ("alpha", float),
    "gamma": ("gamma", float),
    "commit": ("commit", str),
    "trust": ("trust", float),
    "ngram": ("ngram_draft", _flag),
}


def parse_setting(text: str, others: Sequence[str] = ()) -> tuple[MethodOptions, dict[str, str]]:
    """METHOD KEY=VALUE...; the keys are k, block, unmask, alpha, gamma, commit, trust, ngram (yes, no), and those in
    `others`, whose values come back as they are. UsageError for anything else."""
    method, *words = text.split() or [""]
    fields: dict[str, Any] = {"method": method}
    rest: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in (*_KEYS, *others):
            raise UsageError(f"setting {text!r}: {word!r} is not one of {', '.join((*_KEYS, *others))} with =VALUE")
        if key in others:
            rest[key] = value
            continue
        field, read = _KEYS[key]
        try:
            fields[field] = read(value)
        except (ValueError, KeyError):
            raise UsageError(f"setting {text!r}: {value!r} is no value for {key}") from None
    try:
        return MethodOptions(**fields), rest
    except UsageError as error:
        raise UsageError(f"setting {text!r}: {error}") from error


def format_setting(options: MethodOptions) -> str:
    """The shortest text that `parse_setting` reads as `options`."""
    defaults = MethodOptions(method=options.method)
    words = [options.method]
    for key, (field, _) in _KEYS.items():
        value = getattr(options, field)
        if value != getattr(defaults, field):
            words.append(f"{key}={'yes' if value is True else value}")
    return " ".join(words)


assert {field for field, _ in _KEYS.values()} | {"method"} == {f.name for f in dataclasses.fields(MethodOptions)}

"""Which settings a benchmark runs: methods in one line each, with what they run on. Knows no clock."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bltcli.decoding import MethodOptions
from bltcli.decoding.setting import format_setting, parse_setting
from bltcli.errors import UsageError

#: Keys of a setting that are not the method's own.
KEYS: Final = ("engine", "precision", "exact")
DEFAULT: Final = ("ar", "ar exact=no", "blt-s k=4,8,16", "auto")
DEFAULT_BLOCKS: Final = ("blt-d", "blt-dv", "blt-h")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of a benchmark. `engine` and `precision` None: those of the run."""

    options: MethodOptions
    engine: str | None = None
    precision: str | None = None
    exact: bool = True

    @property
    def name(self) -> str:
        """The text that `parse_settings` reads as this setting."""
        words = [format_setting(self.options)]
        if self.options.method == "blt-s" and " k=" not in words[0]:  # said even where it is the default
            words[0] = words[0].replace("blt-s", f"blt-s k={self.options.draft_bytes}", 1)
        words += [f"{key}={value}" for key in ("engine", "precision") if (value := getattr(self, key)) is not None]
        return " ".join(words if self.exact else [*words, "exact=no"])

    @property
    def plain(self) -> bool:
        """Plain cached decoding, byte for byte: what everything else is compared with."""
        return self.options.method == "ar" and not self.options.ngram_draft

    @property
    def verified(self) -> bool:
        """Whether the method writes the bytes of `ar` on an engine whose rows do not depend on their call."""
        return self.exact and self.options.verified


def parse_settings(texts: Iterable[str]) -> list[Setting]:
    """METHOD KEY=VALUE...; a value with commas stands for several settings, "blt-s k=4,8" for two. Each setting once.
    UsageError for anything else."""
    found: dict[Setting, None] = {}
    for text in texts:
        words = [_alternatives(word) for word in text.split()] or [[""]]
        for chosen in itertools.product(*words):
            options, rest = parse_setting(" ".join(chosen), KEYS)
            exact = rest.pop("exact", "yes")
            if exact not in ("yes", "no"):
                raise UsageError(f"setting {' '.join(chosen)!r}: {exact!r} is no value for exact; use yes or no")
            found[Setting(options=options, exact=exact == "yes", engine=rest.get("engine"),
                          precision=rest.get("precision"))] = None  # fmt: skip
    return list(found)


def _alternatives(word: str) -> list[str]:
    key, equals, values = word.rpartition("=")
    return [f"{key}{equals}{value}" for value in values.split(",")]


def default_settings(block_size: int) -> list[Setting]:
    """What suits a model; `block_size` 0: not trained on blocks."""
    return parse_settings([*DEFAULT, *(DEFAULT_BLOCKS if block_size else ())])


def with_reference(settings: Sequence[Setting]) -> list[Setting]:
    """The settings, and before those of each precision its `ar`, where it is missing."""
    found: list[Setting] = []
    for setting in settings:
        own = [s for s in settings if s.precision == setting.precision]
        if not any(s.plain and s.exact for s in own):
            reference = Setting(options=MethodOptions(method="ar"), precision=setting.precision, engine=own[0].engine)
            if reference not in found:
                found.append(reference)
        found.append(setting)
    return found

"""Prompts in, records out: continues the prompts of an evaluation under one setting, and sums up what that took."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from bltcli.bandwidth import paper_gb
from bltcli.bundle import Bundle
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate
from bltcli.decoding.setting import format_setting
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.graphs import GRAPHS
from bltcli.pipeline import Pipeline, open_model
from bltcli.records import Record, collect, digest
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats

#: Texts are sorted by length within a window of so many calls' worth of them: texts of one call then end at about the
#: same time. An interruption costs a window at most.
WINDOW_CALLS: Final = 4
CLOCKS: Final = ("wall_s", "prefill_s", "ttfb_s", "bytes_per_s")
#: What a call's statistics keep: counts that add up. Not the bytes of caches: those are as large as earlier calls made
#: them, and records must depend on their own call alone.
COUNTS: Final = ("prompt_bytes", "new_bytes", "rounds", "drafted", "accepted", "patches", "nfe", "text_nfe",
                 "prefill_nfe", "weight_bytes_read")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How every text of a run is generated."""

    name: str
    options: MethodOptions
    sampler: Sampler
    stop: Stop

    @property
    def exact(self) -> bool:
        """Whether its text is that of `ar` for certain; `auto` is whatever was tuned."""
        return self.options.verified and self.options.method != "auto"

    def header(self) -> dict[str, Any]:
        """What the records of a run depend on, for their header."""
        stops = [string.decode(errors="backslashreplace") for string in self.stop.strings]
        sampling = {"sampling": asdict(self.sampler)}
        return {"setting": self.name, **sampling, "max_bytes": self.stop.max_bytes, "stop": stops}


def settings_of(
    runs: Sequence[MethodOptions], bundle: Bundle, sampler: Sampler, stop: Stop, *, suffix: str = ""
) -> list[Setting]:
    """A setting per method, named in full: no default is left to guess. UsageError for one that is there twice."""
    names = [full_name(options, bundle.config.block_size) + suffix for options in runs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the setting {name!r} is there {names.count(name)} times; give each once")
    return [Setting(name=n, options=o, sampler=sampler, stop=stop) for n, o in zip(names, runs, strict=True)]


def full_name(options: MethodOptions, trained_block: int) -> str:
    """As `format_setting`, with every option that the method uses."""
    if options.method == "auto":
        return format_setting(options)
    used = {
        key: value for key, value in options.settings(trained_block).items() if key not in ("method", "ngram_draft")
    }
    words = [f"{key}={value}" for key, value in used.items() if value is not None]
    return " ".join([options.method, *words, *(["ngram=yes"] if options.ngram_draft else [])])


class Generator:
    """A bundle opened for `rows` texts per call; one model at a time is in memory."""

    def __init__(
        self, bundle: Bundle, *, rows: int = 1, engine: str = "auto", threads: int = 0, exact: bool = True
    ) -> None:
        if rows < 1:
            raise UsageError(f"--rows is {rows}; use at least 1")
        self.bundle, self.rows = bundle, rows
        self._how: dict[str, Any] = {"engine": engine, "threads": threads, "exact": exact}
        self._model: Pipeline | None = None

    def model(self, rows: int) -> Pipeline:
        if self._model is None or self._model.rows != rows:
            self._model = None  # frees it before the next is opened
            self._model = open_model(self.bundle, rows=rows, **self._how)
        return self._model

    @cached_property
    def _engine(self) -> tuple[str, int]:
        model = self.model(self.rows)
        return model.engine_name, model.row_multiple

    @property
    def promises_equality(self) -> bool:
        """Whether methods that verify must give the same bytes here, to the last bit."""
        return self._engine[1] > 1

    def header(self) -> dict[str, Any]:
        """What the records of a run depend on, for their header."""
        how = {"engine": self._engine[0], "exact": self._how["exact"], "rows": self.rows}
        return {"bundle_sha256": self.bundle.sha256, **how}

    def stood_for(self, options: MethodOptions) -> dict[str, str]:
        """What "auto" stands for here; nothing for other methods."""
        if options.method != "auto":
            return {}
        return {"auto": full_name(options.resolved(self.model(self.rows)), self.bundle.config.block_size)}

    def groups(self, prompts: Sequence[bytes]) -> list[range]:
        """The prompts of each window, by number: what `continue_texts` takes at a time."""
        size = 1 if self.rows == 1 else self.rows * WINDOW_CALLS
        return [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]

    def continue_texts(self, setting: Setting, prompts: Sequence[bytes], records: Sequence[int]) -> list[Record]:
        """A record per prompt, in order; those of like length share a call. `records` number the texts, also for the
        noise of sampling.

        id, output (as UTF-8; `output_hex` has the bytes where they are none), finish_reason, new_bytes, `call` (id of
        the first text that shared the passes), `work` (what that call took) and `timing`. A prompt that is refused
        gives id and `error`.
        """
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        made: dict[int, Record] = {}
        for start in range(0, len(order), self.rows):
            chosen = order[start : start + self.rows]
            for record in self._call(setting, [prompts[i] for i in chosen], [records[i] for i in chosen]):
                made[record["id"]] = record
        return [made[number] for number in records]

    def _call(self, setting: Setting, prompts: list[bytes], records: list[int]) -> list[Record]:
        model, stats = self.model(len(prompts)), DecodeStats()
        method = setting.options.make(model)  # anew: what a method learns must not depend on the calls before
        outputs, reasons = dict.fromkeys(records, b""), dict.fromkeys(records, "")
        run = generate(model, method, prompts, sampler=setting.sampler, stop=setting.stop, stats=stats, records=records)
        try:
            for chunk in run:
                outputs[chunk.record] += chunk.data
                reasons[chunk.record] = chunk.finish_reason or ""
        except UsageError as error:  # a prompt was refused: find out which
            if len(prompts) == 1:
                return [{"id": records[0], "error": str(error)}]
            return [r for p, n in zip(prompts, records, strict=True) for r in self._call(setting, [p], [n])]
        facts = stats.to_dict()
        shared = {
            "call": records[0],
            "work": {"texts": len(records), **{name: facts[name] for name in COUNTS}, "patch_bytes": stats.patch_bytes},
            "timing": {name: facts[name] for name in CLOCKS},
        }
        return [
            {"id": n, **_text(outputs[n]), "finish_reason": reasons[n], "new_bytes": len(outputs[n]), **shared}
            for n in records
        ]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Prompts to be continued, by number."""

    name: str
    prompts: Sequence[bytes]
    facts: Sequence[Mapping[str, Any]]  # more for each record, after its id
    header: Mapping[str, Any]  # what the records depend on besides prompts, setting and bundle


def run_settings(
    generator: Generator,
    settings: Sequence[Setting],
    task: Task,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, list[Record]]:
    """The records of a task under each setting, by its name and in order.

    With `folder`, they are in a file per setting there, written window by window, which a later run goes on with.
    `advance` is told how many records there are. UsageError or ModelError for a setting that this bundle cannot run,
    before any is run.
    """
    for setting in settings:
        setting.options.make(generator.model(generator.rows))
    groups = generator.groups(task.prompts)
    autos = {setting.name: generator.stood_for(setting.options) for setting in settings}
    common = {"task": task.name, "input_sha256": digest([*task.prompts, json.dumps(list(task.facts)).encode()])}
    found: dict[str, list[Record]] = {}
    for setting in settings:
        before = len(found) * len(task.prompts)

        def make(numbers: Sequence[int], setting: Setting = setting) -> list[Record]:
            made = generator.continue_texts(setting, [task.prompts[n] for n in numbers], numbers)
            return [{"id": r["id"], **task.facts[r["id"]], **r} for r in made]

        def done(count: int, before: int = before) -> None:
            advance(before + count)

        header = {**common, **task.header, **setting.header(), **autos[setting.name], **generator.header()}
        path = None if folder is None else folder / f"{setting.name.replace(' ', '_')}.jsonl"
        found[setting.name] = collect(path, header, groups, make, done)
    return found


def output_of(record: Record) -> bytes:
    """The bytes that a record's text was continued with; none where it failed."""
    return bytes.fromhex(record["output_hex"]) if "output_hex" in record else str(record.get("output", "")).encode()


def equal_texts(records: Sequence[Record], others: Sequence[Record]) -> int:
    """How many texts came out the same in two runs: bytes and reason to end."""
    return sum(
        (output_of(a), a.get("finish_reason")) == (output_of(b), b.get("finish_reason"))
        for a, b in zip(records, others, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run took. Passes and gigabytes are per text, however many shared a call."""

    texts: int
    failed: int
    new_bytes: int
    acceptance: float | None  # percent of drafted bytes that were kept
    nfe: dict[str, float]  # passes per graph in which a text took part, prompt excluded
    gigabytes: float  # the paper's formula
    bytes_per_s: float | None
    bytes_per_patch: float | None


def summarise(records: Sequence[Record], parameters: dict[str, int]) -> Summary:
    """Averages over `records` of one setting; `parameters` are the bundle's."""
    good = [record for record in records if "error" not in record]
    calls = list({record["call"]: record for record in good}.values())
    count = max(1, len(good))

    def total(name: str) -> int:
        return sum(call["work"][name] for call in calls)

    nfe: dict[str, float] = {name: sum(call["work"]["text_nfe"][name] for call in calls) / count for name in GRAPHS}
    wall_s = sum(call["timing"]["wall_s"] for call in calls)
    return Summary(
        texts=len(records),
        failed=len(records) - len(good),
        new_bytes=total("new_bytes"),
        acceptance=100 * total("accepted") / total("drafted") if total("drafted") else None,
        nfe=nfe,
        gigabytes=paper_gb(nfe, parameters),
        bytes_per_s=total("new_bytes") / wall_s if wall_s else None,
        bytes_per_patch=total("patch_bytes") / total("patches") if total("patches") else None,
    )


def _text(data: bytes) -> dict[str, str]:
    try:
        return {"output": data.decode()}
    except UnicodeDecodeError:
        return {"output": data.decode(errors="replace"), "output_hex": data.hex()}

"""Diversity: free text from an empty prompt, how varied its words are against the decoder passes it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Final

from bltcli.decoding import MethodOptions
from bltcli.decoding.stop import Stop
from bltcli.evaluate.generating import Generator, Setting, Task, output_of, settings_of, summarise
from bltcli.evaluate.report import PASSES_NOTE, Report, Row, with_decreases
from bltcli.records import Record
from bltcli.sampling import Sampler

DEFINITION: Final = (
    "TTR: different words over all words of a sample, the mean over samples, ± half its 95 % interval. Words are what "
    "white space parts, after decoding UTF-8 with U+FFFD for what is none; they keep case and punctuation."
)


def type_token_ratio(text: bytes) -> float:
    """Different words over all words: `str.split` on UTF-8 decoded with replacement characters, case and punctuation
    kept. It falls with length, so compare texts of one length. 0 for a text without words."""
    words = text.decode(errors="replace").split()
    return len(set(words)) / len(words) if words else 0.0


def grid(
    generator: Generator,
    runs: Sequence[MethodOptions],
    top_ps: Sequence[float],
    *,
    sample_bytes: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[list[Setting]]:
    """Every method at every top-p, those of one top-p together. Samples do not end before `sample_bytes`. UsageError
    for a number out of range or a setting that is there twice."""
    stop = Stop(max_bytes=sample_bytes)
    samplers = [Sampler(temperature=temperature, top_p=p, seed=seed, ignore_eos=True) for p in dict.fromkeys(top_ps)]
    return [settings_of(runs, generator.bundle, s, stop, suffix=f" top-p={s.top_p}") for s in samplers]


def task_of(samples: int) -> Task:
    return Task(name="diversity", prompts=[b""] * samples, facts=[{}] * samples, header={})


def make_report(
    generator: Generator, settings: Sequence[Sequence[Setting]], records: Mapping[str, Sequence[Record]]
) -> Report:
    """Type-token ratio and cost of each setting; `settings` as `grid` gives them."""
    rows: list[Row] = []
    for together in settings:
        found = [
            Row(
                setting=setting.name,
                scores=_scores([type_token_ratio(output_of(record)) for record in records[setting.name]]),
                summary=summarise(records[setting.name], generator.bundle.parameters),
            )
            for setting in together
        ]
        rows += with_decreases(found)
    count, stop = len(records[rows[0].setting]), settings[0][0].stop
    title = f"Diversity, {count} samples of {stop.max_bytes} bytes, {generator.bundle.path.name}"
    details = {"task": "diversity", "bundle_sha256": generator.bundle.sha256}
    return Report(title=title, rows=rows, notes=[DEFINITION, PASSES_NOTE], details=details)


def _scores(ratios: Sequence[float]) -> dict[str, float]:
    mean = {"TTR": fmean(ratios)}
    return {**mean, "± TTR": 1.96 * stdev(ratios) / sqrt(len(ratios))} if len(ratios) > 1 else mean

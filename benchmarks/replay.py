"""Random weights that decode as trained ones do: what is written, its patches and how far drafts are right is replayed.

    python benchmarks/replay.py record PROMPTS.jsonl [-m BUNDLE] [--new-bytes 200]
    python benchmarks/replay.py bench BUNDLE [--recording FILE] [--run SETTING]... [--context 100] [--new-bytes 64]
        [--repeats 3]

`record` continues prompts (benchmarks/replay_prompts.jsonl) with a trained model, greedily, and at every byte asks what
each way of drafting would have offered there; benchmarks/results/replay.json. `bench` is `bltcli bench` on a bundle of
any weights: every graph runs as it would, and only then what it found is replaced by what was recorded. Rows go to
benchmarks/results/replayed.jsonl.
Not replayed: methods that depend on how sure the model is (`blt-h`), and which patches refused bytes would have closed:
a global pass more or less in twenty.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, add_rows

from bltcli.bench.measure import Task
from bltcli.bench.prompts import read_prompts
from bltcli.bench.run import run_bench
from bltcli.bench.settings import parse_settings
from bltcli.bundle import Bundle, open_bundle
from bltcli.decoding.denoise import Bools, Certainty, Confidence, OneStep, Unmask
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.protocol import Choose
from bltcli.decoding.rows import count_agreed
from bltcli.decoding.setting import parse_setting
from bltcli.decoding.stop import Stop
from bltcli.engine_choice import open_engines
from bltcli.models import resolve_bundle
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import FloatArray, Sampler
from bltcli.stats import Work
from bltcli.texts import Patches
from bltcli.vocab import OUTPUT_IDS, IdArray, decode, encode

FILE = RESULTS / "replay.json"
LONGEST = 16  # bytes of a draft
BLOCKS = (4, 8, 16)
ALPHA = 0.7  # of the confidence rule whose passes are recorded
SETTINGS = ("ar exact=no,yes", "blt-s k=2,4,8,16")
BLOCK_SETTINGS = ("blt-d block=4,8,16", "blt-dv block=4,8,16")


@dataclass
class Recording:
    """One text, byte by byte; what could be drafted after each byte, while it was the one pending byte."""

    ids: list[int]
    closes: list[bool]  # whether the byte ends its patch
    drafted: list[int]  # how many of LONGEST bytes drafted by the decoder were right
    filled: dict[str, list[int]]  # by block: how many bytes of one filled in one step were right
    passes: dict[str, list[int]]  # by block: decoder passes under the confidence rule

    def start(self, count: int) -> bytes:
        """Its first bytes, from the beginning again where it ends."""
        return decode(list(itertools.islice(itertools.cycle(self.ids), count)))

    @property
    def longest_patch(self) -> int:
        ends = [-1, *(at for at, closed in enumerate(self.closes) if closed)]
        return max(end - start for start, end in itertools.pairwise(ends))

    def __add__(self, other: Recording) -> Recording:
        filled = {block: self.filled.get(block, []) + found for block, found in other.filled.items()}
        passes = {block: self.passes.get(block, []) + found for block, found in other.passes.items()}
        return Recording(self.ids + other.ids, self.closes + other.closes, self.drafted + other.drafted, filled, passes)


def record(bundle: Bundle, prompts: Sequence[bytes], new_bytes: int) -> Recording:
    """What `bundle` writes after `prompts`, one text after another; the prompts are not in it."""
    whole, model = Recording([], [], [], {}, {}), open_model(bundle)
    for prompt in prompts:
        method = parse_setting("ar")[0].make(model)
        (text,), _ = generate_texts(model, method, [prompt], stop=Stop(max_bytes=new_bytes))
        whole += record_text(model, encode(prompt), encode(text)[1:])
        print(f"{len(whole.ids)} bytes", flush=True)
    return whole


def record_text(model: Pipeline, prompt: IdArray, text: IdArray) -> Recording:
    greedy, sampler = np.zeros(1, dtype=np.int64), Sampler()

    def choose(logits: FloatArray, rows: IdArray, positions: IdArray) -> IdArray:
        return sampler.choose(logits, greedy.repeat(len(rows)), positions)

    model.clear(0)
    for start in range(0, len(prompt), model.prefill_rows):
        model.extend([prompt[start : start + model.prefill_rows]])
    made = Recording(text.tolist(), [], [], {}, {})
    for at, byte in enumerate(text.tolist()):
        rest, pending = made.ids[at + 1 :], np.array([byte])
        count = min(LONGEST, int(model.room[0]) - 1)
        lengths = model.lengths.copy()
        made.drafted.append(count_agreed(model.draft(pending, np.array([count]), choose)[0].tolist(), rest))
        for block in BLOCKS if model.block_size else ():
            size = np.array([min(block, count)])
            (filled,), _ = model.denoise([pending], size, OneStep(), choose)
            made.filled.setdefault(str(block), []).append(count_agreed(filled.tolist(), rest))
            model.ledger.work = Work()
            model.denoise([pending], size, Confidence(ALPHA), choose)
            made.passes.setdefault(str(block), []).append(model.ledger.work.passes()["decoder"])
        model.rewind(lengths)
        patches = int(model.patches[0])
        model.extend([pending])
        made.closes.append(int(model.patches[0]) > patches)
    return made


class Replayed(Pipeline):
    """A pipeline whose graphs run, and whose findings are a recording's. One text; position 0 is BOS."""

    recording: Recording

    @property
    def block_size(self) -> int:
        """Whatever the weights were trained on."""
        return max(BLOCKS)

    def _next(self, position: int) -> int:
        """The id at a position of the text that is written."""
        ids = self.recording.ids
        return ids[(position - 1) % len(ids)]

    def _recorded(self, values: Sequence[Any], position: int) -> Any:
        return values[(position - 1) % len(values)]

    def extend(self, ids: Sequence[IdArray]) -> FloatArray:
        start = int(self.lengths[0])
        logits = np.full((1, super().extend(ids).shape[1], OUTPUT_IDS), -30.0, dtype=np.float32)
        for column in range(len(ids[0])):
            logits[0, column, self._next(start + column + 1)] = 30.0
        return logits

    def close_patches(self, counts: IdArray, entropy: FloatArray, *, peek: bool) -> Patches:
        start, threshold = int(self.lengths[0]), self.config.patcher.threshold_nats
        closes = [self._recorded(self.recording.closes, max(1, start + column)) for column in range(int(counts[0]))]
        found = np.where(closes, threshold + 1, threshold - 1)[None].astype(np.float32)
        return super().close_patches(counts, found, peek=peek)

    def draft(self, pending: IdArray, counts: IdArray, choose: Choose) -> list[IdArray]:
        at = int(self.lengths[0])
        return super().draft(pending, counts, self._script(at, self._recorded(self.recording.drafted, at)))

    def denoise(
        self, pending: Sequence[IdArray], counts: IdArray, unmask: Unmask, choose: Choose
    ) -> tuple[list[IdArray], list[FloatArray]]:
        at, block = int(self.lengths[0]) + len(pending[0]) - 1, self._block(int(counts[0]))
        if isinstance(unmask, OneStep):
            return super().denoise(
                pending, counts, unmask, self._script(at, self._recorded(self.recording.filled[block], at))
            )
        passes = self._recorded(self.recording.passes[block], at)
        return super().denoise(pending, counts, Evenly(passes), self._script(at, int(counts[0])))

    def _block(self, count: int) -> str:
        return str(next(block for block in BLOCKS if block >= count))

    def _script(self, pending: int, right: int) -> Choose:
        """Chooses what is written after position `pending`: `right` bytes, then others."""

        return Script(self._next, pending + right)


SCRIPTED = 1e9  # added to the logit of the id that is to be chosen


@dataclass(frozen=True)
class Script:
    """Chooses what is to be written, and after position `last` another byte; so does a graph that is told."""

    written: Callable[[int], int]
    last: int
    cuts: bool = False

    def __call__(self, logits: FloatArray, rows: IdArray, positions: IdArray) -> IdArray:
        return np.array([self.written(p) ^ (p > self.last) for p in positions.tolist()], dtype=np.int64)

    def addends(self, positions: IdArray) -> FloatArray:
        found = np.zeros((*positions.shape, OUTPUT_IDS), dtype=np.float32)
        ids = self(found, positions, positions.reshape(-1)).reshape(positions.shape)
        np.put_along_axis(found, ids[..., None], SCRIPTED, axis=-1)
        return found


@dataclass(frozen=True)
class Evenly:
    """Reveals a block in so many passes."""

    passes: int

    def reveal(self, certainty: Certainty, masked: Bools) -> Bools:
        share = -(-masked.shape[1] // self.passes)
        shown: Bools = masked & (np.cumsum(masked, axis=1) <= share)
        return shown


def open_replayed(recording: Recording, bundle: Bundle, *, rows: int = 1, **how: Any) -> Replayed:
    """As `open_model`."""
    exact = how.pop("exact", True)
    runtime, engines = open_engines(bundle, how.pop("engine", "auto"), rows=rows, **how)
    config = replace(bundle.config, patcher=replace(bundle.config.patcher, max_patch_length=recording.longest_patch))
    Replayed.recording = recording
    return Replayed(config, runtime, engines, bundle.tables(), rows=rows, exact=exact)


def read_recording(file: Path = FILE) -> Recording:
    facts = json.loads(file.read_bytes())
    return Recording(**facts["recording"])


def bench(
    bundle: Bundle, recording: Recording, settings: Sequence[str], context: int, new_bytes: int, repeats: int
) -> Iterator[Any]:
    task = Task((recording.start(context),), Sampler(ignore_eos=True), Stop(max_bytes=new_bytes))
    report = run_bench(
        parse_settings(settings), lambda _: bundle, task, repeats=repeats, opener=partial(open_replayed, recording)
    )
    for row in report["rows"]:
        yield {"bundle": bundle.precision, "context": context, "bandwidth": report["bandwidth"], **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("record")
    step.add_argument("prompts", type=Path)
    step.add_argument("-m", "--model", default=None)
    step.add_argument("--new-bytes", type=int, default=200)
    step = steps.add_parser("bench")
    step.add_argument("bundle", type=Path)
    step.add_argument("--recording", type=Path, default=FILE)
    step.add_argument("--run", action="append", default=None)
    step.add_argument("--context", type=int, default=100)
    step.add_argument("--new-bytes", type=int, default=64)
    step.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    if o.step == "record":
        bundle = open_bundle(resolve_bundle(o.model, None, print))
        found = record(bundle, read_prompts(o.prompts.read_bytes(), str(o.prompts)), o.new_bytes)
        facts = {"bundle_sha256": bundle.sha256, "prompts": o.prompts.name, "recording": asdict(found)}
        FILE.write_text(json.dumps(facts) + "\n")
        return
    bundle = open_bundle(o.bundle)
    blocks = BLOCK_SETTINGS if bundle.config.decoder.input == "lookup" else ()
    settings = o.run or [*SETTINGS, *blocks]
    rows = list(bench(bundle, read_recording(o.recording), settings, o.context, o.new_bytes, o.repeats))
    for row in rows:
        print(row["setting"], f"{row['bytes_per_s']['median']:.1f} bytes/s", row.get("speedup"), flush=True)
    add_rows(RESULTS / "replayed.jsonl", rows)


if __name__ == "__main__":
    main()

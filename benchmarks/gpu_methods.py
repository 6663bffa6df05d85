"""Stages of benchmarks/gpu.py that compare methods, and the large model that they compare them on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from gpu_stage import Row, Stage, free_bytes
from replay import SETTINGS, open_replayed, read_recording

from bltcli.bench.measure import Task, Turn, open_contenders, take_turns
from bltcli.bench.noise import spread
from bltcli.bench.prompts import read_prompts
from bltcli.bench.settings import DEFAULT, DEFAULT_BLOCKS, parse_settings
from bltcli.bundle import open_bundle
from bltcli.decoding.stop import Stop
from bltcli.errors import BltError
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import Sampler

HASH_VOCAB = 50_002  # of the large model: host tables take no part in what is measured


def methods(stage: Stage) -> Iterator[Row]:
    """Every method in turns: bytes per second, speed-up over the fastest plain `ar` of this run, repeat by repeat."""
    file = Path(__file__).parent / "prompts.jsonl"
    prompts = read_prompts(file.read_bytes(), str(file))
    yield from compared(stage, (*DEFAULT, *DEFAULT_BLOCKS), prompts, open_model)


def replayed(stage: Stage) -> Iterator[Row]:
    """The same with random weights: what is written, its patches and how far drafts are right are a recording's."""
    recording = read_recording()
    yield from compared(stage, SETTINGS, (recording.start(100),), partial(open_replayed, recording))


def compared(
    stage: Stage, settings: Sequence[str], prompts: tuple[bytes, ...], opener: Callable[..., Pipeline]
) -> Iterator[Row]:
    bundle = stage.bundle()
    task = Task(prompts, Sampler(ignore_eos=True), Stop(max_bytes=stage.new_bytes))
    chosen, usable = parse_settings(settings), []
    before = free_bytes()
    for setting in chosen:
        try:
            usable += open_contenders([setting], lambda _: bundle, task, engine=stage.engine, threads=0, opener=opener)
        except BltError as error:
            yield {"setting": setting.name, "absent": str(error)}
    turns = take_turns(usable, stage.repeats)
    used = None if before is None else before - (free_bytes() or 0)
    plain = min((t for c, t in zip(usable, turns, strict=True) if c.setting.plain), key=seconds_of)
    reference = next(t for c, t in zip(usable, turns, strict=True) if c.setting.name == "ar")[0].texts
    for contender, own in zip(usable, turns, strict=True):
        stats = own[0].stats
        assert stats is not None
        read = stats.decode.weight_bytes + stats.decode.kv_bytes
        yield {
            "setting": contender.name,
            "new_bytes": own[0].new_bytes,
            "bytes_per_s": own[0].new_bytes / seconds_of(own),
            "speedup": spread([a.seconds / b.seconds for a, b in zip(plain, own, strict=True)]).to_dict(),
            "equal_texts": sum(a == b for a, b in zip(own[0].texts, reference, strict=True)),
            "texts": len(reference),
            "promised": contender.promised,
            "acceptance_rate": stats.acceptance_rate,
            "nfe": stats.decode.passes(),
            "share_of_bandwidth": stage.share(
                read / median(t.stats.wall_s - t.stats.prefill_s for t in own if t.stats)
            ),
            "gpu_bytes_used_by_all": used,
        }


def seconds_of(turns: list[Turn]) -> float:
    return median(turn.seconds for turn in turns)


def write(stage: Stage) -> Iterator[Row]:
    """A checkpoint with the shapes of the released 1B model and random weights, and its fp16 bundle."""
    import shutil
    import sys

    sys.path.append(str(Path(__file__).parents[1]))
    from bltcli.checkpoint import open_checkpoint
    from bltcli_export.exporter import export_checkpoint
    from tests.full_size import RELEASED, write_random

    folder, began = Path(stage.model).with_name(Path(stage.model).name + ".checkpoint"), time.perf_counter()
    data = {**RELEASED["1b"][0], "encoder_hash_byte_group_vocab": HASH_VOCAB}
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint = open_checkpoint(write_random(folder, data, patch_bytes=8))
    export_checkpoint(checkpoint, Path(stage.model), precision="fp16", check=False)
    shutil.rmtree(folder)
    bundle = open_bundle(Path(stage.model))
    yield {"write_s": time.perf_counter() - began, "parameters": bundle.parameters, "weight_bytes": bundle.weight_bytes}

"""Stages of benchmarks/gpu.py that compare methods, and the large models that they compare them on."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from gpu_stage import Row, Stage, free_bytes
from replay import BLOCK_SETTINGS, BLOCKS, FILE, SETTINGS, Recording, open_replayed, read_recording

from bltcli.bench.measure import Task, Turn, open_contenders, take_turns
from bltcli.bench.noise import spread
from bltcli.bench.prompts import read_prompts
from bltcli.bench.settings import DEFAULT, DEFAULT_BLOCKS, parse_settings
from bltcli.bundle import open_bundle
from bltcli.checkpoint import Checkpoint, Weight
from bltcli.decoding.stop import Stop
from bltcli.errors import BltError, ModelError
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import Sampler
from bltcli.vocab import INPUT_IDS

HASH_VOCAB = 50_002  # of the large models: host tables take no part in what is measured


def methods(stage: Stage) -> Iterator[Row]:
    """Every method in turns: bytes per second, speed-up over the fastest plain `ar` of this run, repeat by repeat."""
    file = Path(__file__).parent / "prompts.jsonl"
    prompts = read_prompts(file.read_bytes(), str(file))
    yield from compared(stage, (*DEFAULT, *DEFAULT_BLOCKS), prompts, open_model)


def replayed(stage: Stage) -> Iterator[Row]:
    """The same with random weights: what is written, its patches and how far drafts are right are a recording's, which
    the first row describes and every row names."""
    recording, looks_up = read_recording(), stage.bundle().config.decoder.input == "lookup"
    yield described(recording)
    if not looks_up:
        yield {"setting": "blt-d, blt-dv", "absent": "this decoder reads the encoder's states, and fills no blocks"}
    settings = (*SETTINGS, *BLOCK_SETTINGS) if looks_up else SETTINGS
    opener = partial(open_replayed, recording)
    for row in compared(stage, settings, (recording.start(100),), opener):
        yield {**row, "recording": FILE.name}


def described(recording: Recording) -> Row:
    facts = json.loads(FILE.read_bytes())
    return {
        "recording": FILE.name,
        "of_bundle_sha256": facts["bundle_sha256"],
        "recorded_bytes": len(recording.ids),
        "bytes_per_patch": len(recording.ids) / sum(recording.closes),
        "right_of_16_drafted": sum(recording.drafted) / len(recording.drafted),
    }


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
    """A checkpoint with the shapes of a released model (the folder's name says which) and random weights, and its fp16
    bundle; the checkpoint is then deleted. All of it is streamed: memory for the largest tensor, disk for both."""
    sys.path.append(str(Path(__file__).parents[1]))
    from bltcli.checkpoint import hf, open_checkpoint
    from bltcli.checkpoint.names import expected_shapes
    from bltcli_export.exporter import export_checkpoint
    from tests.full_size import RELEASED, write_random

    out, began = Path(stage.model), time.perf_counter()
    folder = out.with_name(out.name + ".checkpoint")
    form, _, lookup = out.name.partition("-")
    data = {**RELEASED[form][0], "encoder_hash_byte_group_vocab": HASH_VOCAB}
    shutil.rmtree(folder, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    require_space(out.parent, sum(map(math.prod, expected_shapes(hf.read_config(data)).values())))
    checkpoint = open_checkpoint(write_random(folder, data, patch_bytes=8))
    if lookup:
        checkpoint = looking_up(checkpoint)
    export_checkpoint(checkpoint, out, precision="fp16", check=False)
    shutil.rmtree(folder)
    bundle = open_bundle(out)
    yield {"write_s": time.perf_counter() - began, "parameters": bundle.parameters, "weight_bytes": bundle.weight_bytes}


def looking_up(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights under a decoder that looks its ids up, in a random table, and fills blocks."""
    decoder, name = replace(checkpoint.config.decoder, input="lookup"), "decoder.embed_tokens.weight"
    config = replace(checkpoint.config, decoder=decoder, block_size=max(BLOCKS))
    shape = (INPUT_IDS, config.hidden_size)
    table = np.random.default_rng(0).normal(0, shape[1] ** -0.5, shape).astype(np.float32)
    return replace(checkpoint, config=config, weights={**checkpoint.weights, name: Weight(name, (table,))})


def require_space(folder: Path, parameters: int) -> None:
    """ModelError where a checkpoint and a bundle, of 16 bits each, do not fit beside each other."""
    needed, free = round(4.5 * parameters), shutil.disk_usage(folder).free  # patcher and a table are float32
    if free < needed:
        raise ModelError(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} are needed; use another --large")

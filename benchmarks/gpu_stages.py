"""The stages of benchmarks/gpu.py: each is given a model and an engine and yields rows."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from gpu_methods import methods, replayed, write
from gpu_stage import Row, Stage, free_bytes

from bltcli.bench.floor import Bandwidth
from bltcli.bench.machine import cores, environment
from bltcli.bench.noise import spread
from bltcli.bench.settings import parse_settings
from bltcli.commands.verify import PROMPTS
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.differences import NEAR_TIE, Run, explain
from bltcli.engine_choice import OPENERS
from bltcli.errors import BltError, ModelError
from bltcli.graphs import GRAPHS, GraphName, Precision
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import FloatArray, Sampler
from bltcli.verify import Verification
from bltcli.vocab import encode
from bltcli_engines.tensorrt_build import find_library

GPU_ENGINES = ("tensorrt", "ort-cuda", "torch-cuda")  # best first
CPU_ENGINES = ("ort-cpu", "torch")  # where there is no GPU
PADDINGS = (1, 2, 4, 8, 16, 32)
RUNS = 50  # of a graph, timed one by one
#: Largest difference of a graph from float32 PyTorch, relative. fp32 is without TF32; float16 and bfloat16 round to 11
#: and 8 bits; quantised weights are held against float32 ones, with activations as the engine has them.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.03, "bf16": 0.24, "int8": 0.1, "int4": 0.5}
#: Runs to be done again, by graph, number of rows (or of drafted bytes), and whether they draft.
Seen = dict[tuple[GraphName, int, bool], Callable[[], Any]]
TEXT = b"The same bytes, whatever the company: one piece, byte by byte, or beside other texts. 0123456789" * 4


def environment_stage(_: Stage) -> Iterator[Row]:
    """Machine, versions, GPU, and for each engine whether its libraries are here."""
    from bltcli.commands.doctor import gpu_checks

    yield {**environment(), "checks": [{k: row[k] for k in ("name", "ok", "detail")} for row in gpu_checks()]}


def bandwidth(_: Stage) -> Iterator[Row]:
    """Bytes per second that copying reaches: of the GPU's memory, or of the machine's where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        rates = [Bandwidth(cores()).probe() for _ in range(3)]
        yield {"memory": "host", "bytes_per_s": max(median(r[kernel] for r in rates) for kernel in rates[0])}
        return
    source = torch.ones(2**28, device="cuda")  # 1 GiB
    to, seconds = torch.empty_like(source), []
    for _run in range(20):
        torch.cuda.synchronize()
        began = time.perf_counter()
        to.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    yield {"memory": torch.cuda.get_device_name(), "bytes_per_s": 2 * source.nbytes / median(seconds)}


def validity(stage: Stage) -> Iterator[Row]:
    """Whether TensorRT-RTX would run what it builds on this GPU, by its own judgement of one engine."""
    from bltcli.building import make_profile
    from bltcli_engines.tensorrt_build import Log, build_engine

    library, bundle = find_library(), stage.bundle()
    if not library.ahead_of_time:
        raise ModelError(f"{library.name} {library.version} builds for the GPU that is there, and says nothing ahead")
    profile = make_profile(bundle.config)
    engine = build_engine(library, bundle.graph_paths["encoder"], bundle.specs["encoder"], profile)
    found, diagnostics = library.module.Runtime(Log(library.module).logger).get_engine_validity(engine)
    flags = library.module.EngineInvalidityDiagnostics.__members__.items()
    reasons = [name for name, flag in flags if int(diagnostics) & int(flag)]
    yield {
        "library": library.name,
        "version": library.version,
        "validity": found.name,
        "diagnostics": reasons,
        "code": int(diagnostics),
    }


def build(stage: Stage) -> Iterator[Row]:
    """Engines of all four graphs: seconds and bytes."""
    from bltcli.building import build_bundle, make_profile, memory_needed

    bundle, library = stage.bundle(), find_library()
    profile = make_profile(bundle.config, max_batch=8)
    weights, caches = memory_needed(bundle, profile)
    yield {"library": library.name, "version": library.version, "weight_bytes": weights, "cache_bytes": caches}
    for built in build_bundle(bundle, profile):
        yield {"graph": built.graph, "reasons": built.reasons, "bytes": built.bytes, "build_s": built.seconds}


def engines(stage: Stage) -> Iterator[Row]:
    """Which engines open this bundle: those of the GPU, or, where there is none, those of the CPU."""
    refused, opened = {}, []
    for name in OPENERS:
        before = free_bytes()
        try:
            model = stage.open(name)
            model.extend([encode(TEXT[:50])])
        except (BltError, ImportError) as error:
            refused[name] = " ".join(str(error).split())
            continue
        opened.append(name)
        used = None if before is None else before - (free_bytes() or 0)
        captures = {g: getattr(c.engine, "_captures", None) for g, c in model.engines.items()}
        yield {"opens": name, "gpu_bytes_used": used, "onnxruntime_captures": captures if name == "ort-cuda" else None}
        del model
    on_gpu = [name for name in GPU_ENGINES if name in opened]
    taken = on_gpu or [name for name in CPU_ENGINES if name in opened]
    yield {"opened": taken, "refused": refused, "bundle_precision": stage.bundle().precision}


def graphs(stage: Stage) -> Iterator[Row]:
    """What each graph makes of a text, piece by piece, against float32 PyTorch on the CPU: the largest difference,
    relative to the largest value (or 1), and whether it is within the tolerance of this precision."""
    exact, own = stage.bundle("fp32"), TOLERANCE[stage.bundle().precision]
    ids, found = encode(TEXT), {}
    for name, model in (("ours", stage.open()), ("torch", open_model(exact, engine="torch"))):
        entropy, logits = [], []
        for start in range(0, len(ids), 16):
            piece = ids[start : start + 16]
            logits.append(model.extend([piece])[0, : len(piece)].copy())
            entropy.append(model.engines["patcher"].outputs["entropy"][0, : len(piece)].copy())
        n, m = int(model.encoded[0]), int(model.patches[0])
        found[name] = {
            "patcher": np.concatenate(entropy),
            "encoder": model.engines["encoder"].buffers["past_states"].numpy()[0, 0, :n],
            "global": model.engines["global"].buffers["past_cross_kv"].numpy()[0, 0, :m],
            "decoder": np.concatenate(logits),
        }
    for graph in GRAPHS:
        ours, theirs = (found[name][graph].astype(np.float64) for name in ("ours", "torch"))
        tolerance = TOLERANCE["fp32"] if graph == "patcher" else own  # which is float32 at every precision
        if ours.shape != theirs.shape:
            yield {"graph": graph, "tolerance": tolerance, "ok": False, "patches": [len(ours), len(theirs)]}
            continue
        apart = float(np.abs(ours - theirs).max()) / max(1.0, float(np.abs(theirs).max()))
        yield {"graph": graph, "tolerance": tolerance, "ok": apart <= tolerance, "relative_difference": apart}


def rows(stage: Stage) -> Iterator[Row]:
    """How far logits of the same bytes are apart when calls hold other numbers of them, by what calls are padded to:
    0 is what exactness needs."""
    ids = encode(TEXT)
    for multiple in PADDINGS:
        found: list[FloatArray] = []
        for size in (1, multiple // 2, multiple) if multiple > 1 else (1, 2, 7):
            model = stage.open()
            model.row_multiple = multiple
            pieces = [ids[at : at + size] for at in range(0, len(ids), size)]
            found.append(np.concatenate([model.extend([piece])[0, : len(piece)].copy() for piece in pieces]))
        yield {"padded_to": multiple, "largest_difference": float(max(np.abs(f - found[0]).max() for f in found))}


def ar(stage: Stage) -> Iterator[Row]:
    """Plain greedy decoding against the CPU in float32: the first differing decision of each text, and its margin."""
    exact, prompts = stage.bundle("fp32"), PROMPTS[: stage.prompts]
    ours, cpu = (continued(open_model(b, engine=e), prompts, stage.new_bytes)
                 for b, e in ((stage.bundle(), stage.engine), (exact, "ort-cpu")))  # fmt: skip
    limit, bugs, different = NEAR_TIE[stage.bundle().precision], 0, 0
    for record, (prompt, a, b) in enumerate(zip(prompts, cpu, ours, strict=True)):
        if a.text != b.text:
            different += 1
            found = explain(exact, "ort-cpu", prompt, record, a, b, Sampler(), "ar", promised=False)
            bugs += found.margin > limit
            yield {**dataclasses.asdict(found), "bug": found.margin > limit}
    yield {"texts": len(prompts), "different": different, "bugs": bugs, "near_tie_margin": limit}


def continued(model: Pipeline, prompts: tuple[bytes, ...], new_bytes: int) -> list[Run]:
    found = []
    for prompt in prompts:
        method, stop = MethodOptions(method="ar").make(model), Stop(max_bytes=new_bytes)
        texts, _ = generate_texts(model, method, [prompt], sampler=Sampler(), stop=stop)
        found.append(Run(texts[0], model.patch_starts(0), int(model.lengths[0])))
    return found


def verify(stage: Stage) -> Iterator[Row]:
    """`bltcli verify`: speculation against plain decoding on the same engine, PyTorch on the same weights."""
    proof = Verification(stage.bundle(), stage.engine, PROMPTS[: stage.prompts], new_bytes=stage.new_bytes)
    for check in proof.checks():
        yield dataclasses.asdict(check)


def times(stage: Stage) -> Iterator[Row]:
    """Each graph alone, waited for: seconds per run in the shapes that decoding uses, and per draft where a decoder
    drafts by itself."""
    model = stage.open()
    seen: Seen = {}
    for name, counted in model.engines.items():
        watch(counted.engine, name, seen)
    for method in ("ar", "blt-s k=8"):
        options = parse_settings([method])[0].options
        stop = Stop(max_bytes=stage.new_bytes)
        generate_texts(model, options.make(model), [TEXT[:100]], sampler=Sampler(ignore_eos=True), stop=stop)
    for (name, count, drafted), again in sorted(seen.items(), key=lambda item: item[0]):
        counted, seconds = model.engines[name], list[float]()
        for _ in range(RUNS):
            began = time.perf_counter()
            again()
            wait(counted.engine)
            seconds.append(time.perf_counter() - began)
        least = spread(seconds[5:])
        read = (counted.weight_bytes + counted.kv_bytes) * (count if drafted else 1)
        yield {
            "graph": name,
            "rows": count,
            "drafted": drafted,
            "seconds": least.to_dict(),
            "bytes_read": read,
            "share_of_bandwidth": stage.share(read / least.median),
        }


def watch(engine: Any, name: GraphName, seen: Seen) -> None:
    """Keep the last run of each number of rows, and the last draft of each number of bytes, to be done again."""
    run, draft = engine.run, getattr(engine, "draft", None)

    def watch_run(feeds: Any) -> Any:
        seen[name, feeds["position_ids"].shape[1], False] = partial(run, copied(feeds))
        return run(feeds)

    def watch_draft(feeds: Any, steps: int) -> Any:
        assert draft is not None  # it was called
        seen[name, steps, True] = partial(draft, copied(feeds), steps)
        return draft(feeds, steps)

    engine.run = watch_run
    if draft is not None:
        engine.draft = watch_draft


def copied(feeds: Any) -> dict[str, Any]:
    return {key: np.array(value) for key, value in feeds.items()}


def wait(engine: Any) -> None:
    """Until the device has done what was queued."""
    device = getattr(engine, "device", None)
    if device is not None:
        device.synchronise()
    elif engine.__class__.__module__.endswith("torch_engine"):
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


STAGES: dict[str, Callable[[Stage], Iterator[Row]]] = {
    "environment": environment_stage, "bandwidth": bandwidth, "validity": validity, "build": build, "engines": engines,
    "graphs": graphs, "rows": rows, "ar": ar, "verify": verify, "times": times, "methods": methods,
    "replayed": replayed, "write": write,
}  # fmt: skip

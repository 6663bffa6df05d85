"""Builds the TensorRT engines of a bundle that are missing or stale, and loads those that may be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Final

from bltcli.bundle import Bundle
from bltcli.cache import STEP
from bltcli.config import ModelConfig
from bltcli.decoding import MAX_DRAFT_BYTES
from bltcli.engine_store import ANY_GPU, EngineKey, EngineStore
from bltcli.errors import ModelError, UsageError
from bltcli.graphs import GRAPHS, GraphName
from bltcli.texts import LATENT_SLOTS, PREFILL_ROWS, slide_step
from bltcli_engines.gpu import describe_gpu, require_driver
from bltcli_engines.protocol import Engine
from bltcli_engines.tensorrt_build import Library, Profile, build_engine, find_library

if TYPE_CHECKING:
    from bltcli_engines.tensorrt_engine import TensorrtRuntime

UNBOUNDED_PATCH_BYTES: Final = 256  # the longest patch an engine takes where the model sets no maximum

#: (graph, phase, steps done, steps in all) while engines are built.
Progress = Callable[[GraphName, str, int, int], None]


@dataclass(frozen=True)
class Built:
    """What became of one graph."""

    graph: GraphName
    reasons: list[str]  # why it was built; empty: the engine that was there is good
    bytes: int
    seconds: float


def make_profile(
    config: ModelConfig, *, max_batch: int = 1, max_bytes: int | None = None, draft_bytes: int = 16
) -> Profile:
    """Shapes for texts of at most `max_bytes` bytes (default: the model's context), `max_batch` at a time, drafts of at
    most `draft_bytes`. UsageError for what the model cannot do."""
    longest = config.max_bytes if max_bytes is None else max_bytes
    if not 2 <= longest <= config.max_bytes:
        raise UsageError(f"--max-bytes is {longest}; the model's context holds 2 to {config.max_bytes}")
    if not 1 <= draft_bytes <= MAX_DRAFT_BYTES:
        raise UsageError(f"--draft-bytes is {draft_bytes}; use 1 to {MAX_DRAFT_BYTES}")
    patch = config.patcher.max_patch_length or UNBOUNDED_PATCH_BYTES
    # a text's bytes within reach, those that wait for the buffers to slide, an open patch, a call and its padding
    slots = min(config.reach + slide_step(config) + patch + MAX_DRAFT_BYTES, longest) + 2 * PREFILL_ROWS
    patches = min(config.global_model.max_positions, longest) + PREFILL_ROWS
    return Profile(
        max_batch=max_batch,
        max_bytes=longest,
        slots=-(-slots // STEP) * STEP,
        patch_slots=-(-patches // STEP) * STEP,
        latent_slots=LATENT_SLOTS,
        draft_rows=draft_bytes + 1 + (draft_bytes + 1) % 2,
        prefill_rows=PREFILL_ROWS,
        patch_bytes=patch,
    )


def engine_key(store: EngineStore, graph: GraphName, library: Library, profile: Profile) -> EngineKey:
    """What an engine for this graph, library and machine depends on."""
    gpu, capability = (ANY_GPU, ANY_GPU)
    if not library.ahead_of_time:
        gpu, capability = describe_gpu()[:2]
    return store.key(
        graph, profile=asdict(profile), library=library.name, library_version=library.version, gpu=gpu,
        compute_capability=capability,
    )  # fmt: skip


def load_engines(bundle: Bundle) -> tuple[TensorrtRuntime, dict[GraphName, Engine]]:
    """The engines of a bundle as they were built, on this machine's GPU. ModelError, naming what differs and the
    command that builds them, when one is missing, stale, changed, or does not run here."""
    require_driver()
    library, store = find_library(), EngineStore(bundle)
    profile = store.profile()
    keys: dict[GraphName, EngineKey] = {graph: engine_key(store, graph, library, profile) for graph in GRAPHS}
    engines: dict[GraphName, bytes] = {graph: store.load(graph, key) for graph, key in keys.items()}
    from bltcli_engines.cuda_device import cuda_device
    from bltcli_engines.tensorrt_engine import open_tensorrt

    return open_tensorrt(
        library, cuda_device(), engines, bundle.device_specs, bundle.weight_bytes, profile, rebuild=store.rebuild
    )


def memory_needed(bundle: Bundle, profile: Profile) -> tuple[int, int]:
    """Bytes of GPU memory that engines take when they run: weights, and caches at the profile's full size. What
    kernels need besides is TensorRT's own affair and not in it."""
    most = {axis: sizes[2] for axis, sizes in profile.sizes(profile.prefill_rows).items()}
    tensors = [t for spec in bundle.specs.values() for t in spec.inputs if t.name in spec.state]
    caches = sum(
        math.prod(most[axis] if isinstance(axis, str) else axis for axis in t.shape)
        * (2 if t.dtype in ("float16", "bfloat16") else 4)
        for t in tensors
    )
    return sum(bundle.weight_bytes.values()), caches


def require_memory(bundle: Bundle, profile: Profile) -> None:
    """ModelError when the GPU of this machine has less memory free than the engines will need; a machine without one
    cannot tell."""
    try:
        found = describe_gpu()
    except ModelError:  # no GPU: engines are built ahead of time, or refused by their library
        return
    weights, caches = memory_needed(bundle, profile)
    if weights + caches > found.free_bytes:
        raise ModelError(
            f"the engines need at least {(weights + caches) / 1e9:.2f} GB of GPU memory (weights {weights / 1e9:.2f}, "
            f"caches {caches / 1e9:.2f}), {found.name} has {found.free_bytes / 1e9:.2f} GB free; use a smaller "
            "--max-batch or --max-bytes"
        )


def build_bundle(
    bundle: Bundle, profile: Profile, *, fresh: bool = False, progress: Progress | None = None
) -> Iterator[Built]:
    """Build what is missing or stale, graph by graph; `fresh` builds everything. Each engine is kept as soon as it is
    built. ModelError when no TensorRT is there, it does not take a graph, or the GPU has not the memory to run them."""
    library, store = find_library(), EngineStore(bundle)
    require_memory(bundle, profile)
    with store.building():
        for graph in GRAPHS:
            key = engine_key(store, graph, library, profile)
            reasons = ["asked for"] if fresh else store.stale(graph, key)
            began, size = perf_counter(), 0
            if reasons:

                def tell(phase: str, done: int, total: int, graph: GraphName = graph) -> None:
                    if progress is not None:
                        progress(graph, phase, done, total)

                engine = build_engine(
                    library,
                    bundle.device_paths[graph],
                    bundle.device_specs[graph],
                    profile,
                    progress=tell if progress else None,
                    timings=None if library.ahead_of_time else store.timings,  # nothing is measured without a GPU
                )
                size = len(engine)
                store.save(graph, key, engine, seconds=round(perf_counter() - began, 3))
            yield Built(graph, reasons, size, perf_counter() - began)

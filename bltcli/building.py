"""Builds the TensorRT engines of a bundle that are missing or stale, and loads those that may be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Final

from bltcli.bundle import Bundle
from bltcli.cache import SLIDE, STEP
from bltcli.config import ModelConfig
from bltcli.decoding import MAX_DRAFT_BYTES
from bltcli.engine_store import ANY_GPU, EngineKey, EngineStore
from bltcli.errors import UsageError
from bltcli.graphs import GRAPHS, GraphName
from bltcli.texts import PREFILL_ROWS
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


def make_profile(config: ModelConfig, *, max_batch: int, max_bytes: int | None, draft_bytes: int) -> Profile:
    """Shapes for texts of at most `max_bytes` bytes (default: the model's context), `max_batch` at a time, drafts of at
    most `draft_bytes`. UsageError for what the model cannot do."""
    longest = config.max_bytes if max_bytes is None else max_bytes
    if not 2 <= longest <= config.max_bytes:
        raise UsageError(f"--max-bytes is {longest}; the model's context holds 2 to {config.max_bytes}")
    if not 1 <= draft_bytes <= MAX_DRAFT_BYTES:
        raise UsageError(f"--draft-bytes is {draft_bytes}; use 1 to {MAX_DRAFT_BYTES}")
    patch = config.patcher.max_patch_length or UNBOUNDED_PATCH_BYTES
    reach = max(stack.window or longest for stack in (config.patcher, config.encoder, config.decoder))
    # a text's bytes within reach, those that wait for the buffers to slide, an open patch, a call and its padding
    slots = min(reach + SLIDE + patch + MAX_DRAFT_BYTES, longest) + 2 * PREFILL_ROWS
    patches = min(config.global_model.max_positions, longest) + PREFILL_ROWS
    return Profile(
        max_batch=max_batch,
        slots=-(-slots // STEP) * STEP,
        patch_slots=-(-patches // STEP) * STEP,
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
        library, cuda_device(), engines, bundle.specs, bundle.weight_bytes, profile, rebuild=store.rebuild
    )


def build_bundle(
    bundle: Bundle, profile: Profile, *, fresh: bool = False, progress: Progress | None = None
) -> Iterator[Built]:
    """Build what is missing or stale, graph by graph; `fresh` builds everything. Each engine is kept as soon as it is
    built. ModelError when no TensorRT is there, or it does not take a graph."""
    library, store = find_library(), EngineStore(bundle)
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
                    bundle.graph_paths[graph],
                    bundle.specs[graph],
                    profile,
                    progress=tell if progress else None,
                )
                size = len(engine)
                store.save(graph, key, engine, seconds=round(perf_counter() - began, 3))
            yield Built(graph, reasons, size, perf_counter() - began)

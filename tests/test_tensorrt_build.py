"""TensorRT builds engines of all four graphs as they stand, without a GPU; and from whom an engine is taken."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import onnx
import pytest

from bltcli import building
from bltcli.building import build_bundle, engine_key, make_profile, memory_needed
from bltcli.bundle import Bundle, open_bundle
from bltcli.checkpoint import open_checkpoint
from bltcli.engine_store import EngineStore
from bltcli.errors import ModelError, UsageError
from bltcli.graphs import GRAPHS, Precision
from bltcli.models import builtin_checkpoint
from bltcli.pipeline import open_model
from bltcli_engines import gpu, tensorrt_build
from bltcli_engines.gpu import Gpu, describe_gpu
from bltcli_engines.tensorrt_build import Library, Profile, build_engine, find_library
from bltcli_export.exporter import export_checkpoint
from tests.cli_support import bltcli, here, one_line
from tests.conftest import TinyBundle

FEW = Profile(
    max_batch=2,
    max_bytes=128,
    slots=256,
    patch_slots=128,
    latent_slots=128,
    draft_rows=32,
    prefill_rows=32,
    patch_bytes=8,
)
SMALL = replace(FEW, draft_rows=10)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLTCLI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("form", "precision"),
    [*(("lookup", precision) for precision in get_args(Precision)), ("encoder", "fp32"),
     *(pytest.param("encoder", precision, marks=pytest.mark.slow) for precision in get_args(Precision)[1:])],
)  # fmt: skip
def test_all_four_graphs_build_in_every_precision(tiny_bundle: TinyBundle, form: str, precision: Precision) -> None:
    bundle, library = tiny_bundle(form, precision), find_library()
    phases: set[str] = set()
    for graph in GRAPHS:
        path, spec = bundle.device_paths[graph], bundle.device_specs[graph]
        engine = build_engine(library, path, spec, FEW, progress=lambda phase, *_: phases.add(phase))
        assert len(engine) > 10_000
    assert "Building engine" in phases


@pytest.mark.parametrize(
    "precision", [p if p == "fp32" else pytest.param(p, marks=pytest.mark.slow) for p in get_args(Precision)]
)
def test_the_built_in_model_builds_in_every_precision(precision: Precision, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(builtin_checkpoint())
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "b", precision=precision, check=False))
    profile = make_profile(bundle.config, max_bytes=1024)
    for graph in GRAPHS:
        assert build_engine(find_library(), bundle.device_paths[graph], bundle.device_specs[graph], profile)


def test_float32_is_multiplied_as_float32() -> None:
    """TF32 keeps ten bits of the mantissa, and is on unless it is put off."""
    trt = find_library().module
    builder = trt.Builder(tensorrt_build.Log(trt).logger)
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)
    assert not tensorrt_build.make_config(trt, builder).get_flag(trt.BuilderFlag.TF32)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")  # which keeps a cache with nothing in it
def test_what_was_measured_is_kept_for_the_next_build(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    bundle, file = tiny_bundle("lookup"), tmp_path / "timing.cache"

    def build() -> bytes:
        path, spec = bundle.graph_paths["patcher"], bundle.specs["patcher"]
        return build_engine(find_library(), path, spec, FEW, timings=file)

    assert build()
    kept = file.read_bytes()
    assert kept
    assert file.stat().st_mode & 0o777 == 0o600
    assert build()
    file.write_bytes(b"damaged" * 9)  # is not taken, and written anew
    assert build()
    assert file.read_bytes()[:16] == kept[:16]


def test_building_for_a_gpu_without_the_memory_is_refused_before_it_begins(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle("lookup", block_size=16)
    weights, caches = memory_needed(bundle, SMALL)
    small, twice = memory_needed(bundle, Profile(**{**SMALL.__dict__, "max_batch": 4}))
    assert (small, twice) == (weights, 2 * caches)
    model = open_model(bundle, rows=SMALL.max_batch)
    for cache, slots in (
        (model.byte_cache, SMALL.slots),
        (model.patch_cache, SMALL.patch_slots),
        (model.latent_cache, SMALL.latent_slots),
    ):
        cache.reserve(slots)
    held = (model.byte_cache, model.patch_cache, model.latent_cache)
    assert caches == sum(b.nbytes for cache in held for b in cache.buffers)
    found = Gpu("NVIDIA T", "8.0", "13.0", 10**9, weights + caches)
    monkeypatch.setattr(building, "describe_gpu", lambda: found)
    building.require_memory(bundle, SMALL)
    monkeypatch.setattr(building, "describe_gpu", lambda: found._replace(free_bytes=weights + caches - 1))
    with pytest.raises(ModelError, match=r"need at least 0\.00 GB of GPU memory .* NVIDIA T has 0\.00 GB free; use"):
        next(build_bundle(bundle, SMALL))


def test_weights_are_read_where_they_lie(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    """A released model's are more than the two gigabytes that a message can hold."""
    bundle = tiny_bundle("lookup", block_size=16)
    path = bundle.graph_paths["global"]
    data = path.with_name(path.name + ".data")
    assert len(tensorrt_build._static(path, FEW)) < data.stat().st_size / 2
    (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="does not take this graph"):
        build_engine(find_library(), tmp_path / path.name, bundle.specs["global"], FEW)


def test_a_graph_tensorrt_does_not_know_is_refused_in_its_words(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    """past_key inputs of Attention are not supported there."""
    h = onnx.helper
    tensors = [h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2, 4, 8]) for n in ("q", "k", "v", "pk", "pv")]
    outputs = [h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("y", "nk", "nv")]
    node = h.make_node("Attention", ["q", "k", "v", "", "pk", "pv"], ["y", "nk", "nv"])
    graph = h.make_graph([node], "g", tensors, outputs)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 23)], ir_version=11), tmp_path / "bad.onnx")
    spec = tiny_bundle("lookup").specs["patcher"]
    with pytest.raises(ModelError, match=r"bad\.onnx: tensorrt_rtx does not take this graph: .*Attention"):
        build_engine(find_library(), tmp_path / "bad.onnx", spec, SMALL)


def test_profiles_hold_what_the_pipeline_may_ask_for(tiny_bundle: TinyBundle) -> None:
    config = tiny_bundle("lookup", block_size=16).config
    profile = make_profile(config, max_batch=4, max_bytes=None, draft_bytes=16)
    assert (profile.draft_rows, profile.patch_bytes, profile.max_batch) == (18, 8, 4)
    assert profile.patch_slots >= config.global_model.max_positions + profile.prefill_rows
    assert profile.sizes(18)["rows"] == (1, 18, 18)
    assert make_profile(config, max_batch=1, max_bytes=40, draft_bytes=3).slots < profile.slots
    for change, reason in (
        ({"max_bytes": 1}, "--max-bytes is 1"),
        ({"max_bytes": 10**6}, "context holds 2 to"),
        ({"draft_bytes": 0}, "--draft-bytes is 0"),
        ({"draft_bytes": 65}, "use 1 to 64"),
    ):
        with pytest.raises(UsageError, match=reason):
            make_profile(config, **{"max_batch": 1, "max_bytes": None, "draft_bytes": 4, **change})
    with pytest.raises(UsageError, match="slots is 0"):
        replace(FEW, slots=0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that are no engines: how they are kept has nothing to do with what is in them."""
    monkeypatch.setattr("bltcli.building.build_engine", lambda library, path, *_, **__: path.read_bytes()[:500])


def stored(bundle: Bundle) -> tuple[EngineStore, dict[str, bytes]]:
    """The store of a bundle for which small engines were built."""
    built = list(build_bundle(bundle, SMALL))
    assert [b.graph for b in built] == list(GRAPHS)
    store, library = EngineStore(bundle), find_library()
    return store, {graph: store.load(graph, engine_key(store, graph, library, SMALL)) for graph in GRAPHS}


@pytest.mark.usefixtures("cache", "quick")
def test_engines_are_kept_until_something_they_depend_on_changes(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup", block_size=16)
    _, engines = stored(bundle)
    assert all(engines.values())
    again = list(build_bundle(bundle, SMALL))
    assert all(built.reasons == [] for built in again)
    other = Profile(**{**SMALL.__dict__, "draft_rows": 6})
    changed = list(build_bundle(bundle, other))
    assert all(built.reasons == ["draft_rows was 10, is 6"] for built in changed)
    assert all(built.reasons == ["asked for"] for built in build_bundle(bundle, other, fresh=True))


@pytest.mark.usefixtures("cache", "quick")
def test_only_the_very_file_that_was_built_is_loaded(tiny_bundle: TinyBundle) -> None:
    store, _ = stored(tiny_bundle("lookup", block_size=16))
    key = engine_key(store, "encoder", find_library(), SMALL)
    engine, record = store.folder / "encoder.engine", store.folder / "encoder.json"
    good = engine.read_bytes()
    for spoilt in (good[:-1], good[:100], b"", good[:-1] + bytes([good[-1] ^ 1])):
        engine.write_bytes(spoilt)
        with pytest.raises(ModelError, match=r"for encoder: the file is not the one that was built; run bltcli build "):
            store.load("encoder", key)
    assert store.rebuild.endswith(" --max-batch 2 --max-bytes 128 --draft-bytes 9")
    engine.write_bytes(good)
    facts = json.loads(record.read_bytes())
    record.write_text(json.dumps({**facts, "gpu": "NVIDIA H200", "compute_capability": "9.0"}))
    with pytest.raises(ModelError, match=r"gpu was 'NVIDIA H200', is 'any'; compute_capability was '9\.0', is 'any'"):
        store.load("encoder", key)
    record.write_text(json.dumps({**facts, "settings": "TF32"}))
    with pytest.raises(ModelError, match=r"settings was 'TF32', is 'float32 without TF32'"):
        store.load("encoder", key)
    record.write_text("{")
    with pytest.raises(ModelError, match="its record is damaged"):
        store.load("encoder", key)
    record.unlink()
    with pytest.raises(ModelError, match="none was built"):
        store.load("encoder", key)


@pytest.mark.usefixtures("quick")
def test_an_engine_within_the_reach_of_others_is_refused(
    tiny_bundle: TinyBundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = stored(tiny_bundle("lookup", block_size=16))
    key = engine_key(store, "encoder", find_library(), SMALL)
    for path, mode in ((store.folder / "encoder.engine", 0o620), (store.folder, 0o777), (cache, 0o775)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(ModelError, match="can be changed by others"):
            store.load("encoder", key)
        path.chmod(before)
    target = store.folder / "elsewhere"
    (store.folder / "encoder.engine").rename(target)
    (store.folder / "encoder.engine").symlink_to(target)
    with pytest.raises(ModelError, match="can be changed by others"):
        store.load("encoder", key)
    (store.folder / "encoder.engine").unlink()
    target.rename(store.folder / "encoder.engine")
    assert store.load("encoder", key)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ModelError, match="belongs to another user"):
        store.load("encoder", key)


def test_two_builders_at_once_build_each_engine_once(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    bundle = tiny_bundle("lookup", block_size=16)
    program = f"""
from pathlib import Path
from typing import get_args
from bltcli.building import build_bundle
from bltcli.bundle import open_bundle
from tests.test_tensorrt_build import FEW
print(sum(bool(b.reasons) for b in build_bundle(open_bundle(Path({str(bundle.path)!r})), FEW)))"""
    import subprocess

    env = {**os.environ, "BLTCLI_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.getcwd()}
    both = [subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE) for _ in range(2)]
    counts = [int(process.communicate()[0]) for process in both]
    assert sorted(counts) == [0, 4]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt_half.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(tensorrt_build, "LIBRARIES", {"tensorrt_half": "tensorrt"})
    with pytest.raises(ModelError, match=r"\(tensorrt_half: libnvinfer\.so\.11: cannot open shared object file\)"):
        find_library()
    monkeypatch.setattr(tensorrt_build, "LIBRARIES", {"tensorrt_none": "tensorrt"})
    with pytest.raises(
        ModelError, match=r"no TensorRT is installed; add one with pip install 'bltcli\[tensorrt-rtx\]'"
    ):
        find_library()
    monkeypatch.setattr(gpu, "DRIVER", "nothing.so")
    with pytest.raises(ModelError, match=r"no NVIDIA driver: .*nothing\.so: cannot open shared object file"):
        describe_gpu()
    assert Library(None, "tensorrt_rtx", "1").ahead_of_time
    assert not Library(None, "tensorrt", "1").ahead_of_time


def with_quick_builds() -> list[str]:
    """The command that starts bltcli with engines that are no engines."""
    program = "import bltcli.building as b; from bltcli.cli import main; b.build_engine = lambda *_, **__: b'x'; main()"
    return [sys.executable, "-c", program]


def test_build_prints_what_it_built_and_what_it_kept(cache: Path) -> None:
    arguments = ("build", "-m", "bundle", "--max-bytes", "300", "-k", "4")
    first = bltcli(*arguments, env={"BLTCLI_CACHE_DIR": str(cache)})
    assert first.returncode == 0, first.stderr
    assert [line.split(b":")[0] for line in first.stdout.splitlines()] == [g.encode() for g in GRAPHS]
    assert first.stdout.count(b"(none was built)") == 4
    second = bltcli(*arguments, env={"BLTCLI_CACHE_DIR": str(cache)})
    assert second.stdout == b"".join(f"{graph}: kept\n".encode() for graph in GRAPHS)
    shorthand = bltcli("export", "checkpoint", "--no-check", "--engine", "tensorrt", "-o", str(cache / "b"),
                       env={"BLTCLI_CACHE_DIR": str(cache)}, program=with_quick_builds())  # fmt: skip
    assert shorthand.returncode == 0, shorthand.stderr
    assert shorthand.stdout.count(b": built, 1 B") == 4
    refused = here("build", "-m", "bundle", "--max-bytes", "1")
    assert refused.returncode == 2
    assert "--max-bytes is 1" in one_line(refused)

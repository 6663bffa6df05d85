"""Engines over device memory, on a device of host memory: the bytes of the plain engine, and nothing used too early,
too late or after it was freed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bltcli.building import make_profile
from bltcli.bundle import Bundle
from bltcli.decoding.denoise import Confidence, EntropyBounded, OneStep
from bltcli.errors import ModelError
from bltcli.graphs import GraphName, Precision
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import Chooser, Sampler
from bltcli_engines import device_engine
from bltcli_engines.device import DeviceBuffer
from bltcli_engines.device_engine import DeviceEngine
from bltcli_engines.onnxruntime_cuda import OrtCudaRuntime
from bltcli_engines.onnxruntime_engine import OrtBuffer, open_session
from bltcli_engines.protocol import Engine
from bltcli_engines.tensorrt_engine import TensorrtRuntime, open_tensorrt
from tests.conftest import TinyBundle
from tests.host_device import HostDevice, HostTensorrt, QueuedOrtEngine
from tests.test_pipeline import run, uneven
from tests.test_serving import requests, served
from tests.tiny import sample_text


def over_onnxruntime(bundle: Bundle, device: HostDevice, rows: int = 1, *, captured: bool = False) -> Pipeline:
    """Bound to addresses, as on a GPU; `captured`: whole runs are captured, as CUDA graphs are."""
    engines: dict[GraphName, Engine] = {}
    for name, spec in bundle.device_specs.items():
        session = open_session(bundle.device_paths[name], spec, ["CPUExecutionProvider"], threads=1)
        engine = engines[name] = QueuedOrtEngine(device, spec, session, bundle.weight_bytes[name], place="cpu")
        engine.capturable = captured
    return Pipeline(bundle.config, OrtCudaRuntime(device), engines, bundle.tables(), rows=rows)


def over_tensorrt(bundle: Bundle, device: HostDevice, rows: int = 1, **changes: Any) -> Pipeline:
    profile = make_profile(bundle.config, **{"max_batch": 4, "max_bytes": None, "draft_bytes": 16, **changes})
    library = HostTensorrt(device, bundle.device_specs, profile).library
    engines = {graph: str(path).encode() for graph, path in bundle.device_paths.items()}
    runtime, opened = open_tensorrt(
        library, device, engines, bundle.device_specs, bundle.weight_bytes, profile, rebuild="bltcli build X"
    )
    runtime.require_rows(rows)
    return Pipeline(bundle.config, runtime, opened, bundle.tables(), rows=rows)


OPENED: list[Callable[..., Pipeline]] = [over_onnxruntime, over_tensorrt]


@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize(("form", "precision"), [("lookup", "fp32"), ("encoder", "fp32"), ("lookup", "fp16")])
def test_logits_are_those_of_the_plain_engine_to_the_last_bit(
    tiny_bundle: TinyBundle, opened: Callable[..., Pipeline], form: str, precision: Precision
) -> None:
    """Over a text longer than the buffers, which slide."""
    bundle, ids, device = tiny_bundle(form, precision), sample_text(1200), HostDevice()
    expected = run(open_model(bundle), ids, uneven(1200, 1))
    model = opened(bundle, device)
    assert np.array_equal(run(model, ids, uneven(1200, 1)), expected)
    assert model.byte_cache.bases[0] == 1024
    assert np.array_equal(run(opened(bundle, device, 3), ids, uneven(1200, 2), row=1), expected)
    assert device.launches > device.captures > 0 or opened is over_onnxruntime


@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize(
    "options",
    [{"method": "ar"}, {"method": "blt-s", "draft_bytes": 5, "ngram_draft": True}, {"method": "blt-dv", "block": 8},
     {"method": "blt-d", "block": 4}, {"method": "blt-d", "block": 4, "commit": "sure", "alpha": 0.02}],
    ids=lambda options: options["method"],
)  # fmt: skip
def test_served_texts_are_those_of_the_plain_engine(
    tiny_bundle: TinyBundle, opened: Callable[..., Pipeline], options: dict[str, Any]
) -> None:
    """Rows join from a nursery of their own, whose state is copied on the device."""
    bundle, what = tiny_bundle("lookup", block_size=16), requests(5)
    expected, _ = served(open_model(bundle, rows=3), options, what)
    assert served(opened(bundle, HostDevice(), 3), options, what)[0] == expected


def test_captured_runs_give_the_same_bytes_and_are_replayed_with_new_inputs(tiny_bundle: TinyBundle) -> None:
    bundle, ids, device = tiny_bundle("lookup"), sample_text(400), HostDevice()
    found = run(over_onnxruntime(bundle, device, captured=True), ids, [2] * 200)
    assert np.array_equal(found, run(open_model(bundle), ids, [2] * 200))
    assert device.launches > 10 * device.captures


@pytest.mark.parametrize("opened", OPENED)
def test_a_run_waits_once_if_it_hands_something_over_and_else_not(
    tiny_bundle: TinyBundle, opened: Callable[..., Pipeline]
) -> None:
    device = HostDevice()
    model = opened(tiny_bundle("lookup"), device)
    model.extend([sample_text(20)])
    model.extend([sample_text(21)[20:]])
    waits = {}
    for name, counted in model.engines.items():
        seen, before = counted.engine.run, device.synchronised

        def watch(feeds: Any, seen: Any = seen, name: str = name) -> Any:
            before = device.synchronised
            results = seen(feeds)
            waits.setdefault(name, []).append(device.synchronised - before)
            return results

        counted.engine.run = watch  # type: ignore[method-assign]  # to watch it
        assert before == device.synchronised
    for n in range(21, 60):
        model.extend([sample_text(60)[n : n + 1]])
    assert set(waits["patcher"]) == set(waits["decoder"]) == {1}
    assert set(waits["encoder"]) == set(waits["global"]) == {0}


@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.8, "seed": 3, "ignore_eos": True}, {"temperature": 1.2, "top_p": 0.6, "seed": 4}],
    ids=["greedy", "sampled", "cut"],
)
def test_what_graphs_choose_is_what_the_host_would(
    tiny_bundle: TinyBundle, opened: Callable[..., Pipeline], sampling: dict[str, Any]
) -> None:
    """Drafts of uneven lengths, and blocks under every rule, beside the plain engine with the same sampler. Where the
    sampler cuts ids off, a graph may draft one of them."""
    bundle, texts = tiny_bundle("lookup", block_size=16), [sample_text(60), sample_text(41), sample_text(7)]
    chooser = Chooser(Sampler(**sampling), np.array([5, 0, 2]))
    found = []
    for model in (open_model(bundle, rows=3), opened(bundle, HostDevice(), 3)):
        model.extend([text[:-1] for text in texts])
        pending, counts = np.array([text[-1] for text in texts]), np.array([7, 0, 3])
        drafts = [model.draft(pending, counts, chooser)] if "top_p" not in sampling else []
        rules = (OneStep(), Confidence(0.02), EntropyBounded(9.0))
        blocks = [model.denoise([text[-1:] for text in texts], counts + 1, rule, chooser)[0] for rule in rules]
        found.append([row.tolist() for rows in (*drafts, *blocks) for row in rows])
    assert found[0] == found[1]


def test_a_draft_is_one_submission_and_one_wait(tiny_bundle: TinyBundle) -> None:
    """Captured as one graph from its second time on; its passes are counted all the same."""
    device, chooser = HostDevice(), Chooser(Sampler(), np.zeros(1, dtype=np.int64))
    model = over_tensorrt(tiny_bundle("lookup"), device)
    ids = sample_text(40)
    model.extend([ids[:30]])
    for n, launches in ((30, 0), (31, 1), (32, 1)):
        waited, launched, passes = device.synchronised, device.launches, model.ledger.work.passes()["decoder"]
        assert len(model.draft(ids[n : n + 1], np.array([8]), chooser)[0]) == 8
        assert (device.synchronised - waited, device.launches - launched) == (1, launches)
        assert model.ledger.work.passes()["decoder"] - passes == 8
        model.extend([ids[n : n + 1]])


def test_inputs_are_not_overwritten_while_the_device_may_still_read_them(tiny_bundle: TinyBundle) -> None:
    """Two runs in a row that hand nothing over: the second has to wait for the first."""
    bundle, device = tiny_bundle("lookup"), HostDevice()
    plain, ours = open_model(bundle), over_tensorrt(bundle, device)
    states = []
    for model in (plain, ours):
        model.make_room(40)
        rng, encoder = np.random.default_rng(0), model.engines["encoder"]
        for start in (0, 18):
            place = model.place(np.arange(start, start + 18)[None], None)
            embeds = rng.standard_normal((1, 18, bundle.config.hidden_size)).astype(np.float32)
            encoder.run({"embeds": embeds, **place}, np.array([18]))
        states.append(encoder.buffers["past_states"].numpy()[:, :, :36])
    assert np.array_equal(states[0], states[1])
    assert np.abs(states[1][:, :, 18:]).max() > 0


@pytest.mark.parametrize("opened", OPENED)
def test_all_memory_comes_back(
    tiny_bundle: TinyBundle, opened: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_engine, "MAX_CALLS", 3)
    device, ids = HostDevice(), sample_text(900)
    more: dict[str, Any] = {"captured": True} if opened is over_onnxruntime else {}
    model = opened(tiny_bundle("lookup"), device, 1, **more)
    run(model, ids, uneven(900, 2))
    for counted in model.engines.values():
        assert isinstance(counted.engine, DeviceEngine)
        assert len(counted.engine._calls) <= 3
    model.nursery.extend([ids[:9]])
    assert device.memory
    device.synchronise()  # as whoever reads a result does
    del model, counted
    gc.collect()
    assert (device.memory, device.host, device.alive) == ({}, {}, set())


def test_device_buffers_do_what_buffers_in_host_memory_do() -> None:
    rng, device = np.random.default_rng(0), HostDevice()
    for dtype in ("float32", "float16"):
        shape = (2, 3, 0, 4)
        plain, ours = OrtBuffer(shape, dtype), DeviceBuffer(device, shape, dtype)
        sources = OrtBuffer((2, 3, 9, 4), dtype), DeviceBuffer(device, (2, 3, 9, 4), dtype)
        sources[0].array[:] = rng.standard_normal((2, 3, 9, 4))
        device.synchronise()
        device.memory[sources[1].address][:] = sources[0].array.reshape(-1).view(np.uint8)
        for buffer, source in zip((plain, ours), sources, strict=True):
            buffer.resize(13)
            buffer.adopt(1, source, 1, 9)
            buffer.shift(1, 2)
            buffer.resize(6)
            buffer.shift(1, 4)
            buffer.resize(20)
            buffer.adopt(0, source, 0, 4)
        assert ours.generation == plain.generation == 4
        assert (ours.capacity, ours.nbytes) == (plain.capacity, plain.nbytes)
        assert np.abs(plain.array[1]).max() > 0
        assert np.array_equal(ours.numpy(), plain.array)


def test_what_a_profile_does_not_hold_is_refused_with_the_option_that_makes_it_longer(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup")
    with pytest.raises(ModelError, match=r"5 texts at a time are more than the 4 .* bltcli build X --max-batch 5"):
        over_tensorrt(bundle, HostDevice(), 5)
    model = over_tensorrt(bundle, HostDevice(), 1, max_bytes=100)
    with pytest.raises(ModelError, match=r"512 cache slots are needed, the engines hold 384: .* --max-bytes"):
        run(model, sample_text(500), [100] * 5)
    unbounded = tiny_bundle("encoder", threshold_nats=5.1, bytes_per_patch=100)
    short = over_tensorrt(unbounded, HostDevice())
    with pytest.raises(ModelError, match=r"global: patch_bytes is \d+, its TensorRT engine takes 256 \(no option\)"):
        run(short, sample_text(3000), [100] * 30)


def test_an_engine_that_cannot_run_here_is_refused(tiny_bundle: TinyBundle) -> None:
    """By TensorRT-RTX itself, which finds no GPU; and by one that gives no engine, no context, or fails to run."""
    from bltcli_engines.tensorrt_build import find_library

    bundle, device = tiny_bundle("lookup"), HostDevice()
    profile = make_profile(bundle.config, max_batch=1, max_bytes=None, draft_bytes=16)
    engines = {graph: str(path).encode() for graph, path in bundle.device_paths.items()}

    def opened(library: Any) -> tuple[TensorrtRuntime, dict[GraphName, Engine]]:
        return open_tensorrt(
            library, device, engines, bundle.device_specs, bundle.weight_bytes, profile, rebuild="bltcli build X"
        )

    with pytest.raises(
        ModelError, match=r"patcher does not run on this GPU \(MALFORMED_ENGINE\); run bltcli build X --"
    ):
        opened(find_library())
    host = HostTensorrt(device, bundle.device_specs, profile)
    host.library.module.Runtime.deserialize_cuda_engine = lambda *_: None
    with pytest.raises(ModelError, match="patcher cannot be loaded: no reason given"):
        opened(host.library)
    host = HostTensorrt(device, bundle.device_specs, profile)
    runtime, found = opened(host.library)
    model = Pipeline(bundle.config, runtime, found, bundle.tables())
    model.extend([sample_text(20)])
    for context in host.contexts:
        context.execute_async_v3 = lambda stream: False  # type: ignore[method-assign]  # to break it
    model.rewind(np.array([0]))
    with pytest.raises(ModelError, match="TensorRT failed to run"):
        model.extend([sample_text(20)])

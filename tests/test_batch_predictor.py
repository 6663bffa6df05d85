"""The predictor: the bytes of one text alone, whatever happens to the batch."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bltcli.batch import memory, predictor
from bltcli.batch.memory import bytes_per_row, rows_that_fit
from bltcli.batch.ordering import Result
from bltcli.batch.predictor import Predictor, out_of_memory
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import Request, generate_texts
from bltcli.decoding.stop import Stop
from bltcli.errors import ModelError, UsageError
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli.vocab import IdArray
from tests.conftest import TinyBundle
from tests.test_serving import requests
from tests.toy import ToyModel, random_law

SAMPLER = Sampler(temperature=1.0, seed=3)
LAW, GUESS = random_law(3), random_law(3) + random_law(4, 0.5)
REQUESTS = requests(25)


class FailingModel(ToyModel):
    """Out of memory whenever more than `bound` texts are decoded together; breaks at texts with `poison` in them."""

    opened: list[int]
    bound = 100
    poison = b"\xff\xff\xff"

    def extend(self, ids: Sequence[IdArray]) -> Any:
        if sum(bool(text) for text in self.texts) > self.bound:
            raise MemoryError
        found = super().extend(ids)
        if any(self.poison in bytes(max(0, i - 4) for i in text) for text in self.texts):
            raise RuntimeError("the engine\nbroke")
        return found


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Predictors open toy models; how many rows each had."""
    opened: list[int] = []
    models: list[weakref.ref[ToyModel]] = []

    def open_toy(bundle: object, *, rows: int, **_: Any) -> list[ToyModel]:
        assert not any(model() for model in models), "a model is opened while another one takes up memory"
        opened.append(rows)
        model = FailingModel(LAW, GUESS, rows=rows)
        models.append(weakref.ref(model))
        return [model]

    monkeypatch.setattr(predictor, "open_lanes", open_toy)
    monkeypatch.setattr(Predictor, "bundle", None)
    monkeypatch.setattr(predictor, "rows_that_fit", lambda bundle, rows, longest: rows)
    monkeypatch.setattr(FailingModel, "bound", 100)
    return opened


def alone(what: list[Request]) -> dict[int, bytes]:
    found = {}
    for request in what:
        model = ToyModel(LAW, GUESS)
        texts, _ = generate_texts(
            model, MethodOptions().make(model), [request.prompt], sampler=SAMPLER, stop=request.stop,
            records=[request.record],
        )  # fmt: skip
        found[request.record] = texts[0]
    return found


def ran(p: Predictor, what: list[Request]) -> dict[int, Result]:
    found = list(p.results(what, DecodeStats()))
    assert sorted(result.record for result in found) == sorted(request.record for request in what)
    return {result.record: result for result in found}


@pytest.mark.parametrize("bound", [100, 5, 3, 1])
def test_out_of_memory_halves_the_batch_and_changes_no_byte(
    toys: list[int], monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setattr(FailingModel, "bound", bound)
    told: list[str] = []
    p = Predictor(rows=8, sampler=SAMPLER, notice=told.append)
    found = ran(p, REQUESTS)
    assert {record: result.output for record, result in found.items()} == alone(REQUESTS)
    assert toys == {100: [8], 5: [8, 4], 3: [8, 4, 2], 1: [8, 4, 2, 1]}[bound]
    assert told == [f"out of memory; going on with {rows} texts at a time" for rows in toys[1:]]


def test_a_text_too_large_for_memory_fails_alone(toys: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FailingModel, "bound", 0)
    found = ran(Predictor(rows=2, notice=lambda _: None), REQUESTS[:3])
    assert [result.error for result in found.values()] == ["MemoryError"] * 3


def test_a_text_that_breaks_the_engine_fails_alone(toys: list[int]) -> None:
    poison = [Request(n, b"abc" + FailingModel.poison, Stop(max_bytes=5)) for n in (1, 2)]
    what = [*REQUESTS[:9], poison[0], *REQUESTS[9:14], poison[1], *REQUESTS[14:]]
    found = ran(Predictor(rows=4, sampler=SAMPLER), what)
    assert [found[n].error for n in (1, 2)] == ["RuntimeError: the engine broke"] * 2
    assert {n: found[n].output for n in found if n > 2} == alone(REQUESTS)


def test_a_failure_without_a_text_is_no_texts_fault(toys: list[int]) -> None:
    def broken() -> Any:
        yield REQUESTS[0]
        raise RuntimeError("the source broke")

    p = Predictor(rows=2)
    with pytest.raises(RuntimeError, match="the source broke"):
        list(p.results(broken(), DecodeStats()))


def test_a_model_that_does_not_open_is_no_texts_fault(toys: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the engine does not start")

    monkeypatch.setattr(predictor, "open_lanes", broken)
    with pytest.raises(RuntimeError, match="does not start"):
        list(Predictor(rows=2).results(REQUESTS, DecodeStats()))


def test_prompts_that_do_not_fit_fail_alone(toys: list[int]) -> None:
    what = [*REQUESTS[:3], Request(1, b"x" * 5000, Stop(max_bytes=5)), *REQUESTS[3:6]]
    found = ran(Predictor(rows=2, sampler=SAMPLER), what)
    assert "the prompt has 5000 bytes" in (found[1].error or "")
    assert [r.record for r in found.values() if r.error] == [1]


def test_a_batch_of_columns(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup", block_size=16)
    p = Predictor(model=str(bundle.path), sampler=SAMPLER, stop=Stop(max_bytes=20), rows=3)
    batch = {
        "id": ["a", "b", "c", "d"],
        "prompt": [b"one\xff", "zwei", b"", b"x" * 5000],
        "number": np.array([7, 5, 6, 9]),
        "max_bytes": np.array([20, 4, 20, 9]),
        "stop": [[], [], ["e", b"a"], []],
    }
    found = p(batch)
    assert set(found) == {"id", "number", "output", "end", "error"}
    assert (found["id"], found["number"]) == (["a", "b", "c", "d"], [7, 5, 6, 9])
    assert "5000 bytes" in found["error"][3]
    assert len(found["output"][1]) == 4
    model = open_model(bundle)
    for at, strings in ((0, ()), (2, (b"e", b"a"))):
        prompt = b"one\xff" if at == 0 else b""
        texts, _ = generate_texts(
            model, MethodOptions().make(model), [prompt], sampler=SAMPLER, stop=Stop(max_bytes=20, strings=strings),
            records=[batch["number"][at]],
        )  # fmt: skip
        assert found["output"][at] == texts[0]


def test_a_record_without_a_number_is_keyed_by_its_prompt(tiny_bundle: TinyBundle) -> None:
    p = Predictor(model=str(tiny_bundle("lookup").path), sampler=SAMPLER, stop=Stop(max_bytes=20), rows=3)
    one, two = p({"prompt": ["one", "two", "one"]}), p({"prompt": ["two", b"one"]})
    assert one["output"] == [*two["output"][::-1], two["output"][1]]
    numbered = p({"prompt": ["one", "one", "one"], "number": [1, 2, 1], "name": ["a", "b", "c"]})
    assert numbered["output"][0] == numbered["output"][2] != numbered["output"][1]
    assert (numbered["number"], numbered["name"]) == ([1, 2, 1], ["a", "b", "c"])


def test_a_record_that_is_none_fails_alone(tiny_bundle: TinyBundle) -> None:
    p = Predictor(model=str(tiny_bundle("lookup").path), stop=Stop(max_bytes=5))
    limits: list[float] = [3, 3, 3, 0, float("nan")]
    found = p({"prompt": ["a", None, 5, "a", "a"], "max_bytes": limits})
    assert [len(output) for output in found["output"]] == [3, 0, 0, 0, 0]
    assert found["error"] == [
        "", "None is neither text nor bytes", "5 is neither text nor bytes", "--max-bytes is 0; use at least 1",
        "ValueError: cannot convert float NaN to integer",
    ]  # fmt: skip
    assert p({"prompt": []}) == {"output": [], "end": [], "error": []}


@pytest.mark.parametrize("method", ["ar", "blt-s", "blt-d", "blt-dv", "blt-h", "auto"])
def test_the_size_of_the_batch_changes_no_byte_of_any_method(tiny_bundle: TinyBundle, method: str) -> None:
    prompts = [request.prompt for request in REQUESTS[:5]]

    def outputs(rows: int, asked: list[bytes]) -> list[bytes]:
        p = Predictor(
            model=str(tiny_bundle("lookup", block_size=16).path), rows=rows, sampler=SAMPLER, stop=Stop(max_bytes=12),
            method=MethodOptions(method=method),
        )  # fmt: skip
        return p({"prompt": asked})["output"]

    assert outputs(1, prompts) == outputs(3, prompts[::-1])[::-1] == outputs(5, prompts)


def test_a_predictor_travels_without_its_model(tiny_bundle: TinyBundle) -> None:
    p = Predictor(model=str(tiny_bundle("lookup").path), stop=Stop(max_bytes=6), notice=print)
    found = p({"prompt": ["abc"]})
    sent = pickle.dumps(p)
    assert len(sent) < 2000
    assert pickle.loads(sent)({"prompt": ["abc"]}) == found


def test_what_cannot_be_used_at_all_is_refused_at_once(tiny_bundle: TinyBundle) -> None:
    p = Predictor(model=str(tiny_bundle("lookup").path), method=MethodOptions(method="blt-d"))
    with pytest.raises(ModelError, match="trained on next bytes only"):
        list(p.results(REQUESTS, DecodeStats()))
    with pytest.raises(UsageError, match="--batch-size is 0"):
        Predictor(rows=0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer of size 1"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_lack_of_memory_is_known_by_what_runtimes_say(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) == expected


@pytest.mark.parametrize("form", ["lookup", "encoder"])
@pytest.mark.parametrize("longest", [100, 700, 2000])
def test_the_estimate_covers_the_caches_and_is_not_far_above(tiny_bundle: TinyBundle, form: str, longest: int) -> None:
    bundle, rows = tiny_bundle(form), 3
    model = open_model(bundle, rows=rows)
    rng = np.random.default_rng(0)
    prompts = [bytes(rng.integers(32, 96, longest - 40).astype(np.uint8)) for _ in range(rows)]
    largest = 0
    for chunks in range(0, longest - 40, 100):  # caches of local models shrink as their window moves on
        pieces = [np.frombuffer(p[chunks : chunks + 100], dtype=np.uint8).astype(np.int64) + 4 for p in prompts]
        model.extend(pieces)
        largest = max(largest, held(model))
    estimate = rows * bytes_per_row(bundle, longest)
    assert largest < estimate < 20 * largest


def held(model: Pipeline) -> int:
    buffers = {id(b): b for engine in model.engines.values() for b in engine.buffers.values()}
    return sum(buffer.nbytes for buffer in buffers.values())


def test_rows_are_as_many_as_memory_holds(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup")
    row, weights = bytes_per_row(bundle, 1000), sum(bundle.weight_bytes.values())
    for rows in (1, 3, 8):
        assert rows_that_fit(bundle, 8, 1000, int((weights + (rows + 0.5) * row) / memory.SHARE)) == rows
    assert rows_that_fit(bundle, 8, 1000, 0) == 1
    assert rows_that_fit(bundle, 8, 1000, 10**15) == 8
    available = memory.available_bytes()
    assert available is None or 2**20 < available < 2**50


def test_fewer_rows_are_opened_where_memory_is_short(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, told = tiny_bundle("lookup"), list[str]()
    enough = int((sum(bundle.weight_bytes.values()) + 2.5 * bytes_per_row(bundle, 100)) / memory.SHARE)
    monkeypatch.setattr(memory, "available_bytes", lambda: enough)
    p = Predictor(model=str(bundle.path), rows=16, notice=told.append)
    assert sum(model.rows for model in p.open(100)) == 2
    assert told == ["memory holds 2 texts of 100 bytes at a time, not 16"]


def test_arrays_of_past_shapes_take_bounded_memory(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from bltcli_engines import onnxruntime_engine
    from bltcli_engines.onnxruntime_engine import OrtEngine

    def run_shapes() -> list[int]:
        model = open_model(tiny_bundle("lookup"), rows=3)
        for size in (99, *range(50, 99)):  # all at one capacity
            model.clear(0)
            model.extend([np.full(size, 70), *[np.empty(0, dtype=np.int64)] * 2])
        engines = [counted.engine for counted in model.engines.values()]
        assert all(isinstance(engine, OrtEngine) for engine in engines)
        return [sum(b.nbytes for b in engine._bindings.values()) for engine in engines if isinstance(engine, OrtEngine)]

    assert max(run_shapes()) > 3_000_000
    monkeypatch.setattr(onnxruntime_engine, "MAX_BINDING_BYTES", 1_000_000)
    assert max(run_shapes()) <= 1_000_000
    monkeypatch.setattr(onnxruntime_engine, "MAX_BINDING_BYTES", 0)
    assert min(run_shapes()) > 0  # the newest is kept


def test_a_limit_set_for_the_process_is_known() -> None:
    pytest.importorskip("resource")
    program = (
        "import resource; from bltcli.memory import available_bytes as a\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32)); most = a()\n"
        "held = bytearray(2**28); print(most, most - a())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    most, less = map(int, done.stdout.split())
    assert 2**30 < most < 2**32
    assert 2**28 <= less < 2**28 + 2**24


def documented(begins: str) -> str:
    """The first block of Python in docs/batch.md that begins so."""
    text = (Path(__file__).parent.parent / "docs" / "batch.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if block.startswith(begins))


def test_the_documented_function_for_spark_gives_columns_of_text(tiny_bundle: TinyBundle) -> None:
    model = str(tiny_bundle("lookup").path)
    scope: dict[str, Any] = {"Predictor": Predictor, "Stop": Stop, "numpy": np}
    exec(documented("def make_predict").replace("/models/mine", model), scope)
    found = scope["make_predict"]()(np.array(["one", None], dtype=object))
    assert list(found) == ["output", "end", "error"]  # as Spark wants them: arrays of one dimension, nothing else
    assert all(column.shape == (2,) and all(isinstance(text, str) for text in column) for column in found.values())
    assert found["error"].tolist() == ["", "None is neither text nor bytes"]


def test_the_documented_line_for_dask_gives_its_columns(tiny_bundle: TinyBundle) -> None:
    pandas = pytest.importorskip("pandas")

    class Frame:
        def map_partitions(self, function: Any, meta: dict[str, Any]) -> None:
            part = pandas.DataFrame({"id": [5, 6], "prompt": ["one", "two"]}, index=[7, 9])
            found = function(part)
            assert (list(found), found["id"].tolist()) == (list(meta), [5, 6])
            assert all(isinstance(output, bytes) for output in found["output"])

    code = documented("predictor = Predictor(").replace("/models/mine", str(tiny_bundle("lookup").path))
    exec(code, {"Predictor": Predictor, "Stop": Stop, "pandas": pandas, "frame": Frame()})

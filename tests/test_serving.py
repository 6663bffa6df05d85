"""More texts than rows: each takes a row as one falls free, and comes out as if it were alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bltcli import lanes
from bltcli.decoding import MethodOptions
from bltcli.decoding.draft_length import AdaptiveLength
from bltcli.decoding.driver import Request
from bltcli.decoding.lanes import serve_lanes
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.lanes import open_lanes
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli.vocab import encode
from tests.conftest import TinyBundle
from tests.test_methods import EVERY, names
from tests.tiny import sample_text
from tests.toy import ToyModel, random_law

SAMPLER = Sampler(temperature=1.0, seed=3)


@pytest.fixture(autouse=True)
def every_round_takes_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rounds `k=auto` takes hangs on a clock: here on one that a busy machine does not disturb."""
    monkeypatch.setattr(AdaptiveLength.__init__, "__defaults__", (itertools.count().__next__,))


def requests(count: int) -> list[Request]:
    """Texts of many lengths, with ends of many lengths."""
    rng = np.random.default_rng(0)
    return [
        Request(100 + n, bytes(rng.integers(97, 123, int(rng.integers(0, 40))).astype(np.uint8)),
                Stop(max_bytes=int(rng.integers(1, 60))))
        for n in range(count)
    ]  # fmt: skip


def served(
    model: Any, options: dict[str, Any], what: list[Request], **more: Any
) -> tuple[dict[int, bytes], DecodeStats]:
    stats = DecodeStats()
    texts = {request.record: b"" for request in what}
    ended = []
    models = model if isinstance(model, list) else [model]
    pairs = [(model, MethodOptions(**options).make(model)) for model in models]
    for chunk in serve_lanes(pairs, what, sampler=SAMPLER, stats=stats, **more):
        texts[chunk.record] += chunk.data
        if chunk.finish_reason is not None:
            ended.append(chunk.record)
    assert sorted(ended) == sorted(set(ended))
    return texts, stats


@pytest.mark.parametrize("options", EVERY, ids=names)
def test_texts_of_a_known_law_do_not_depend_on_the_number_of_rows(options: dict[str, Any]) -> None:
    law, guess, what = random_law(3), random_law(3) + random_law(4, 0.5), requests(15)
    expected, alone = served(ToyModel(law, guess), options, what)
    assert [len(text) for text in expected.values()] != [r.stop.max_bytes for r in what]  # some ended by themselves
    for rows in (2, 4, 20):
        found, stats = served(ToyModel(law, guess, rows=rows), options, what)
        assert found == expected
        assert (stats.new_bytes, stats.prompt_bytes) == (alone.new_bytes, alone.prompt_bytes)
        assert stats.rounds < alone.rounds


@pytest.mark.parametrize(
    "options",
    [{"method": "ar"}, {"method": "blt-s", "ngram_draft": True}, {"method": "blt-dv", "block": 8},
     {"method": "blt-d", "block": 4}, {"method": "blt-h", "block": 8, "trust": 0.031}, {"method": "auto"}],
    ids=names,
)  # fmt: skip
def test_texts_over_real_graphs_do_not_depend_on_the_number_of_rows(
    tiny_bundle: TinyBundle, options: dict[str, Any]
) -> None:
    bundle, what = tiny_bundle("lookup", block_size=16), requests(12)
    expected, _ = served(open_model(bundle), options, what)
    for rows in (2, 5):
        assert served(open_model(bundle, rows=rows), options, what)[0] == expected
    assert served(open_model(bundle, rows=3), options, what[::-1])[0] == expected


@pytest.mark.parametrize("options", EVERY, ids=names)
@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (2, 2, 5)])
def test_batches_side_by_side_write_what_one_text_alone_does(options: dict[str, Any], sizes: tuple[int, ...]) -> None:
    law, guess, what = random_law(3), random_law(3) + random_law(4, 0.5), requests(25)
    expected, alone = served(ToyModel(law, guess), options, what)
    models = [ToyModel(law, guess, rows=rows) for rows in sizes]
    found, stats = served(models, options, what)
    assert found == expected
    assert (stats.new_bytes, stats.prompt_bytes) == (alone.new_bytes, alone.prompt_bytes)
    assert 0 < stats.ttfb_s < stats.wall_s
    assert all(any(map(len, model.texts)) for model in models)


def test_graphs_run_side_by_side_on_the_same_weights(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "cores", lambda: 3)
    bundle, what = tiny_bundle("lookup"), requests(30)
    options = {"method": "blt-s", "draft_bytes": 8}
    expected, alone = served(open_model(bundle), options, what)
    models = open_lanes(bundle, rows=8)
    assert [model.rows for model in models] == [3, 3, 2]
    sessions = [{name: counted.engine.session for name, counted in model.engines.items()} for model in models]
    assert sessions[0] == sessions[1] == sessions[2]
    found, stats = served(models, options, what)
    assert found == expected
    assert (stats.drafted, stats.accepted, stats.patches) == (alone.drafted, alone.accepted, alone.patches)
    assert {len(open_lanes(bundle, rows=rows, threads=threads)) for rows, threads in ((1, 0), (3, 0), (8, 1))} == {1}
    assert [model.rows for model in open_lanes(bundle, rows=5)] == [3, 2]
    assert len(open_lanes(bundle, rows=64, threads=9)) == lanes.MOST
    assert [model.rows for model in open_lanes(bundle, rows=4, engine="torch")] == [4]
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "SMALL_GRAPH_BYTES", 1)
        assert [model.rows for model in open_lanes(bundle, rows=4)] == [4]
    monkeypatch.setattr(Pipeline, "engine_name", property(lambda self: "tensorrt", lambda self, name: None), False)
    assert [model.rows for model in open_lanes(bundle, rows=4)] == [4]  # `auto` found a GPU


def test_a_failing_lane_ends_the_others_and_says_why() -> None:
    class Broken(ToyModel):
        def extend(self, ids: Any) -> Any:
            raise RuntimeError("the engine broke")

    law = random_law(1)
    with pytest.raises(RuntimeError, match="the engine broke"):
        served([ToyModel(law, law, rows=2), Broken(law, law, rows=2)], {"method": "ar"}, requests(9))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


@pytest.mark.parametrize("sizes", [(2,), (1, 1)])
def test_requests_are_drawn_only_when_a_row_is_free(sizes: tuple[int, ...]) -> None:
    drawn = 0

    def endless() -> Iterator[Request]:
        nonlocal drawn
        while True:
            drawn += 1
            yield Request(drawn, b"a", Stop(max_bytes=3))

    law = random_law(1)
    pairs = [(model, MethodOptions(method="ar").make(model)) for model in (ToyModel(law, law, rows=n) for n in sizes)]
    chunks = serve_lanes(pairs, endless(), sampler=Sampler(ignore_eos=True), stats=DecodeStats())
    ended = 0
    while ended < 10:
        ended += next(chunks).finish_reason is not None
        assert drawn <= ended + 2
    chunks.close()  # type: ignore[attr-defined]  # a generator


def test_a_prompt_that_does_not_fit_is_handed_back_and_the_others_go_on() -> None:
    model = ToyModel(random_law(1), random_law(1), rows=2, context=30)
    what = [Request(n, b"x" * n, Stop(max_bytes=4)) for n in (1, 40, 2, 29, 3, 28)]
    refused: list[tuple[int, str]] = []
    texts, stats = served(model, {"method": "ar"}, what, refused=lambda r, e: refused.append((r.record, str(e))))
    assert [record for record, _ in refused] == [40, 29]
    assert "the prompt has 40 bytes, the model's context holds 28" in refused[0][1]
    assert all(texts[n] for n in (1, 2, 3, 28))
    assert stats.prompt_bytes == 1 + 2 + 3 + 28
    with pytest.raises(UsageError, match="the prompt has 40 bytes"):
        served(model, {"method": "ar"}, what)


def test_a_prompt_whose_patches_fill_the_context_is_handed_back(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup", block_size=16, max_patches=64)
    long = bytes((sample_text(600)[1:] - 4).tolist())
    what = [
        Request(0, b"abc", Stop(max_bytes=5)),
        Request(1, long, Stop(max_bytes=5)),
        Request(2, b"xyz", Stop(max_bytes=5)),
    ]
    refused: list[int] = []
    for rows in (1, 2, 3):
        refused.clear()
        model = open_model(bundle, rows=rows)
        texts, _ = served(model, {"method": "ar"}, what, refused=lambda r, e: refused.append(r.record))
        assert refused == [1]
        assert [len(text) for text in texts.values()] == [5, 0, 5]


def test_a_text_that_joins_is_a_copy_of_its_state_to_the_bit(tiny_bundle: TinyBundle) -> None:
    model = open_model(tiny_bundle("lookup", block_size=16), rows=3)
    ids, others = sample_text(200), [sample_text(50, 1), sample_text(90, 2)]
    model.extend([others[0], ids[:0], others[1]])
    nursery = model.nursery
    assert isinstance(nursery, Pipeline)
    nursery.extend([ids[:100]])
    expected = open_model(tiny_bundle("lookup", block_size=16))
    expected.extend([ids[:100]])
    model.adopt(1, nursery, 0)
    nursery.clear(0)
    nursery.extend([encode(b"something else")])  # the copy does not notice
    found = model.extend([sample_text(20, 3), ids[100:], sample_text(3, 4)])
    assert np.array_equal(found[1, :100], expected.extend([ids[100:]])[0, :100])
    assert model.patch_starts(1) == expected.patch_starts(0)


def test_room_taken_by_a_long_text_is_given_back(tiny_bundle: TinyBundle) -> None:
    model = open_model(tiny_bundle("lookup", max_bytes=4096))
    model.extend([sample_text(120)])
    model.clear(0)
    ids = sample_text(1500)
    for start in range(0, len(ids), 100):
        model.extend([ids[start : start + 100]])
    large = model.byte_cache.capacity
    model.clear(0)
    model.extend([ids[:60]])
    assert model.byte_cache.capacity < large / 3
    again = open_model(tiny_bundle("lookup", max_bytes=4096))
    again.extend([ids[:60]])
    assert np.array_equal(model.extend([ids[60:90]])[0, :30], again.extend([ids[60:90]])[0, :30])

"""benchmarks/replay.py: a recording of a model, replayed over other weights, costs the passes that the model took."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bltcli.decoding.driver import generate_texts
from bltcli.decoding.setting import parse_setting
from bltcli.decoding.stop import Stop
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from tests.conftest import TinyBundle

SETTINGS = ["ar", "blt-s k=4", "blt-s k=16", "blt-dv block=8 unmask=one-step", "blt-d block=4", "blt-d block=16"]


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import replay  # type: ignore[import-not-found]  # beside the other benchmarks

    yield replay
    del sys.modules["replay"], sys.modules["common"]


def ran(model: Pipeline, setting: str, prompt: bytes, new_bytes: int) -> tuple[bytes, DecodeStats]:
    method = parse_setting(setting)[0].make(model)
    sampler, stop = Sampler(ignore_eos=True), Stop(max_bytes=new_bytes)
    (text,), stats = generate_texts(model, method, [prompt], sampler=sampler, stop=stop)
    return text, stats


def test_replayed_methods_take_the_passes_of_the_model(replay: Any, tiny_bundle: TinyBundle) -> None:
    bundle, other, prompt = tiny_bundle("lookup", block_size=16), tiny_bundle("lookup", block_size=16, seed=5), b"once "
    text, _ = ran(open_model(bundle), "ar", prompt, 150)
    recording = replay.record_text(open_model(bundle), np.array([1, *(b + 4 for b in prompt)]),
                                   np.array([b + 4 for b in text]))  # fmt: skip
    assert len(set(recording.drafted)) > 2
    for setting in SETTINGS:
        verified = not setting.startswith("blt-d ")
        expected, real = ran(open_model(bundle), setting, prompt + text[:50], 80)
        found, stats = ran(replay.open_replayed(recording, other), setting, text[:50], 80)
        assert found == text[50:130]
        assert ran(open_model(other), "ar", text[:50], 80)[0] != found
        if verified:
            assert expected == found
            passes, really = stats.decode.passes(), real.decode.passes()
            # which patches refused bytes would have closed is not recorded
            for graph in ("global", "encoder"):  # which runs where a patch ends
                assert passes.pop(graph) == pytest.approx(really.pop(graph), rel=0.15)
            assert passes == really, setting
            assert (stats.drafted, stats.accepted, stats.patches) == (real.drafted, real.accepted, real.patches)
        else:  # what is not verified leaves the recorded text: only the size of its passes can be held to it
            assert stats.rounds == real.rounds
            assert 0.5 < stats.decode.passes()["decoder"] / real.decode.passes()["decoder"] < 2


def test_recordings_are_joined_and_repeat_themselves(replay: Any, tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup", block_size=16)
    whole = replay.record(bundle, [b"a", b"bc"], 20)
    assert len(whole.ids) == len(whole.closes) == len(whole.drafted) == len(whole.passes["8"]) == 40
    found, _ = ran(replay.open_replayed(whole, bundle), "blt-s k=8", bytes(i - 4 for i in whole.ids[:30]), 30)
    assert found == bytes(i - 4 for i in [*whole.ids[30:], *whole.ids[:20]])

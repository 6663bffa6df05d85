"""What `bltcli tune` tries, keeps and forgets, and what --method auto does with it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bltcli.bench.measure import Task, Turn
from bltcli.bench.profiles import Profile, find_profile, profile_path, read_profile, write_profile
from bltcli.bench.tune import FRESH, STAGES, Found, State, candidates, most_turns, search, search_key
from bltcli.commands.tune import pieces
from bltcli.decoding import MethodOptions
from bltcli.errors import BltError, UsageError
from bltcli.pipeline import open_model
from tests.cli_support import here, home, one_line
from tests.conftest import TinyBundle

AR = b"the bytes of ar"
KEY = search_key(Task((b"x",)), "bundle", "ort-cpu", None)


class Fake:
    """A setting that takes known time and writes known bytes."""

    def __init__(self, name: str, seconds: Callable[[], float], text: bytes = AR, promised: bool = True) -> None:
        self.name, self.seconds, self.text, self.promised, self.runs = name, seconds, text, promised, 0

    def run(self) -> Turn:
        self.runs += 1
        return Turn([self.text], self.seconds())


def noisy(rng: random.Random, scale: float) -> Callable[[], float]:
    return lambda: scale * rng.lognormvariate(0, 0.03)


def race(path: Path, *fakes: Fake, quality: float | None = None) -> Found:
    contenders: Any = fakes
    with State(path, KEY) as kept:
        return search(contenders, kept, quality)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state.jsonl"


def test_the_fastest_setting_wins_and_slow_ones_are_measured_least(state: Path) -> None:
    rng = random.Random(1)
    fakes = [Fake("ar", noisy(rng, 1.0)), *(Fake(f"s{i}", noisy(rng, 0.5 + i / 10)) for i in range(12))]
    found = race(state, *fakes)
    assert found.best.setting == "s0"
    assert found.speedup == pytest.approx(2, rel=0.1)
    counts = {m.setting: len(m.seconds_per_byte) for m in found.measured}
    assert (counts["s0"], counts["ar"], counts["s11"]) == (STAGES[-1][0], STAGES[-1][0], 1)
    assert sum(counts.values()) <= most_turns(13) <= sum(counts.values()) + 8  # ar may be among the best


def test_ar_stays_where_nothing_pays_and_goes_where_something_does(tmp_path: Path) -> None:
    rng = random.Random(2)

    def chosen(number: int, gain: float, folder: Path) -> str:
        fakes = [Fake("ar", noisy(rng, 1.0)), *(Fake(f"s{i}", noisy(rng, 1.0)) for i in range(8))]
        fakes.append(Fake("gain", noisy(rng, 1 / gain)))
        return race(folder / f"{gain}-{number}", *fakes).best.setting

    none = [chosen(n, 1.0, tmp_path) for n in range(100)]
    some = [chosen(n, 1.3, tmp_path) for n in range(100)]
    assert none.count("ar") >= 90  # three finalists at one percent each: 3 of 100 expected
    assert some.count("gain") >= 95


def test_only_what_is_near_enough_to_ar_may_win(state: Path, tmp_path: Path) -> None:
    def fakes() -> list[Fake]:
        near = AR[:-1] + b"?"  # 14 of 15 bytes
        return [Fake("ar", lambda: 1.0), Fake("blt-d", lambda: 0.1, near, promised=False)]

    assert race(state, *fakes()).best.setting == "ar"
    assert race(tmp_path / "b", *fakes(), quality=0.99).best.setting == "ar"
    found = race(tmp_path / "c", *fakes(), quality=0.9)
    assert (found.best.setting, found.best.equal_share) == ("blt-d", pytest.approx(14 / 15))


def test_a_broken_promise_ends_the_search(state: Path) -> None:
    with pytest.raises(BltError, match="blt-s does not write the bytes of ar"):
        race(state, Fake("ar", lambda: 1.0), Fake("blt-s", lambda: 0.5, b"other"))


def test_an_interrupted_search_goes_on_where_it_was(state: Path, tmp_path: Path) -> None:
    def fakes(fail_at: int | None = None) -> list[Fake]:
        left = iter(range(10**6))

        def seconds(scale: float) -> float:
            if next(left) == fail_at:
                raise KeyboardInterrupt
            return scale

        return [Fake(name, lambda s=s: seconds(s)) for name, s in (("ar", 1.0), ("a", 0.5), ("b", 0.7), ("c", 2.0))]  # type: ignore[misc]

    whole = race(tmp_path / "whole", *fakes())
    with pytest.raises(KeyboardInterrupt):
        race(state, *fakes(fail_at=17))
    before = state.read_bytes()
    state.write_bytes(before + b'{"setting": "a", "sec')  # cut off while it was written
    again = fakes()
    assert race(state, *again) == whole
    assert state.read_bytes().startswith(before)
    assert sorted(state.read_bytes().splitlines()) == sorted((tmp_path / "whole").read_bytes().splitlines())
    done = fakes()
    assert race(state, *done) == whole
    assert [fake.runs for fake in done] == [1, 0, 0, 0]  # what the others have to equal


def test_later_repeats_do_not_change_what_was_decided_before(state: Path) -> None:
    """A setting that was quick at first and slow afterwards is not measured again when the search is repeated."""
    rng = random.Random(3)
    fakes = [Fake("ar", noisy(rng, 1.0)), *(Fake(f"s{i}", noisy(rng, 1.0)) for i in range(12))]
    first = race(state, *fakes)
    size = state.stat().st_size
    assert race(state, *fakes) == first
    assert state.stat().st_size == size


def test_a_state_of_other_inputs_or_a_damaged_one_is_refused(state: Path) -> None:
    race(state, Fake("ar", lambda: 1.0))
    with pytest.raises(UsageError, match=r'quality "exact", this run has 0\.5'):
        State(state, search_key(Task((b"x",)), "bundle", "ort-cpu", 0.5)).__enter__()
    state.write_bytes(state.read_bytes() + b'{"setting": "ar"}\n')
    with pytest.raises(BltError, match=f"line {STAGES[-1][0] + 2} is damaged"):
        State(state, KEY).__enter__()


def test_the_decision_rests_on_repeats_that_chose_no_finalist(state: Path) -> None:
    """Lucky in the repeats that choose, slow afterwards: not chosen, though its median may be low."""
    lucky = iter([1.0] + [0.1] * FRESH + [1.1] * 20)
    found = race(state, Fake("ar", lambda: 1.0), Fake("lucky", lambda: next(lucky)))
    assert found.best.setting == "ar"


def test_without_a_bound_only_methods_that_verify_are_tried() -> None:
    assert all(s.options.verified for s in candidates(16, None))
    assert {s.options.method for s in candidates(16, None)} == {"ar", "blt-s", "blt-dv", "blt-h"}
    assert not all(s.options.verified for s in candidates(16, 0.9))
    assert {s.options.method for s in candidates(16, 0.9)} == {"ar", "blt-s", "blt-d", "blt-dv", "blt-h"}
    assert {s.options.method for s in candidates(0, 0.9)} == {"ar", "blt-s"}
    assert {s.options.block for s in candidates(6, None)} == {None, 2, 4, 6}
    assert {s.options.block for s in candidates(6, None) if s.options.method == "blt-h"} == {2, 4}
    assert len({s.name for s in candidates(16, 0.9)}) == len(candidates(16, 0.9))


def test_a_long_sample_is_cut_into_pieces_from_end_to_end() -> None:
    assert pieces(b"short") == (b"short",)
    text = bytes(range(256)) * 10
    found = pieces(text)
    assert [len(piece) for piece in found] == [256] * 4
    assert text.startswith(found[0])
    assert text.endswith(found[-1])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLTCLI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def profile(setting: str, bundle: str = "b") -> Profile:
    return Profile(setting=setting, quality="exact", bundle_sha256=bundle, engine="ort-cpu", machine="m", speedup=2.0,
                   equal_share=1.0, sample_sha256="s")  # fmt: skip


def test_auto_is_what_the_profile_of_this_bundle_and_engine_says(cache: Path, tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup")
    auto, untuned = MethodOptions(method="auto"), MethodOptions(method="blt-s", draft_bytes="auto", ngram_draft=True)
    write_profile(profile("blt-s k=2", bundle.sha256), profile_path(bundle.sha256, "ort-cpu"))
    assert auto.resolved(open_model(bundle)) == MethodOptions(method="blt-s", draft_bytes=2)
    assert auto.make(open_model(bundle)).name == "blt-s"
    assert auto.resolved(open_model(bundle, engine="torch")) == untuned
    assert auto.resolved(open_model(tiny_bundle("encoder"))) == untuned
    assert find_profile(bundle.sha256, "ort-cpu") is not None
    assert profile_path(bundle.sha256, "ort-cpu", "another machine") != profile_path(bundle.sha256, "ort-cpu")


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"format": "bltcli-profile", "version": 1}', profile("auto"), profile("magic")]
)
def test_a_damaged_profile_is_named_not_ignored(cache: Path, damage: str | Profile) -> None:
    path = profile_path("b", "ort-cpu")
    if isinstance(damage, str):
        path.parent.mkdir(parents=True)
        path.write_text(damage)
    else:
        write_profile(damage, path)
    with pytest.raises(BltError, match="delete it, or tune again"):
        read_profile(path)


def test_tune_writes_a_profile_that_generate_uses(tmp_path: Path) -> None:
    sample = tmp_path / "sample.txt"
    sample.write_bytes(b"Once upon a time")
    tune = ("tune", str(sample), "--model", "bundle", "-n", "16", "--ignore-eos")
    generate = ("generate", "--model", "bundle", "-p", "Once", "-n", "30", "--ignore-eos", "--stats-json", "stats.json")
    done = here(*tune, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    found = json.loads(done.stdout)
    try:
        assert len(found["measured"]) == len(candidates(0, None))
        assert {m["equal_share"] for m in found["measured"]} == {1.0}
        lines = Path(found["state"]).read_bytes()
        again = here(*tune)
        assert f"--method auto is {found['setting']}".encode() in again.stdout
        assert Path(found["state"]).read_bytes() == lines
        chosen = {name: found[name] for name in Profile.__dataclass_fields__} | {"setting": "blt-s k=3"}
        write_profile(Profile(**chosen), Path(found["profile"]))
        auto = here(*generate, "--method", "auto", "-v")
        assert b"auto: blt-s k=3" in auto.stderr
        facts = json.loads((home() / "stats.json").read_bytes())
        assert (facts["method"], facts["k"], facts["ngram_draft"]) == ("auto", 3, False)
        assert auto.stdout == here(*generate, "--method", "ar").stdout
        Path(found["profile"]).write_text("{")
        assert "delete it, or tune again" in one_line(here(*generate, "--method", "auto"))
    finally:
        Path(found["profile"]).unlink()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--quality", "good"], "neither 'exact' nor a share"),
        (["--quality", "1.5"], "no share from 0 to 1"),
        (["-n", "0"], "--max-bytes is 0"),
        (["nowhere.txt"], "cannot read nowhere.txt"),
    ],
)
def test_wrong_usage_is_one_line(args: list[str], says: str) -> None:
    done = here("tune", *args)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in one_line(done)

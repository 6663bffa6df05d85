"""What a benchmark measures and what its figures mean, over tiny graphs and numbers that can be checked by hand."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bltcli.bandwidth import paper_gb
from bltcli.bench.agreement import agreement
from bltcli.bench.compare import compare_reports
from bltcli.bench.floor import Bandwidth
from bltcli.bench.formats import as_csv, as_markdown, as_text, equality
from bltcli.bench.hugging_face import HuggingFace
from bltcli.bench.measure import Task, Turn, open_contenders, take_turns
from bltcli.bench.noise import chance, differ, spread
from bltcli.bench.page import as_html
from bltcli.bench.paper import beside_paper, parse_paper
from bltcli.bench.report import broken_promises, make_rows
from bltcli.bench.run import Report, run_bench
from bltcli.bench.settings import default_settings, parse_settings, with_reference
from bltcli.bench.where import time_table
from bltcli.bundle import Bundle, open_bundle
from bltcli.checkpoint import open_checkpoint
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.errors import ModelError, UsageError
from bltcli.pipeline import open_model
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli_export.exporter import export_checkpoint
from tests.conftest import TinyBundle

#: The second text ends just below a step of the buffers, so that a draft over its end needs larger ones.
TASK = Task((b"Once upon", b"a time" * 8), Sampler(ignore_eos=True), Stop(max_bytes=70))
SETTINGS = (
    "ar", "ar exact=no", "blt-s k=4", "blt-dv block=4", "blt-d block=16 unmask=one-step", "blt-s k=8 engine=torch",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tiny_bundle: TinyBundle) -> Bundle:
    return tiny_bundle("lookup", block_size=16)


@pytest.fixture(scope="module")
def measure(bundle: Bundle) -> Callable[..., Report]:
    def run(*settings: str, repeats: int = 2, task: Task = TASK) -> Report:
        return run_bench(parse_settings(settings), lambda _: bundle, task, repeats=repeats, probe_bytes=2**20)

    return run


@pytest.fixture(scope="module")
def report(measure: Callable[..., Report]) -> Report:
    return measure(*SETTINGS)


def names(texts: list[str]) -> list[str]:
    return [setting.name for setting in parse_settings(texts)]


def test_a_value_with_commas_stands_for_several_settings_each_once() -> None:
    assert names(["blt-s k=4,8 ngram=no,yes", "blt-s k=8"]) == [
        "blt-s k=4", "blt-s k=4 ngram=yes", "blt-s k=8", "blt-s k=8 ngram=yes",
    ]  # fmt: skip
    assert names(["ar,auto exact=no engine=torch"]) == ["ar engine=torch exact=no", "auto engine=torch exact=no"]


def test_the_name_of_a_setting_is_read_as_that_setting() -> None:
    settings = [*default_settings(16), *parse_settings(["blt-h trust=0.5 precision=fp16", "ar exact=no engine=torch"])]
    assert parse_settings([setting.name for setting in settings]) == settings


@pytest.mark.parametrize("text", ["", "magic", "ar exact=maybe", "blt-s k=4,", "ar colour=red", "ar engine"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_settings([text])


def test_ar_is_run_in_any_case_once_per_precision() -> None:
    chosen = parse_settings(["blt-s", "ar exact=no", "auto precision=fp16"])
    assert [s.name for s in with_reference(chosen)] == [
        "ar", "blt-s k=auto", "ar exact=no", "ar precision=fp16", "auto precision=fp16",
    ]  # fmt: skip


def test_default_settings_suit_the_model() -> None:
    assert [s.name for s in default_settings(0)] == [
        "ar", "ar exact=no", "blt-s k=4", "blt-s k=8", "blt-s k=16", "auto",
    ]  # fmt: skip
    assert [s.options.method for s in default_settings(8)[6:]] == ["blt-d", "blt-dv", "blt-h"]


def test_agreement_says_where_texts_part_and_how_much_is_the_same() -> None:
    same = agreement([b"abc", b""], [b"abc", b""])
    assert (same.equal, same.share, same.differs_at) == (True, 1.0, None)
    found = agreement([b"abcd", b"xyzzy"], [b"abcd", b"xyYzyQ"])
    assert (found.equal, found.differs_in, found.differs_at) == (False, 1, 2)
    assert (found.common_prefix, found.equal_bytes, found.compared_bytes) == (6, 8, 10)
    early = agreement([b"ab"], [b"abcd"])
    assert (early.equal, early.differs_at, early.share) == (False, 2, 0.5)


def test_bytes_and_passes_are_those_of_generation(bundle: Bundle, report: Report) -> None:
    for row, text in zip(report["rows"], SETTINGS, strict=True):
        setting = parse_settings([text])[0]
        model = open_model(bundle, engine=setting.engine or "auto", exact=setting.exact)
        found = []
        for prompt in TASK.prompts * 2:  # once to warm up: buffers keep their size
            method = setting.options.make(model)
            found.append(generate_texts(model, method, [prompt], sampler=TASK.sampler, stop=TASK.stop)[1])
        found = found[len(TASK.prompts) :]
        assert row["new_bytes"] == 140
        assert row["nfe"] == {g: sum(s.decode.nfe[g] for s in found) for g in bundle.parameters}
        assert row["weight_bytes_read"] == sum(s.decode.weight_bytes for s in found)
        assert row["kv_bytes_read"] == sum(s.decode.kv_bytes for s in found)
        assert row["paper_gb"] == paper_gb(row["nfe"], bundle.parameters)


def test_every_row_says_whether_its_bytes_are_those_of_ar(report: Report) -> None:
    facts = {row["setting"]: row for row in report["rows"]}
    for setting in ("ar", "blt-s k=4", "blt-dv block=4"):
        assert facts[setting]["agreement"]["equal"]
        assert facts[setting]["promised"]
    unverified = facts["blt-d block=16 unmask=one-step"]
    assert not unverified["agreement"]["equal"]
    assert unverified["agreement"]["differs_at"] is not None
    assert 0 <= unverified["agreement"]["equal_share"] < 1
    assert not unverified["promised"]
    assert not facts["ar exact=no"]["promised"]
    assert not facts["blt-s k=8 engine=torch"]["promised"]
    assert broken_promises(report["rows"]) == []


def test_a_broken_promise_is_noticed(bundle: Bundle) -> None:
    contenders = open_contenders(parse_settings(["ar", "blt-s k=4"]), lambda _: bundle, TASK, engine="auto", threads=0)
    turns = take_turns(contenders, 1)
    turns[1][0] = replace(turns[1][0], texts=[turns[1][0].texts[0][:5] + b"\0", turns[1][0].texts[1]])
    rows = make_rows(contenders, turns, {"ort-cpu": 1e9})
    assert broken_promises(rows) == ["blt-s k=4"]
    assert rows[1]["agreement"]["differs_at"] == 5
    assert "BROKEN PROMISE: differ from byte 5" in equality(rows[1])


def in_engines(stats: DecodeStats | None, seconds: float) -> DecodeStats:
    """The same counts with so many seconds spent in the engines."""
    assert stats is not None
    prefill = replace(stats.prefill, seconds={})
    return replace(stats, prefill=prefill, decode=replace(stats.decode, seconds={"global": seconds}))


def test_rows_are_told_by_arithmetic_on_their_turns(bundle: Bundle) -> None:
    """Two settings of which one takes twice the time: every derived figure."""
    contenders = open_contenders(
        parse_settings(["ar", "ar ngram=yes"]), lambda _: bundle, TASK, engine="auto", threads=0
    )
    real = take_turns(contenders, 1)
    timed = [
        [Turn(turns[0].texts, s * factor, in_engines(turns[0].stats, s / 4)) for s in (1.0, 2.0, 4.0)]
        for turns, factor in zip(real, (1, 2), strict=True)
    ]
    rows = make_rows(contenders, timed, {"ort-cpu": 1e6})
    stats = real[0][0].stats
    assert stats is not None
    read = sum(w.weight_bytes + w.kv_bytes for w in (stats.prefill, stats.decode))
    assert rows[0]["bytes_per_s"] == {"median": 70, "low": 52.5, "high": 105}
    assert rows[1]["speedup"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert rows[0]["floor_share"] == pytest.approx(read / 1e6 / 2)
    assert rows[0]["python_share"] == 0.75
    assert rows[1]["python_share"] == 0.875
    for row in rows:
        predicted = sum(rows[0]["nfe"].values()) / sum(row["nfe"].values())
        assert row["predicted_speedup"]["nfe"] == pytest.approx(predicted)
        assert row["conversion"]["nfe"] == pytest.approx(row["speedup"]["median"] / predicted)
        assert row["gb_saving"] == pytest.approx(1 - row["paper_gb"] / rows[0]["paper_gb"])


def test_without_the_bandwidth_of_a_memory_there_is_no_floor(bundle: Bundle) -> None:
    contenders = open_contenders(parse_settings(["ar"]), lambda _: bundle, TASK, engine="auto", threads=0)
    turns = take_turns(contenders, 1)
    rows = make_rows(contenders, turns, {})  # as for a GPU's
    assert rows[0]["floor_share"] is None
    assert [line[1] for line in time_table({"rows": rows}).rows] == [
        "patcher",
        "encoder",
        "global",
        "decoder",
        "Python",
    ]
    assert "(floor)" in str(time_table({"rows": make_rows(contenders, turns, {"ort-cpu": 1e9})}))


def test_speed_is_measured_against_the_fastest_plain_ar(report: Report) -> None:
    rows = report["rows"]
    plain = max((row for row in rows if row["method"] == "ar"), key=lambda row: row["bytes_per_s"]["median"])
    assert plain["speedup"]["median"] == 1
    for row in rows:
        assert row["new_bytes"] == plain["new_bytes"]
        by_turn = [slow / fast for slow, fast in zip(plain["seconds"], row["seconds"], strict=True)]
        assert row["speedup"]["median"] == pytest.approx(np.median(by_turn))


def test_time_in_graphs_and_in_python_is_all_there_is(report: Report) -> None:
    for row in report["rows"]:
        assert set(row["graph_s"]) == {"patcher", "encoder", "global", "decoder"}
        assert 0 < sum(row["graph_s"].values()) < max(row["seconds"])
        assert 0 < row["python_share"] < 1


def test_settings_take_turns_and_each_begins_a_round() -> None:
    log: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self) -> Turn:
            log.append(self.name)
            return Turn([self.name.encode()], 1.0)

    turns = take_turns([Named("a"), Named("b"), Named("c")], 3, between=lambda: log.append("-"))
    assert "".join(log) == "abc-bca-cab-abc"  # the first round warms up
    assert [[turn.texts[0] for turn in own] for own in turns] == [[b"a"] * 3, [b"b"] * 3, [b"c"] * 3]


def test_a_method_that_the_model_cannot_run_is_refused_before_anything_is_measured(tiny_bundle: TinyBundle) -> None:
    plain = tiny_bundle("lookup")
    with pytest.raises(ModelError, match="trained on next bytes only"):
        run_bench(parse_settings(["ar", "blt-d"]), lambda _: plain, TASK, advance=lambda _: pytest.fail("measured"))


def test_bandwidth_of_more_bytes_takes_longer_at_the_same_rate() -> None:
    rates = Bandwidth(2, 2**20).probe()
    assert set(rates) == {"copy", "triad", "read"}
    assert all(1e7 < rate < 1e13 for rate in rates.values())


def test_quartiles_are_inclusive() -> None:
    assert spread([5.0]).to_dict() == {"median": 5, "low": 5, "high": 5}
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]).to_dict() == {"median": 3, "low": 2, "high": 4}


def test_chance_is_that_of_the_tables_of_mann_and_whitney() -> None:
    assert chance([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20)
    assert chance([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)
    assert chance([1, 4, 5], [2, 3, 6]) == 1.0
    assert chance([1, 2, 3, 4, 6], [5, 7, 8, 9, 10]) == pytest.approx(4 / 252)
    assert chance([1, 1, 1], [1, 1, 1]) == 1.0


def test_noise_is_called_noise_and_a_difference_is_found() -> None:
    rng = random.Random(5)

    def run(scale: float) -> list[float]:
        return [scale * rng.lognormvariate(0, 0.05) for _ in range(7)]

    false = sum(differ(run(1.0), run(1.0)) for _ in range(1000))
    found = sum(differ(run(1.0), run(1.2)) for _ in range(1000))
    assert false <= 25  # at most 1 % expected; 25 is five standard deviations above
    assert found >= 950
    assert not differ([1.0, 1.0, 1.0, 1.0], [9.0, 9.0, 9.0, 9.0])  # four repeats prove nothing


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("ar", "BLT"),
        ("blt-s k=5", "BLT-S k=4"),
        ("blt-s k=40", "BLT-S k=16"),
        ("blt-d block=8", "BLT-D-8 a=0.7"),
        ("blt-d block=16 unmask=entropy gamma=0.6", "BLT-D-16 g=0.8"),
        ("blt-dv block=4", "BLT-DV-4 one step"),
        ("blt-dv block=8 unmask=confidence", "BLT-DV-8 a=0.3"),
        ("blt-h", None),
        ("blt-s k=auto", None),
        ("blt-s ngram=yes", None),
    ],
)
def test_the_nearest_setting_of_the_paper_stands_beside(text: str, nearest: str | None) -> None:
    found = beside_paper(parse_settings([text])[0].options, 16, "3B", "FR-EN")
    assert (found and found["setting"]) == nearest


def test_the_papers_figures_are_per_generated_byte() -> None:
    found = beside_paper(MethodOptions(method="blt-s", draft_bytes=8), 0, *parse_paper("3B FR-EN"))
    assert found is not None
    assert found["decoder_nfe_per_byte"] == pytest.approx(580 / 512)
    assert found["gb_saving"] == pytest.approx(0.52, abs=0.005)
    with pytest.raises(UsageError, match="1B FR-EN"):
        parse_paper("7B FR-EN")


def test_tables_and_csv_carry_every_setting_and_its_equality(report: Report) -> None:
    for text in (as_text(report), as_markdown(report)):
        lines = [line.strip("| ") for line in text.split("Work")[0].splitlines()]
        for row in report["rows"]:
            line = next(line for line in lines if line.startswith(row["setting"] + " "))
            assert (" equal " in line) == row["agreement"]["equal"]
            assert ("differ from byte" in line) != row["agreement"]["equal"]
    rows = list(csv.DictReader(io.StringIO(as_csv(report))))
    assert [row["setting"] for row in rows] == [row["setting"] for row in report["rows"]]
    assert rows[4]["agreement.equal"] == "False"
    assert float(rows[2]["bytes_per_s.median"]) > 0


def test_reports_of_the_same_work_compare(measure: Callable[..., Report], report: Report) -> None:
    other = measure("ar", "blt-s k=4", "blt-s k=2")
    found = compare_reports(report, other)
    assert [row["setting"] for row in found["rows"]] == ["ar", "blt-s k=4"]
    assert found["only_in_b"] == ["blt-s k=2"]
    assert all(row["same_bytes"] and row["same_passes"] for row in found["rows"])
    assert not any(row["exceeds_noise"] for row in found["rows"])  # two repeats
    row = found["rows"][0]
    assert row["ratio"] == pytest.approx(row["bytes_per_s"][1] / row["bytes_per_s"][0])


def test_a_difference_beyond_the_noise_is_told_from_one_within(report: Report) -> None:
    def timed(seconds: list[float]) -> Report:
        row = {**report["rows"][0], "seconds": seconds}
        rates = [row["new_bytes"] / s for s in seconds]
        return {**report, "rows": [{**row, "bytes_per_s": spread(rates).to_dict()}]}

    slow, fast = [1.00, 1.02, 1.01, 1.05, 0.99], [0.50, 0.52, 0.51, 0.53, 0.49]
    row = compare_reports(timed(slow), timed(fast))["rows"][0]
    assert row["exceeds_noise"]
    assert row["ratio"] == pytest.approx(np.median(slow) / np.median(fast))
    assert row["ratio_spread"]["low"] < row["ratio"] < row["ratio_spread"]["high"]
    assert not compare_reports(timed(slow), timed([0.98, 1.03, 1.00, 1.04, 1.01]))["rows"][0]["exceeds_noise"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"task": {"max_bytes": 25}}, "task.max_bytes: 70 and 25"),
        ({"task": {"prompt_sha256": "0"}}, "task.prompt_sha256"),
        ({"bundles": {"fp32": "0"}}, "bundle \\(fp32\\) sha256"),
        ({"rows": []}, "share no setting"),
    ],
)
def test_reports_of_different_work_are_refused(report: Report, change: Report, field: str) -> None:
    other = {**report, **change}
    if "task" in change:
        other["task"] = {**report["task"], **change["task"]}
    with pytest.raises(UsageError, match=field):
        compare_reports(report, other)


def test_a_text_that_ends_at_once_is_reported_too(measure: Callable[..., Report]) -> None:
    empty = measure("ar", "blt-s")
    for row in empty["rows"]:
        row["new_bytes"] = 0
    assert compare_reports(empty, empty)["rows"][0]["ratio"] == 1
    assert "blt-s k=auto" in as_html(empty)


def test_hugging_face_runs_on_the_same_weights_and_no_others(
    hf_checkpoint: Path, tmp_path: Path, bundle: Bundle
) -> None:
    exported = open_bundle(
        export_checkpoint(open_checkpoint(hf_checkpoint), tmp_path / "b", precision="fp32", check=False)
    )
    task = replace(TASK, stop=Stop(max_bytes=6))
    theirs = HuggingFace(hf_checkpoint, exported.manifest, task)
    found = run_bench(parse_settings(["ar"]), lambda _: exported, task, repeats=1, others=[theirs], probe_bytes=2**20)
    assert [row["setting"] for row in found["rows"]] == ["ar", "hugging face"]
    assert found["rows"][1]["agreement"]["equal"]
    assert found["rows"][1]["speedup"]["median"] < 1
    assert "hugging face" in as_text(found)
    with pytest.raises(ModelError, match="other weights"):
        HuggingFace(hf_checkpoint, bundle.manifest, task)
    with pytest.raises(UsageError, match="greedy"):
        HuggingFace(hf_checkpoint, exported.manifest, replace(task, sampler=Sampler(temperature=1.0)))

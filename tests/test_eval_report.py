"""The report: sums over calls, decreases, the paper's rows, and the same figures in every format."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from bltcli.commands.eval.shared import finish
from bltcli.decoding.setting import parse_setting
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.evaluate.generating import Setting, full_name, summarise
from bltcli.evaluate.report import (
    Report,
    Row,
    baseline_of,
    notes_on,
    paper_row,
    rendered,
    unequal_settings,
    with_decreases,
)
from bltcli.paper import paper_rows
from bltcli.records import Record
from bltcli.sampling import Sampler

PARAMETERS = {"patcher": 7, "encoder": 10_000_000, "global": 80_000_000, "decoder": 10_000_000}


def record(number: int, text: str = "abcd", *, call: int | None = None, scale: int = 1, **more: Any) -> Record:
    passes = {"patcher": 3, "encoder": 3 * scale, "global": 2 * scale, "decoder": 20 * scale}
    work = {"texts": 1, "prompt_bytes": 9, "new_bytes": 10 * scale, "rounds": 3, "drafted": 8 * scale, "accepted": 6,
            "patches": 4, "patch_bytes": 12, "prefill_nfe": {}, "weight_bytes_read": 5,
            "nfe": dict.fromkeys(passes, 1), "text_nfe": passes}  # fmt: skip
    timing = {"wall_s": 0.5, "prefill_s": 0.1, "ttfb_s": 0.1, "bytes_per_s": 20.0}
    made = {"id": number, "output": text, "finish_reason": "eos", "new_bytes": 10 * scale, **more}
    return {**made, "call": number if call is None else call, "work": work, "timing": timing}


def setting(text: str) -> Setting:
    return Setting(name=text, options=parse_setting(text)[0], sampler=Sampler(), stop=Stop(max_bytes=10))


def example(paper: bool = True) -> Report:
    rows = []
    for text, scale, bleu in (("ar", 2, 30.0), ("blt-s k=8", 1, 30.0)):
        row = paper_row("1B", "DE-EN", parse_setting(text)[0], 8) if paper else None
        summary = summarise([record(0, scale=scale)], PARAMETERS)
        rows.append(Row(setting=text, scores={"BLEU": bleu, "chrF++": 50.25}, summary=summary, paper=row))
    return Report(title="A | B", rows=with_decreases(rows), notes=["One.", "Two."], details={"task": "mt"})


def test_passes_are_averaged_over_texts_and_shared_calls_counted_once() -> None:
    alone = summarise([record(0), record(1, scale=3)], PARAMETERS)
    assert alone.nfe == {"patcher": 3, "encoder": 6, "global": 4, "decoder": 40}
    assert alone.gigabytes == pytest.approx(2 * (40 * 10e6 + 4 * 90e6) / 1e9)
    assert alone.acceptance == pytest.approx(100 * 12 / 32)
    assert (alone.new_bytes, alone.bytes_per_s, alone.bytes_per_patch) == (40, 40.0, 3.0)
    shared = summarise([record(0), record(1, call=0), record(2, call=0), record(3)], PARAMETERS)
    assert shared.nfe == {graph: passes / 2 for graph, passes in record(0)["work"]["text_nfe"].items()}
    assert (shared.new_bytes, shared.texts) == (20, 4)


def test_failed_records_count_as_texts_and_nothing_else() -> None:
    failed: Record = {"id": 1, "error": "too long"}
    some = summarise([record(0), failed], PARAMETERS)
    assert (some.texts, some.failed, some.nfe) == (2, 1, record(0)["work"]["text_nfe"])
    none = summarise([failed], PARAMETERS)
    assert (none.failed, none.new_bytes, none.acceptance, none.bytes_per_s) == (1, 0, None, None)


def test_a_decrease_is_against_plain_decoding() -> None:
    plain, drafted = example().rows
    assert plain.decrease is None
    assert drafted.decrease == pytest.approx(50.0)
    assert [row.decrease for row in with_decreases([drafted, drafted])] == [drafted.decrease] * 2


@pytest.mark.parametrize(
    ("text", "block", "model", "name"),
    [
        ("ar", 0, "BLT", "AR"),
        ("blt-s k=4", 0, "BLT-S", "k=4"),
        ("blt-s k=8", 0, "BLT-S", "k=8"),
        ("blt-d", 16, "BLT-D-16", "a=0.7"),
        ("blt-d block=4 alpha=0.5", 8, "BLT-D-4", "a=0.5"),
        ("blt-d unmask=entropy", 8, "BLT-D-8", "g=1.0"),
        ("blt-dv", 8, "BLT-DV-8", "one step"),
        ("blt-dv unmask=confidence", 8, "BLT-DV-8", "a=0.3"),
        ("blt-dv unmask=entropy gamma=2", 8, "BLT-DV-8", "g=2.0"),
    ],
)
def test_a_setting_finds_the_papers_row(text: str, block: int, model: str, name: str) -> None:
    for size in ("1B", "3B"):
        for task in ("FR-EN", "DE-EN", "HumanEval", "MBPP"):
            found = paper_row(size, task, parse_setting(text)[0], block)
            assert found is not None, (size, task)
            assert (found.size, found.task, found.model, found.setting) == (size, task, model, name)


@pytest.mark.parametrize(
    "text", ["blt-s k=5", "blt-s k=auto", "blt-s ngram=yes", "ar ngram=yes", "blt-h", "auto", "blt-d block=3",
             "blt-d unmask=entropy-max", "blt-d unmask=prefix", "blt-d alpha=0.6"],
)  # fmt: skip
def test_what_the_paper_has_not_gets_no_row(text: str) -> None:
    assert paper_row("1B", "DE-EN", parse_setting(text)[0], 8) is None


def test_every_row_of_the_paper_but_its_own_figures_can_be_asked_for() -> None:
    rules = {"a": "unmask=confidence alpha", "g": "unmask=entropy gamma", "k": "k"}
    for row in paper_rows():
        family = row.model.rsplit("-", 1)[0] if row.model[-1].isdigit() else row.model
        method = {"BLT": "ar", "BLT-S": "blt-s", "BLT-D": "blt-d", "BLT-DV": "blt-dv"}[family]
        block = f" block={row.model.rsplit('-', 1)[1]}" if family in ("BLT-D", "BLT-DV") else ""
        key, _, value = row.setting.partition("=")
        words = "unmask=one-step" if row.setting == "one step" else f"{rules[key]}={value}" if value else ""
        options = parse_setting(f"{method}{block} {words}")[0]
        assert paper_row(row.size, row.task, options, 16) == row


@pytest.mark.parametrize("text", ["ar", "ar ngram=yes", "blt-s", "blt-s k=auto", "blt-d", "blt-dv", "blt-h", "auto"])
def test_a_full_name_leaves_no_default_and_reads_as_the_same_setting(text: str) -> None:
    options = parse_setting(text)[0]
    name = full_name(options, 8)
    assert full_name(parse_setting(name)[0], 4) == name
    assert parse_setting(name)[0].settings(8) == options.settings(8)


def test_texts_are_compared_with_plain_decoding_wherever_it_stands() -> None:
    settings = [setting("blt-s"), setting("ar"), setting("blt-d"), setting("blt-dv")]
    assert baseline_of(settings).name == "ar"
    assert baseline_of([settings[2], settings[0]]).name == "blt-d"
    records = {
        "ar": [record(0, "a"), record(1, "b")],
        "blt-s": [record(0, "a"), record(1, "b")],
        "blt-d": [record(0, "a"), record(1, "c", finish_reason="length")],
        "blt-dv": [record(0, "a"), record(1, "b", finish_reason="stop")],
    }
    notes = "\n".join(notes_on(settings, records))
    assert "blt-s: the same bytes as ar in all 2 texts." in notes
    assert "blt-d: the same bytes as ar in 1 of 2 texts." in notes
    assert "blt-d: 1 of 2 texts were cut off at 10 bytes" in notes
    assert unequal_settings(settings, records) == ["blt-dv"]  # blt-d promises nothing


def test_bytes_are_compared_also_where_they_are_no_text() -> None:
    settings = [setting("ar"), setting("blt-s")]
    records = {"ar": [record(0, "\ufffd", output_hex="ff")], "blt-s": [record(0, "\ufffd", output_hex="fe")]}
    assert unequal_settings(settings, records) == ["blt-s"]


def test_the_exit_code_tells_failed_records_and_broken_promises(capfd: pytest.CaptureFixture[str]) -> None:
    report, good = example(), {"ar": [record(0)]}
    bad = {"ar": [record(0), {"id": 1, "error": "too long"}]}
    assert finish(report, "csv", good, []) == 0
    assert finish(report, "csv", bad, []) == 4
    assert finish(report, "csv", bad, ["blt-s"]) == 5
    err = capfd.readouterr().err
    assert "1 records failed, the first is 1 of ar: too long" in err
    assert "blt-s: not the bytes of ar" in err


def test_every_format_has_the_same_figures() -> None:
    report = example()
    found = json.loads(rendered(report, "json"))
    assert [row["setting"] for row in found["settings"]] == ["ar", "blt-s k=8"]
    assert found["task"] == "mt"
    drafted = found["settings"][1]
    assert drafted["paper"]["score"] == 31.46
    rows = list(csv.DictReader(io.StringIO(rendered(report, "csv").decode())))
    assert [row["setting"] for row in rows] == ["ar", "paper: BLT 1B AR", "blt-s k=8", "paper: BLT-S 1B k=8"]
    assert float(rows[2]["decoder NFE"]) == drafted["nfe"]["decoder"] == 20
    assert float(rows[2]["GB"]) == drafted["gigabytes"]
    assert float(rows[2]["decrease %"]) == drafted["decrease"]
    assert (rows[3]["BLEU"], rows[3]["chrF++"], rows[3]["GB"]) == ("31.46", "", "530.01")
    table = rendered(report, "table").decode().splitlines()
    assert table[0] == "A | B"
    assert " ".join(table[5].split()) == "blt-s k=8 30.00 50.2 75.0 20.0 3.0 2.0 0.7600 50.0 20.0 3.00"
    assert " ".join(table[6].split()) == "paper: BLT-S 1B k=8 31.46 86.1 587.0 132.0 132.0 530.01 38.7"
    assert table[-2:] == ["One.", "Two."]
    markdown = rendered(report, "md").decode().splitlines()
    assert markdown[0] == "**A | B**"
    assert markdown[4].startswith("| ar | 30.00 | 50.2 | 37.5 | 40.0 |")
    assert markdown[3].count("|") == markdown[4].count("|") == 12
    with pytest.raises(UsageError, match="--format is html"):
        rendered(report, "html")

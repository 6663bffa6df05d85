"""Two reports of the same work side by side: what became faster, and whether that is more than noise."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bltcli.bench.formats import Table
from bltcli.bench.noise import LEVEL, chance, spread
from bltcli.bench.report import FORMAT, VERSION
from bltcli.errors import UsageError

Report = Mapping[str, Any]


def read_report(file: str) -> dict[str, Any]:
    """UsageError when the file is no report of this version."""
    try:
        report = json.loads(Path(file).read_bytes())
        kind, version = report["format"], report["version"]
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is no report; make one with `bltcli bench --format json -o FILE`") from error
    if (kind, version) != (FORMAT, VERSION):
        raise UsageError(f"{file} is {kind} {version}, this program reads {FORMAT} {VERSION}; run the benchmark again")
    found: dict[str, Any] = report
    return found


def compare_reports(a: Report, b: Report) -> dict[str, Any]:
    """Rows of both reports by setting, engine and precision. UsageError where they did not do the same work."""
    for name, value in a["task"].items():
        _same(f"task.{name}", value, b["task"].get(name))
    for precision in sorted(set(a["bundles"]) & set(b["bundles"])):
        _same(f"bundle ({precision}) sha256", a["bundles"][precision], b["bundles"][precision])
    of_a, of_b = _by_setting(a), _by_setting(b)
    shared = [key for key in of_a if key in of_b]
    if not shared:
        raise UsageError("the reports share no setting, so that there is nothing to compare")
    return {
        "format": f"{FORMAT}-comparison",
        "version": VERSION,
        "level": LEVEL,
        "machines": [f"{r['processor']}, {r['cores']} cores" for r in (a, b)],
        "versions": [r["versions"] for r in (a, b)],
        "rows": [_row(of_a[key], of_b[key]) for key in shared],
        "only_in_a": [key[0] for key in of_a if key not in of_b],
        "only_in_b": [key[0] for key in of_b if key not in of_a],
    }


def _same(field: str, a: object, b: object) -> None:
    if a != b:
        raise UsageError(f"the reports differ in {field}: {a} and {b}; run both on the same work")


def _by_setting(report: Report) -> dict[tuple[str, str | None, str | None], Mapping[str, Any]]:
    return {(row["setting"], row.get("engine"), row.get("precision")): row for row in report["rows"]}


def _row(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    speed_a, speed_b = ([max(1, row["new_bytes"]) / s for s in row["seconds"]] for row in (a, b))
    p = chance(speed_a, speed_b)
    return {
        "setting": a["setting"],
        "engine": a.get("engine"),
        "precision": a.get("precision"),
        "bytes_per_s": [a["bytes_per_s"]["median"], b["bytes_per_s"]["median"]],
        "ratio": b["bytes_per_s"]["median"] / a["bytes_per_s"]["median"],
        "ratio_spread": spread([y / x for x, y in itertools.product(speed_a, speed_b)]).to_dict(),
        "speedup_ratio": b["speedup"]["median"] / a["speedup"]["median"],
        "chance": p,
        "exceeds_noise": p < LEVEL,
        "same_bytes": a["texts_sha256"] == b["texts_sha256"],
        "same_passes": a.get("nfe") == b.get("nfe"),
    }


def comparison_table(found: Mapping[str, Any]) -> Table:
    head = [
        "setting",
        "A bytes/s",
        "B bytes/s",
        "B / A",
        "quartiles",
        "more than noise",
        "speed-up B / A",
        "bytes",
        "passes",
    ]
    rows = []
    for row in found["rows"]:
        verdict = "no" if not row["exceeds_noise"] else "faster" if row["ratio"] > 1 else "slower"
        low, high = row["ratio_spread"]["low"], row["ratio_spread"]["high"]
        rows.append([
            row["setting"], *(f"{speed:.1f}" for speed in row["bytes_per_s"]), f"{row['ratio']:.2f}",
            f"{low:.2f}-{high:.2f}", f"{verdict} (p {row['chance']:.3f})", f"{row['speedup_ratio']:.2f}",
            "same" if row["same_bytes"] else "DIFFER", "same" if row["same_passes"] else "differ",
        ])  # fmt: skip
    return Table("B against A", head, rows)


def comparison_notes(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"More than noise: a two-sided Mann-Whitney test over the repeats gives p < {found['level']}; five repeats "
        "each are the fewest that can. It knows nothing of what else the machine did in one run and not in the "
        "other: where B / A and the ratio of the speed-ups over ar disagree, that is it.",
    ]
    if found["machines"][0] != found["machines"][1]:
        lines.append(f"Two machines: A {found['machines'][0]}; B {found['machines'][1]}.")
    for name, only in (("A", found["only_in_a"]), ("B", found["only_in_b"])):
        if only:
            lines.append(f"Only in {name}: {'; '.join(only)}.")
    return lines

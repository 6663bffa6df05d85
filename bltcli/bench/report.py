"""From turns to figures: one row per setting, each beside plain decoding, the machine's memory and the paper."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from bltcli.bandwidth import paper_gb
from bltcli.bench.agreement import agreement
from bltcli.bench.measure import Contender, Ours, Task, Turn
from bltcli.bench.noise import spread
from bltcli.bench.paper import beside_paper
from bltcli.decoding.setting import format_setting
from bltcli.stats import DecodeStats

FORMAT: Final = "bltcli-bench"
VERSION: Final = 1
Row = dict[str, Any]

#: What the figures of a row mean.
DEFINITIONS: Final = {
    "bytes_per_s": "new bytes / seconds of the whole run, prompt included; median and quartiles of the repeats",
    "speedup": "bytes_per_s over that of the fastest plain cached ar of the same precision, repeat by repeat",
    "nfe_per_byte": "passes per graph after the prompt, per new byte",
    "weight_bytes_read": "counted per pass by the engine wrapper, prompt left out; so are kv_bytes_read",
    "paper_gb": "2 * (decoder passes * decoder weights + global passes * (encoder + global weights)) / 1e9",
    "floor_share": "(weight and kv bytes read, prompt included) / bandwidth / seconds: above 1, they came from a cache",
    "predicted_speedup": "per new byte, ar's passes of all graphs over the row's (nfe), ar's paper_gb over the row's",
    "conversion": "speedup / predicted_speedup",
    "python_share": "1 - seconds inside the engines / seconds",
    "agreement": "bytes of the row beside those of ar on the same precision; differs_at is the first differing byte",
}


def task_facts(task: Task) -> dict[str, Any]:
    """What two runs must share to be compared."""
    sampler, stop = task.sampler, task.stop
    return {
        "prompts": len(task.prompts),
        "prompt_bytes": sum(map(len, task.prompts)),
        "prompt_sha256": sha256_of_texts(task.prompts),
        "max_bytes": stop.max_bytes,
        "temperature": sampler.temperature,
        "top_p": sampler.top_p,
        "top_k": sampler.top_k,
        "min_p": sampler.min_p,
        "seed": sampler.seed,
        "ignore_eos": sampler.ignore_eos,
    }


def sha256_of_texts(texts: Sequence[bytes]) -> str:
    """Of all texts and where each begins."""
    return hashlib.sha256(b"".join(len(text).to_bytes(8, "little") + text for text in texts)).hexdigest()


def make_rows(
    contenders: Sequence[Contender],
    turns: Sequence[Sequence[Turn]],
    bandwidths: Mapping[str, float],
    paper: tuple[str, str] = ("3B", "FR-EN"),
) -> list[Row]:
    """One row per contender. `bandwidths`: bytes per second by engine, where known; `paper`: size and task of the
    paper's tables. Every precision among `contenders` has its plain, exact `ar` (see `with_reference`)."""
    ours = {i: c for i, c in enumerate(contenders) if isinstance(c, Ours)}
    rows = []
    for i, contender in enumerate(contenders):
        precision = ours[i].bundle.precision if i in ours else next(iter(ours.values())).bundle.precision
        plain = [j for j, c in ours.items() if c.setting.plain and c.bundle.precision == precision]
        reference = next(j for j in plain if ours[j].setting.exact)
        fastest = min(plain, key=lambda j: median(_seconds_per_byte(turns[j])))
        row = _timings(contender, turns[i], turns[fastest])
        row["agreement"] = agreement(turns[i][0].texts, turns[reference][0].texts).to_dict()
        row["texts_sha256"] = sha256_of_texts(turns[i][0].texts)
        row["repeatable"] = all(turn.texts == turns[i][0].texts for turn in turns[i])
        if i in ours:
            base = turns[fastest][0]
            row |= _setting(ours[i]) | _work(ours[i], turns[i], base, row["speedup"]["median"])
            known = bandwidths.get(ours[i].model.engine_name)
            row["floor_share"] = None if known is None else _floor_share(turns[i], known)
            row["paper"] = beside_paper(ours[i].options, ours[i].model.block_size, *paper)
            ratio = row["predicted_speedup"]["gb"]
            row["gb_saving"] = 1 - 1 / ratio if ratio else None  # share of ar's paper_gb per byte that is not read
        rows.append(row)
    return rows


def broken_promises(rows: Sequence[Row]) -> list[str]:
    """Settings whose bytes had to be those of `ar` and are not."""
    return [row["setting"] for row in rows if row.get("promised") and not row["agreement"]["equal"]]


def _seconds_per_byte(turns: Sequence[Turn]) -> list[float]:
    return [turn.seconds / max(1, turn.new_bytes) for turn in turns]


def _timings(contender: Contender, turns: Sequence[Turn], baseline: Sequence[Turn]) -> Row:
    own, theirs = _seconds_per_byte(turns), _seconds_per_byte(baseline)
    timed = [(turn.stats.graph_s, turn.seconds) for turn in turns if turn.stats is not None]
    graphs = {name: median(spent[name] for spent, _ in timed) for name in timed[0][0]} if timed else {}
    outside = [1 - sum(spent.values()) / seconds for spent, seconds in timed]
    return {
        "setting": contender.name,
        "new_bytes": turns[0].new_bytes,
        "seconds": [turn.seconds for turn in turns],
        "bytes_per_s": spread([1 / s for s in own]).to_dict(),
        "speedup": spread([b / a for a, b in zip(own, theirs, strict=True)]).to_dict(),
        "graph_s": graphs,
        "python_share": median(outside) if outside else None,
    }


def _setting(contender: Ours) -> Row:
    setting, model = contender.setting, contender.model
    return {
        **contender.options.settings(model.block_size),
        "method": setting.options.method,
        "stands_for": format_setting(contender.options) if setting.options.method == "auto" else None,
        "engine": model.engine_name,
        "precision": contender.bundle.precision,
        "exact": setting.exact,
        "promised": contender.promised,
    }


def _work(contender: Ours, turns: Sequence[Turn], base: Turn, speedup: float) -> Row:
    """What is counted; the same in every repeat but for what a clock decides (k=auto), where the first one stands."""
    stats = _stats(turns[0])
    parameters = contender.bundle.parameters
    prompts = len(contender.task.prompts)
    facts = stats.to_dict()
    kept = ("acceptance_rate", "bytes_per_round", "bytes_per_round_histogram", "bytes_per_patch", "nfe", "prefill_nfe",
            "drafted", "accepted", "copied", "rounds", "weight_bytes_read", "kv_bytes_read")  # fmt: skip
    predicted = {
        "nfe": _ratio(_per_byte(base, _passes(base)), _per_byte(turns[0], _passes(turns[0]))),
        "gb": _ratio(_per_byte(base, _gb(base, parameters)), _per_byte(turns[0], _gb(turns[0], parameters))),
    }
    return {
        "first_byte_s": spread([_stats(turn).ttfb_s / prompts for turn in turns]).to_dict(),
        "prefill_s": median(_stats(turn).prefill_s for turn in turns),
        **{name: facts[name] for name in kept},
        "nfe_per_byte": {g: n / max(1, stats.new_bytes) for g, n in facts["nfe"].items()},
        "paper_gb": _gb(turns[0], parameters),
        "predicted_speedup": predicted,
        "conversion": {name: _ratio(speedup, value) for name, value in predicted.items()},
    }


def _stats(turn: Turn) -> DecodeStats:
    assert turn.stats is not None
    return turn.stats


def _passes(turn: Turn) -> int:
    return sum(_stats(turn).decode.passes().values())


def _gb(turn: Turn, parameters: Mapping[str, int]) -> float:
    return paper_gb(_stats(turn).decode.passes(), parameters)


def _per_byte(turn: Turn, amount: float) -> float:
    return amount / max(1, turn.new_bytes)


def _ratio(a: float, b: float | None) -> float | None:
    return a / b if b else None


def _floor_share(turns: Sequence[Turn], bandwidth: float) -> float:
    def share(turn: Turn) -> float:
        stats = _stats(turn)
        read = sum(work.weight_bytes + work.kv_bytes for work in (stats.prefill, stats.decode))
        return read / bandwidth / turn.seconds

    return median(share(turn) for turn in turns)

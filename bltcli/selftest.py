"""Proves on this machine, in seconds, what the program promises: run by `doctor` on the built-in model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.errors import BltError
from bltcli.sampling import FloatArray, Sampler
from bltcli.vocab import IdArray, encode

if TYPE_CHECKING:
    from bltcli.bundle import Bundle

_TEXT = b"The same bytes, whatever the company: one piece, byte by byte, or beside other texts. 0123456789"


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    detail: str


def self_test(engine: str = "auto", bundle: Bundle | None = None) -> list[Check]:
    """Golden outputs, rows that do not depend on their call, speculation equal to plain decoding."""
    from bltcli.bundle import open_bundle
    from bltcli.models import resolve_bundle

    try:
        bundle = bundle or open_bundle(resolve_bundle(None, None, lambda line: None))
        return [_golden(bundle, engine), _rows(bundle, engine), *_speculation(bundle, engine)]
    except BltError as error:
        return [Check("self test", False, str(error))]


def _golden(bundle: Bundle, engine: str) -> Check:
    from bltcli.bundle import GOLDEN
    from bltcli.checkpoint.safetensors_map import map_safetensors
    from bltcli.pipeline import open_model

    name = "golden outputs"
    if not (bundle.path / GOLDEN).is_file():
        return Check(name, True, "none in this bundle")
    golden = map_safetensors(bundle.path / GOLDEN)
    logits = _logits(open_model(bundle, engine=engine), [golden["ids"].astype(np.int64)], [40, 1, 7])[0]
    difference = float(np.abs(logits - golden["logits"]).max())
    limit = 1e-3 if bundle.precision == "fp32" else 0.5
    return Check(name, difference <= limit, f"logits within {difference:.1e} (limit {limit:g})")


def _rows(bundle: Bundle, engine: str) -> Check:
    """The rule that exactness rests on. Where a runtime does not promise it, the difference is reported, not judged."""
    from bltcli.pipeline import open_model

    ids = encode(_TEXT)
    alone = _logits(open_model(bundle, engine=engine), [ids], [len(ids)])[0]
    bytewise = _logits(open_model(bundle, engine=engine), [ids], [1])[0]
    model = open_model(bundle, engine=engine, rows=3)
    beside = _logits(model, [ids[:5], ids, ids[:50]], [13, 2])[1]
    difference = max(float(np.abs(alone - other).max()) for other in (bytewise, beside))
    promised = model.row_multiple > 1
    detail = "bitwise equal" if difference == 0 else f"differ by up to {difference:.1e}"
    return Check(
        "rows independent of their call",
        difference == 0 or not promised,
        f"{detail}: one piece, byte by byte, in a batch",
    )


def _speculation(bundle: Bundle, engine: str) -> list[Check]:
    from bltcli.pipeline import open_model

    checks = []
    for label, sampler in (("greedy", Sampler()), ("sampled", Sampler(temperature=0.8, top_p=0.95, seed=7))):
        outputs: list[bytes] = []
        for method in ("ar", "blt-s"):
            model = open_model(bundle, engine=engine)
            made = MethodOptions(method=method).make(model)
            outputs += generate_texts(model, made, [_TEXT], sampler=sampler, stop=Stop(max_bytes=96))[0]
        same = outputs[0] == outputs[1]
        promised = model.row_multiple > 1
        detail = f"{len(outputs[0])} bytes " + ("equal" if same else "differ")
        checks.append(Check(f"blt-s equals ar, {label}", same or not promised, detail))
    return checks


def _logits(model: object, texts: list[IdArray], sizes: list[int]) -> list[FloatArray]:
    """Next-byte logits [len, 260] of each text, run in pieces of the given sizes, cycled."""
    from itertools import cycle

    from bltcli.pipeline import Pipeline

    assert isinstance(model, Pipeline)
    found: list[list[FloatArray]] = [[] for _ in texts]
    start, pieces = 0, cycle(sizes)
    while start < max(map(len, texts)):
        size = min(next(pieces), model.prefill_rows)
        ids = [text[start : start + size] for text in texts]
        logits = model.extend(ids)
        for row, piece in enumerate(ids):
            found[row].append(logits[row, : len(piece)].copy())
        start += size
    return [np.concatenate(rows) for rows in found]

"""Proves on this machine what the program promises of a bundle: known answers, rows that do not depend on their call,
engines that agree, speculation that writes what plain decoding writes. `doctor` runs it in small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import cycle
from time import perf_counter
from typing import Any, Final

import numpy as np

from bltcli.bundle import GOLDEN, Bundle, open_bundle
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.setting import format_setting, parse_setting
from bltcli.decoding.stop import Stop
from bltcli.differences import Difference, Run, explain
from bltcli.errors import BltError, ModelError
from bltcli.graphs import Precision
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import FloatArray, Sampler
from bltcli.vocab import IdArray, encode

_TEXT: Final = b"The same bytes, whatever the company: one piece, byte by byte, or beside other texts. 0123456789"
SAMPLERS: Final = {"greedy": Sampler(), "sampled": Sampler(temperature=0.8, seed=7)}
#: Largest difference of logits from those of the PyTorch model on the same weights; int8 and int4 graphs also round
#: what weights are multiplied with.
LIMITS: Final[dict[Precision, float]] = {"fp32": 1e-3, "fp16": 0.5, "bf16": 0.5, "int8": 1.0, "int4": 1.0}
#: The same for quantised weights against float32 ones, as a share of the largest logit.
GOLDEN_SHARES: Final[dict[Precision, float]] = {"int8": 0.1, "int4": 0.5}
#: What is held against `ar`, besides drafts of whole blocks where the model was trained on them.
SETTINGS: Final = ("blt-s k=1", "blt-s k=4", "blt-s k=16", "blt-s k=auto ngram=yes")
BLOCK_SETTINGS: Final = ("blt-dv", "blt-dv block=4 unmask=confidence", "blt-h trust=1.0")


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    detail: str
    differences: tuple[Difference, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def self_test(engine: str = "auto", bundle: Bundle | None = None) -> list[Check]:
    """The checks that take seconds, of the built-in model by default."""
    from bltcli.models import resolve_bundle

    try:
        bundle = bundle or open_bundle(resolve_bundle(None, None, lambda line: None))
        proof = Verification(bundle, engine, [_TEXT], new_bytes=96)
        return [proof.golden(), proof.rows(), *proof.speculation(["blt-s"])]
    except BltError as error:
        return [Check("self test", False, str(error))]


def golden_of_others() -> list[Check]:
    """The built-in model's known answers on each engine that can be opened here and that `auto` does not take."""
    from bltcli.engine_choice import OPENERS
    from bltcli.models import resolve_bundle

    bundle = open_bundle(resolve_bundle(None, None, lambda line: None))
    taken, found = open_model(bundle).engine_name, []
    for engine in OPENERS:
        if engine == taken:
            continue
        try:
            open_model(bundle, engine=engine)
        except (ModelError, ImportError):  # not here: what it lacks is reported elsewhere
            continue
        check = Verification(bundle, engine, []).golden()
        found.append(replace(check, name=f"{check.name} on {engine}"))
    return found


class Verification:
    """All checks of one bundle on one engine. `prompts` are continued by `new_bytes` bytes each, `batch` at a time."""

    def __init__(
        self, bundle: Bundle, engine: str, prompts: Sequence[bytes], *, new_bytes: int = 128, batch: int = 8
    ) -> None:
        self.bundle, self.engine, self.prompts, self.batch = bundle, engine, list(prompts), batch
        self.stop = Stop(max_bytes=new_bytes)
        self._plain: dict[str, list[Run]] = {}

    def checks(self) -> Iterator[Check]:
        """Every check, cheap ones first."""
        yield self.files()
        yield self.golden()
        yield self.rows()
        if find_spec("torch") is not None and self._model().engine_name != "torch":
            yield self.torch()
        blocks = BLOCK_SETTINGS if self.bundle.config.block_size else ()
        yield from self.speculation([*SETTINGS, *blocks])
        if self._model().row_multiple > 1:
            yield self.unpadded()

    def files(self) -> Check:
        self.bundle.verify_files()
        return Check("files", True, f"{len(self.bundle.manifest['files'])} files have their size and hash")

    def golden(self) -> Check:
        """Logits of the PyTorch model, kept in the bundle."""
        from bltcli.checkpoint.safetensors_map import map_safetensors

        name = "golden outputs"
        if not (self.bundle.path / GOLDEN).is_file():
            return Check(name, True, "none in this bundle")
        golden = map_safetensors(self.bundle.path / GOLDEN)
        logits = _logits(self._model(), [golden["ids"].astype(np.int64)], [40, 1, 7])[0]
        difference = float(np.abs(logits - golden["logits"]).max())
        limit = LIMITS[self.bundle.precision]
        if self.bundle.precision in ("int8", "int4"):  # they are those of float32 weights
            limit = GOLDEN_SHARES[self.bundle.precision] * float(np.abs(golden["logits"]).max())
        return Check(name, difference <= limit, f"logits within {difference:.1e} (limit {limit:g})")

    def rows(self) -> Check:
        """The rule that exactness rests on. Where a runtime does not promise it, the difference is reported only."""
        ids = encode(_TEXT)
        alone = _logits(self._model(), [ids], [len(ids)])[0]
        bytewise = _logits(self._model(), [ids], [1])[0]
        model = self._model(rows=3)
        beside = _logits(model, [ids[:5], ids, ids[:50]], [13, 2])[1]
        difference = max(float(np.abs(alone - other).max()) for other in (bytewise, beside))
        found = "bitwise equal" if difference == 0 else f"differ by up to {difference:.1e}"
        detail = f"{found}: one piece, byte by byte, in a batch"
        return Check("rows independent of their call", difference == 0 or not model.promised, detail)

    def torch(self) -> Check:
        """The PyTorch model on the same weights: logits, and what `ar` writes."""
        ids = encode(_TEXT)
        ours, theirs = (_logits(self._model(engine=e), [ids], [len(ids)])[0] for e in (self.engine, "torch"))
        difference = float(np.abs(ours - theirs).max())
        limit = LIMITS[self.bundle.precision]
        found = self._runs(MethodOptions(method="ar"), SAMPLERS["greedy"], engine="torch")
        differences = self._differences(found, "greedy", "ar engine=torch", promised=False)
        detail = f"logits within {difference:.1e} (limit {limit:g}); {self._count(differences)}"
        ok = difference <= limit and not any(d.bug for d in differences)
        return Check("the PyTorch model", ok, detail, tuple(differences), {"largest_logit_difference": difference})

    def speculation(self, settings: Sequence[str]) -> Iterator[Check]:
        """Methods that verify against `ar`, greedy and sampled."""
        for text in settings:
            options = parse_setting(text)[0]
            for label, sampler in SAMPLERS.items():
                promised = self._model().promised
                found = self._differences(
                    self._runs(options, sampler), label, format_setting(options), promised=promised
                )
                ok = not any(d.bug for d in found)
                yield Check(f"{format_setting(options)} equals ar, {label}", ok, self._count(found), tuple(found))

    def unpadded(self) -> Check:
        """What --no-exact would change, and what the padding costs; never a failure."""
        options, sampler = MethodOptions(method="ar"), SAMPLERS["greedy"]
        seconds: dict[bool, list[float]] = {True: [], False: []}
        runs: dict[bool, list[Run]] = {}
        for _ in range(3):
            for exact in (True, False):
                began = perf_counter()
                runs[exact] = self._runs(options, sampler, exact=exact)
                seconds[exact].append(perf_counter() - began)
        cost = float(np.median(seconds[True]) / np.median(seconds[False]) - 1)
        found = self._differences(runs[False], "greedy", "ar --no-exact", promised=False)
        detail = f"{self._count(found)}; the padding of --exact costs {cost:.0%} of the time"
        return Check("without padding (--no-exact)", True, detail, tuple(found), {"padding_cost": cost})

    def _model(self, *, engine: str | None = None, rows: int = 1, exact: bool = True) -> Pipeline:
        return open_model(self.bundle, engine=engine or self.engine, rows=rows, exact=exact)

    def _runs(
        self, options: MethodOptions, sampler: Sampler, *, engine: str | None = None, exact: bool = True
    ) -> list[Run]:
        """What each prompt was continued with, and where its patches start."""
        found: list[Run] = []
        for start in range(0, len(self.prompts), self.batch):
            prompts = self.prompts[start : start + self.batch]
            model = self._model(engine=engine, rows=len(prompts), exact=exact)
            records = range(start, start + len(prompts))
            texts, _ = generate_texts(
                model, options.make(model), prompts, sampler=sampler, stop=self.stop, records=records
            )
            found += [Run(text, model.patch_starts(row), int(model.lengths[row])) for row, text in enumerate(texts)]
        return found

    def _differences(self, found: list[Run], label: str, setting: str, *, promised: bool) -> list[Difference]:
        if label not in self._plain:
            self._plain[label] = self._runs(MethodOptions(method="ar"), SAMPLERS[label])
        return [
            explain(
                self.bundle, self.engine, prompt, record, expected, run, SAMPLERS[label], setting, promised=promised
            )
            for record, (prompt, expected, run) in enumerate(zip(self.prompts, self._plain[label], found, strict=True))
            if expected.text != run.text
        ]

    def _count(self, differences: Sequence[Difference]) -> str:
        texts = f"{len(self.prompts)} texts" if len(self.prompts) > 1 else "1 text"
        if not differences:
            return f"{texts}, none differs"
        bugs = sum(d.bug for d in differences)
        margin = max(d.margin for d in differences)
        return f"{texts}, {len(differences)} differ: {bugs} bugs, {len(differences) - bugs} near-ties " \
            f"(largest margin {margin:.1e})"  # fmt: skip


def _logits(model: Pipeline, texts: list[IdArray], sizes: list[int]) -> list[FloatArray]:
    """Next-byte logits [len, 260] of each text, run in pieces of the given sizes, cycled."""
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

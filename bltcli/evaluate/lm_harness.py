"""bltcli as a model of EleutherAI's lm-evaluation-harness, and suites from files run through it.

    python -m bltcli.evaluate.lm_harness run --model bltcli --model_args bundle=DIR --tasks ...

is `lm_eval` with this model registered. Text is UTF-8; a byte that is none travels as a lone surrogate, and comes back
as the same byte (Python's "surrogateescape"). A request is scored exactly as it is cut: no space moves from the context
to the continuation, since bytes join without a seam.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import datasets
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bltcli.bundle import open_bundle
from bltcli.decoding import MethodOptions
from bltcli.decoding.setting import parse_setting
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.evaluate.generating import Generator, Setting, output_of
from bltcli.evaluate.loglikelihood import Request, fitted, longest_text, plan, score
from bltcli.evaluate.suites import Item
from bltcli.models import resolve_bundle
from bltcli.records import Record, collect, digest
from bltcli.sampling import Sampler
from bltcli.streams import complain

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

#: By the likeliest choice, and by the likeliest for its bytes (the harness's acc_norm counts characters).
METRICS: Final = ("acc", "acc_bytes")
#: Options of a harness task's generation that mean something here.
_GENERATION: Final = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p")
_AUTO_ROWS: Final = 8


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def to_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


class HarnessModel(LM):  # type: ignore[misc]
    """A bundle as the harness sees it. Contexts that are too long lose their beginning, as in the harness's own models,
    and that is said once."""

    def __init__(
        self,
        generator: Generator,
        *,
        options: MethodOptions | None = None,
        seed: int = 0,
        records: Path | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`options` and `seed` are for tasks that generate. With `records`, scores are kept in that file, which a later
        run goes on with; `advance` is told how many there are."""
        super().__init__()
        self.generator, self.options, self.seed = generator, options or MethodOptions(), seed
        self._records, self._advance = records, advance
        self._said = False

    @property
    def tokenizer_name(self) -> str:
        return "bytes"

    @property
    def max_length(self) -> int:
        """Bytes of a context and its continuation."""
        return longest_text(self.generator.model(self.generator.rows))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [(to_bytes(context), to_bytes(continuation)) for context, continuation in _arguments(requests)]
        scores = [(record["nats"], record["greedy"]) for record in self._score(pairs)]
        for request, found in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, found)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        pairs: list[Request] = []
        owners: list[int] = []
        for number, (text,) in enumerate(_arguments(requests)):
            windows = get_rolling_token_windows(list(to_bytes(text)), -1, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append((bytes(byte for byte in context if byte >= 0), bytes(continuation)))  # -1: where BOS is
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, record in zip(owners, self._score(pairs), strict=True):
            totals[owner] += record["nats"]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Every text continued until one of its stop strings; `max_gen_toks` are bytes, 256 where a task is silent."""
        groups: dict[str, list[int]] = {}
        arguments = _arguments(requests)
        for number, (_, how) in enumerate(arguments):
            groups.setdefault(repr(how), []).append(number)
        texts: dict[int, str] = {}
        for numbers in groups.values():
            setting = self._setting(dict(arguments[numbers[0]][1]))
            most = self.max_length + 1 - setting.stop.max_bytes
            if most < 1:
                raise UsageError(f"max_gen_toks is {setting.stop.max_bytes}, the model's context {self.max_length + 1}")
            prompts = [self._shortened((to_bytes(arguments[number][0]), b""), most)[0] for number in numbers]
            for group in self.generator.groups(prompts):
                made = self.generator.continue_texts(setting, [prompts[i] for i in group], [numbers[i] for i in group])
                for record in made:
                    if "error" in record:
                        raise UsageError(record["error"])
                    texts[record["id"]] = to_text(output_of(record))
                    self.cache_hook.add_partial("generate_until", requests[record["id"]].args, texts[record["id"]])
        return [texts[number] for number in range(len(requests))]

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return self.generator.header()

    def _setting(self, how: dict[str, Any]) -> Setting:
        unknown = sorted(set(how) - set(_GENERATION))
        if unknown:
            raise UsageError(f"generation option {unknown[0]!r} is unknown; there are {', '.join(_GENERATION)}")
        until = how.get("until") or ()
        strings = tuple(to_bytes(text) for text in ([until] if isinstance(until, str) else until) if text)
        stop = Stop(max_bytes=int(how.get("max_gen_toks", 256)), strings=strings)
        if how.get("do_sample") is False:
            how["temperature"] = 0.0
        drawn = {name: how[name] for name in ("temperature", "top_p", "top_k", "min_p") if how.get(name) is not None}
        return Setting(name="harness", options=self.options, sampler=Sampler(seed=self.seed, **drawn), stop=stop)

    def _score(self, pairs: Sequence[Request]) -> list[Record]:
        """A record per request, in order: id, nats, greedy."""
        most = self.max_length
        fitting = [self._shortened(pair, most) for pair in pairs]
        model = self.generator.model(self.generator.rows)

        def make(numbers: Sequence[int]) -> list[Record]:
            scores = score(model, [fitting[number] for number in numbers])
            return [{"id": number, **asdict(found)} for number, found in zip(numbers, scores, strict=True)]

        parts = [part for pair in fitting for part in pair]
        header = {"task": "loglikelihood", "input_sha256": digest(parts), **self.generator.header()}
        made = collect(self._records, header, plan(fitting, self.generator.rows), make, self._advance)
        return sorted(made, key=lambda record: int(record["id"]))

    def _shortened(self, request: Request, most: int) -> Request:
        found = fitted(request, most)
        if len(found[0]) < len(request[0]) and not self._said:
            self._said = True
            complain(f"a context of {len(request[0])} bytes is longer than the model's; its beginning is left out")
        return found


@register_model("bltcli")
class RegisteredModel(HarnessModel):
    """`HarnessModel` by name: --model bltcli --model_args bundle=DIR,engine=ort-cpu,method="blt-s k=4"."""

    def __init__(
        self,
        bundle: str | None = None,
        *,
        precision: str | None = None,
        engine: str = "auto",
        threads: int = 0,
        exact: bool = True,
        method: str = "blt-s",
        seed: int = 0,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """batch_size "auto" is 8. The harness always names a device, which means nothing here: the engine decides."""
        opened = open_bundle(resolve_bundle(bundle, precision, complain))
        rows = _AUTO_ROWS if str(batch_size).startswith("auto") else int(batch_size)
        generator = Generator(opened, rows=rows, engine=engine, threads=threads, exact=exact)
        super().__init__(generator, options=parse_setting(method)[0], seed=seed)


@dataclass(frozen=True)
class Accuracy:
    """Of one suite, in percent, with standard errors (None for a single item). `acc_norm` divides the log-probability
    of a choice by its length in bytes first."""

    items: int
    acc: float
    acc_error: float | None
    acc_norm: float
    acc_norm_error: float | None


def run_suite(model: HarnessModel, name: str, items: Sequence[Item]) -> Accuracy:
    """The accuracy of a model on a suite, as the harness computes it (`acc` and `acc_bytes`)."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    rows = [{"query": item.query, "choices": list(item.choices), "gold": item.gold} for item in items]
    config = {
        "task": name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "num_fewshot": 0,  # examples are a part of the query already
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in METRICS],
    }
    tasks: Any = {name: ConfigurableTask(config=config)}
    found: Any = evaluate(lm=model, task_dict=tasks, bootstrap_iters=1, log_samples=False)
    result: Mapping[str, Any] = found["results"][name]
    return Accuracy(
        len(items),
        *(_percent(result[f"{name}{kind},none"]) for name in METRICS for kind in ("", "_stderr")),
    )


def _percent(value: object) -> Any:
    """The harness calls the standard error of a single item "N/A"."""
    return 100 * value if isinstance(value, int | float) else None


def _arguments(requests: Sequence[Instance]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()

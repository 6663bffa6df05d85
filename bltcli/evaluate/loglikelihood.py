"""How likely a model finds texts: log-probabilities of continuations, from the full model's own passes.

The log-probability of a byte is the log-softmax over all 260 outputs, the four that are no bytes included, as Hugging
Face computes it: so the values compare with its own. A text always begins with BOS, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bltcli.decoding.protocol import ByteModel
from bltcli.errors import UsageError
from bltcli.sampling import FloatArray
from bltcli.vocab import OUTPUT_IDS, IdArray, encode

#: A context and what continues it; the continuation is scored.
Request = tuple[bytes, bytes]


@dataclass(frozen=True)
class Score:
    """Of one continuation."""

    nats: float  # log-probability, 0 for no bytes
    greedy: bool  # whether each of its bytes is the likeliest


class TextModel(ByteModel, Protocol):
    """What scoring needs of a model."""

    prefill_rows: int  # most byte rows per text in one call


def longest_text(model: TextModel) -> int:
    """The most bytes that a context and all but the last byte of its continuation may have."""
    return model.max_bytes - 2


def fitted(request: Request, most: int) -> Request:
    """The request with as much of the end of its context as fits into `most` bytes; UsageError when not even its
    continuation does."""
    context, continuation = request
    room = most - max(0, len(continuation) - 1)
    if room < 0:
        raise UsageError(f"a continuation has {len(continuation)} bytes, the model's context holds {most + 1}")
    return context[max(0, len(context) - room) :], continuation


def plan(requests: Sequence[Request], rows: int) -> list[list[int]]:
    """Which requests are scored together: those of up to `rows` contexts, long ones first. Each context is run once."""
    by_context: dict[bytes, list[int]] = {}
    for number, (context, _) in enumerate(requests):
        by_context.setdefault(context, []).append(number)
    order = sorted(by_context, key=lambda context: (-len(context), context))
    return [
        [number for context in order[start : start + rows] for number in by_context[context]]
        for start in range(0, len(order), rows)
    ]


def score(model: TextModel, requests: Sequence[Request]) -> list[Score]:
    """A score per request; they have no more contexts than the model has rows. On an engine whose rows are exact, the
    scores do not depend on what is scored together. UsageError where the model's context ends before a text does."""
    by_context: dict[bytes, list[int]] = {}
    for number, (context, _) in enumerate(requests):
        by_context.setdefault(context, []).append(number)
    rows = len(model.lengths)
    assert len(by_context) <= rows

    nothing = encode(b"", bos=False)
    beginnings = [encode(context) for context in by_context] + [nothing] * (rows - len(by_context))
    firsts, lengths = [np.empty(0, dtype=np.float32)] * rows, model.lengths.copy()
    found: dict[int, Score] = {}
    after_contexts = False
    for turn in range(max(map(len, by_context.values()), default=0)):  # one continuation of each context at a time
        if not after_contexts:
            for row in range(rows):
                model.clear(row)
            firsts = [logits[-1:] for logits in run_after(model, beginnings)[0]]
            lengths = model.lengths.copy()
        numbers = {row: own[turn] for row, own in enumerate(by_context.values()) if turn < len(own)}
        texts = [encode(requests[numbers[r]][1], bos=False) if r in numbers else nothing for r in range(rows)]
        logits, calls = run_after(model, [ids[:-1] for ids in texts])
        for row, number in numbers.items():
            found[number] = score_of(np.concatenate([firsts[row], logits[row]]), texts[row])
        after_contexts = calls < 2  # a model lets go of what lies beyond its window once the next call begins
        if after_contexts:
            model.rewind(lengths)
    return [found[number] for number in range(len(requests))]


def score_of(logits: FloatArray, ids: IdArray) -> Score:
    """Of ids [n] that were predicted by logits [>= n, 260]."""
    scores: NDArray[np.float64] = logits[: len(ids)].astype(np.float64)
    top = scores.max(axis=-1, initial=-np.inf)
    each = scores[np.arange(len(ids)), ids] - top - np.log(np.exp(scores - top[:, None]).sum(axis=-1))
    return Score(nats=float(each.sum()), greedy=bool((scores.argmax(axis=-1) == ids).all()))


def run_after(model: TextModel, texts: Sequence[IdArray]) -> tuple[list[FloatArray], int]:
    """Run texts[r] after what row r holds; the next-byte logits of each of its bytes, [len(texts[r]), 260], and the
    number of calls it took. UsageError where the context ends first."""
    found: list[list[FloatArray]] = [[np.empty((0, OUTPUT_IDS), dtype=np.float32)] for _ in texts]
    calls = 0
    for calls, pieces in enumerate(_pieces(model, texts), 1):  # noqa: B007
        logits = model.extend(pieces)
        for row, piece in enumerate(pieces):
            if len(piece):
                found[row].append(logits[row, : len(piece)].copy())
    return [np.concatenate(parts) for parts in found], calls


def _pieces(model: TextModel, texts: Sequence[IdArray]) -> Iterator[list[IdArray]]:
    """Texts in calls that the model has room for: a context ends in patches too, and how many there will be shows only
    as the bytes are run."""
    start = 0
    while start < max(map(len, texts)):
        unfinished = [row for row, ids in enumerate(texts) if len(ids) > start]
        size = min(model.prefill_rows, *(int(model.room[row]) for row in unfinished))
        if size < 1:
            row = min(unfinished, key=lambda row: int(model.room[row]))
            held, left = int(model.lengths[row]) - 1, len(texts[row]) - start
            raise UsageError(f"a text has {held + left} bytes, the model's context is full of patches after {held}")
        yield [ids[start : start + size] for ids in texts]
        start += size

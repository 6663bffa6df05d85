"""Draft lengths that follow what is kept and what it costs; the clock is the toy model's own work."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bltcli.decoding.draft_length import LADDER, AdaptiveLength, DraftLength, FixedLength
from bltcli.decoding.drafting import Drafting
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.self_speculation import SelfSpeculation
from bltcli.decoding.stop import Stop
from bltcli.sampling import Sampler
from bltcli.vocab import IdArray
from tests.test_methods import ABC, ALWAYS_D
from tests.toy import ToyModel, random_law

NEW_BYTES = 3000


class Watched:
    """A draft length that remembers what was chosen."""

    def __init__(self, length: DraftLength) -> None:
        self.length, self.chosen = length, list[int]()

    def choose(self) -> int:
        found = self.length.choose()
        self.chosen.append(found)
        return found

    def observe(self, drafted: IdArray, kept: IdArray) -> None:
        self.length.observe(drafted, kept)


def cost(
    model: ToyModel, length: DraftLength, temperature: float = 0.0, prompts: tuple[bytes, ...] = (b"a",)
) -> tuple[list[bytes], float]:
    """What was written, and the work it took: a full pass costs 113, a drafting pass 10."""
    sampler = Sampler(temperature=temperature, ignore_eos=True)
    method = SelfSpeculation(model, Drafting(length))
    texts, stats = generate_texts(model, method, prompts, sampler=sampler, stop=Stop(max_bytes=NEW_BYTES))
    return texts, stats.decode.weight_bytes


@pytest.mark.parametrize(
    ("guess", "best"),
    [(ABC, LADDER[-1]), (ALWAYS_D, 0), (ABC + random_law(0, 6.0), None)],
    ids=["right", "wrong", "mixed"],
)
def test_the_length_that_pays_is_found_and_costs_little_to_find(guess: np.ndarray, best: int | None) -> None:
    fixed = {}
    for k in LADDER:
        texts, fixed[k] = cost(ToyModel(ABC, guess), FixedLength(k))
    model = ToyModel(ABC, guess)
    length = Watched(AdaptiveLength(clock=lambda: model.ledger.work.weight_bytes))
    found, spent = cost(model, length)
    assert found == texts
    assert spent < 1.08 * min(fixed.values())
    if best is not None:
        assert min(fixed, key=lambda k: fixed[k]) == best == Counter(length.chosen).most_common(1)[0][0]


def test_what_one_text_has_taught_serves_the_next() -> None:
    """A text of ten bytes: a method that met such texts before drafts from the start what pays."""
    model = ToyModel(ABC, ALWAYS_D)
    method = SelfSpeculation(model, Drafting(AdaptiveLength(clock=lambda: model.ledger.work.weight_bytes)))

    def spent(record: int) -> int:
        sampler, stop = Sampler(ignore_eos=True), Stop(max_bytes=10)
        _, stats = generate_texts(model, method, [b"a"], sampler=sampler, stop=stop, records=[record])
        return stats.decode.weight_bytes

    least = 9 * 113  # the prompt gives the first byte
    first, *later = [spent(record) for record in range(20)]
    assert first > 1.2 * least
    assert np.mean(later) < 1.03 * least


def test_texts_that_share_calls_have_one_length_that_pays_for_all_together() -> None:
    """Of a row that goes well and one that goes badly, 15 drafted bytes give 17 for a work of 263, none 2 for 113."""
    law = ABC.copy()
    law[200:250, 200:250] = random_law(3)[200:250, 200:250] + 20
    guess = law.copy()
    guess[200:250] = ALWAYS_D[200:250]
    model = ToyModel(law, guess, rows=2)
    length = Watched(AdaptiveLength(clock=lambda: model.ledger.work.weight_bytes))
    cost(model, length, prompts=(b"a", bytes([210])))
    while_both = length.chosen[: NEW_BYTES // 16]
    assert Counter(while_both).most_common(1)[0][0] == 15
    assert Counter(length.chosen[-NEW_BYTES // 2 :]).most_common(1)[0][0] == 0  # of the one that is left


def test_one_slow_round_does_not_count() -> None:
    """The first round of a length binds memory, and other programs take the processor now and then."""
    model = ToyModel(ABC, ABC)
    hiccups = iter([0, 0, 0, 10**6])  # in the clock's first readings: the end of the second round is late
    late = 0

    def clock() -> float:
        nonlocal late
        late += next(hiccups, 0)
        return float(model.ledger.work.weight_bytes + late)

    length = Watched(AdaptiveLength(clock=clock))
    cost(model, length)
    assert length.chosen[:5] == [7, 7, 3, 3, 7]  # as without it

"""Draft lengths that follow what is kept and what it costs; the clock is the toy model's own work."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bltcli.decoding.draft_length import PROBE_EVERY, AdaptiveLength, DraftLength, FixedLength
from bltcli.decoding.drafting import Drafting
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.rows import Rows
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
        self.length, self.chosen = length, Counter[int]()

    def choose(self, rows: Rows) -> int | IdArray:
        found = self.length.choose(rows)
        self.chosen.update(np.atleast_1d(found).tolist())
        return found

    def observe(self, rows: Rows, drafted: IdArray, kept: IdArray) -> None:
        self.length.observe(rows, drafted, kept)


def cost(
    model: ToyModel, length: DraftLength, temperature: float = 0.0, prompts: tuple[bytes, ...] = (b"a",)
) -> tuple[list[bytes], float]:
    """What was written, and the work it took: a full pass costs 113, a drafting pass 10."""
    sampler = Sampler(temperature=temperature, ignore_eos=True)
    method = SelfSpeculation(model, Drafting(length))
    texts, stats = generate_texts(model, method, prompts, sampler=sampler, stop=Stop(max_bytes=NEW_BYTES))
    return texts, stats.decode.weight_bytes


@pytest.mark.parametrize(
    ("guess", "best"), [(ABC, 16), (ALWAYS_D, 0), (ABC + random_law(0, 6.0), None)], ids=["right", "wrong", "mixed"]
)
def test_the_length_that_pays_is_found_and_costs_little_to_find(guess: np.ndarray, best: int | None) -> None:
    fixed = {}
    for k in (0, 1, 2, 4, 8, 16):
        texts, fixed[k] = cost(ToyModel(ABC, guess), FixedLength(k))
    model = ToyModel(ABC, guess)
    length = Watched(AdaptiveLength(clock=lambda: model.ledger.work.weight_bytes))
    found, spent = cost(model, length)
    assert found == texts
    assert spent < 1.08 * min(fixed.values())
    if best is not None:
        assert min(fixed, key=lambda k: fixed[k]) == best == length.chosen.most_common(1)[0][0]


def test_each_record_has_its_own_length() -> None:
    """Rows that go well and rows that go badly in one batch."""
    law = ABC.copy()
    law[200:250, 200:250] = random_law(3)[200:250, 200:250] + 20
    guess = law.copy()
    guess[200:250] = ALWAYS_D[200:250]
    model = ToyModel(law, guess, rows=2)
    length = AdaptiveLength(clock=lambda: model.ledger.work.weight_bytes)
    seen: list[np.ndarray] = []

    class Last(Watched):
        def choose(self, rows: Rows) -> int | IdArray:
            chosen = self.length.choose(rows)
            seen.append(np.array(chosen))
            return chosen

    cost(model, Last(length), prompts=(b"a", bytes([210])))
    # while both are active, and looks at other lengths aside
    settled = np.array([now for number, now in enumerate(seen[20:150], 20) if number % PROBE_EVERY])
    assert np.median(settled[:, 0]) == 16
    assert np.median(settled[:, 1]) == 0


def test_no_length_beyond_the_longest_is_tried() -> None:
    model = ToyModel(ABC, ABC)
    length = Watched(AdaptiveLength(longest=4, clock=lambda: model.ledger.work.weight_bytes))
    cost(model, length)
    assert set(length.chosen) == {0, 1, 2, 4}

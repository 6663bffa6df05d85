"""One noise per position: draws follow the law, and depend on (seed, record, position) alone."""

from __future__ import annotations

import numpy as np
import pytest

from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli.vocab import EOS, NEVER_GENERATED, OFFSET, OUTPUT_IDS
from tests.toy import ToyModel, random_law

GOLDEN_NOISE = [-0.6858337622251235, -0.39920842065106577, -0.3115990568809628]


def draws(sampler: Sampler, logits: np.ndarray, count: int) -> np.ndarray:
    """Ids at positions 0 to before `count`, a thousand at a time: all at once take gigabytes."""
    rows, record = np.repeat(logits[None], 1000, axis=0), np.zeros(1000, dtype=np.int64)
    return np.concatenate([sampler.choose(rows, record, np.arange(at, at + 1000)) for at in range(0, count, 1000)])


def total_variation(found: np.ndarray, law: np.ndarray) -> float:
    return float(np.abs(np.bincount(found, minlength=OUTPUT_IDS) / len(found) - law).sum() / 2)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max())
    return p / p.sum()


def test_noise_that_was_handed_out_cannot_be_changed() -> None:
    """It is kept for the byte's verification."""
    with pytest.raises(ValueError, match="read-only"):
        Sampler(seed=1).noise(0, 0)[0] = 0


def test_a_hundred_thousand_draws_follow_the_law() -> None:
    """Expected total variation of n draws from p is at most sqrt(support / (4 n)): 0.0036 for 10 ids, 200 000 draws."""
    logits = np.full(OUTPUT_IDS, -50.0, dtype=np.float32)
    logits[100:110] = np.linspace(-1, 1, 10)
    law = softmax(logits.astype(np.float64))
    found = draws(Sampler(temperature=1.0, seed=3), logits, 200_000)
    bound = 2 * np.sqrt(10 / (4 * 200_000))
    assert total_variation(found, law) < bound
    # negative control: the same test refuses a law that is slightly off
    assert total_variation(found, softmax(logits.astype(np.float64) * 1.05)) > bound
    assert total_variation(draws(Sampler(temperature=1.05, seed=3), logits, 200_000), law) > bound


def test_sampled_ar_text_follows_the_exact_law_of_the_model() -> None:
    """Bytes two steps after the prompt, over 20 000 records, against the law computed by hand."""
    law = random_law(4, 1.5)
    law[:, 8:] = -50  # four bytes, so that the two-step law is well covered
    law[:, list(NEVER_GENERATED)] = 50  # must never be chosen however likely
    law[:, EOS] = -50
    count, batch = 20_000, 500
    texts = [b""] * count
    for first in range(0, count, batch):
        model = ToyModel(law, law, rows=batch)
        for chunk in generate(
            model,
            MethodOptions(method="ar", draft_bytes=1).make(model),
            [b"\x00"] * batch,
            sampler=Sampler(temperature=1.0, seed=8),
            stop=Stop(max_bytes=2),
            stats=DecodeStats(),
            records=range(first, first + batch),
        ):
            texts[chunk.record] += chunk.data
    second = np.array([text[1] for text in texts])
    step = np.stack([softmax(law[i, OFFSET:8].astype(np.float64)) for i in range(OFFSET, 8)])
    expected = step[0] @ step  # the prompt's byte is 0
    frequency = np.bincount(second, minlength=4) / count
    bound = 2 * np.sqrt(4 / (4 * count))
    assert np.abs(frequency - expected).sum() / 2 < bound
    assert np.abs(frequency - step[0]).sum() / 2 > bound  # negative control: the one-step law


def test_noise_depends_on_seed_record_and_position_alone() -> None:
    sampler = Sampler(temperature=1.0, seed=2)
    assert np.array_equal(sampler.noise(3, 7), Sampler(temperature=0.5, top_k=3, seed=2).noise(3, 7))
    others = [sampler.noise(4, 7), sampler.noise(3, 8), Sampler(seed=3).noise(3, 7), sampler.noise(7, 3)]
    assert all(np.abs(sampler.noise(3, 7) - other).min() > 0 for other in others)


def test_noise_is_the_same_on_every_machine_and_numpy() -> None:
    assert Sampler(seed=1).noise(2, 3)[:3].tolist() == pytest.approx(GOLDEN_NOISE, abs=1e-12)


def test_neighbouring_positions_share_no_random_words() -> None:
    """A position's 260 words must not overlap the next one's."""
    sampler = Sampler()
    words = np.concatenate([sampler.noise(0, position) for position in range(50)])
    assert len(np.unique(words)) == len(words)


def test_greedy_takes_the_lowest_of_equal_ids_and_never_a_banned_one() -> None:
    logits = np.zeros((1, OUTPUT_IDS), dtype=np.float32)
    logits[0, [0, 1, 3]] = 9
    zero = np.zeros(1, dtype=np.int64)
    assert Sampler().choose(logits, zero, zero)[0] == EOS
    assert Sampler(ignore_eos=True).choose(logits, zero, zero)[0] == OFFSET


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 3}, 3),
        ({"top_p": 0.5}, 2),  # 0.4 + 0.3 reach it
        ({"top_p": 0.4}, 1),
        ({"min_p": 0.5}, 3),  # at least half as likely as the likeliest
        ({"top_k": 2, "top_p": 0.99}, 2),
        ({"top_k": 1}, 1),
        ({"top_p": 1e-9}, 1),
        ({"min_p": 1.0}, 1),
    ],
)
def test_truncation_keeps_the_likeliest(options: dict[str, float], kept: int) -> None:
    p = np.full(OUTPUT_IDS, 1e-30)
    p[100:104] = [0.1, 0.2, 0.3, 0.4]
    sampler = Sampler(temperature=1.0, **options)  # type: ignore[arg-type]
    scores = sampler.log_probabilities(np.log(p)[None])[0]
    assert np.flatnonzero(np.isfinite(scores)).tolist() == list(range(104 - kept, 104))


def test_temperature_sharpens() -> None:
    logits = np.linspace(-1, 1, OUTPUT_IDS)[None]
    cold, warm = (Sampler(temperature=t).log_probabilities(logits)[0] for t in (0.5, 2.0))
    assert np.ptp(cold) == pytest.approx(4 * np.ptp(warm))


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 0.0},
     {"top_p": 1.1}, {"top_p": float("nan")}, {"min_p": -0.1}, {"top_k": -1}, {"seed": -1}, {"seed": 2**64}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="use "):
        Sampler(**options)  # type: ignore[arg-type]

"""Blocks drafted by diffusion: the rules that unmask them, what a block sees, and that verification is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bltcli.cache import KVCache
from bltcli.decoding import MethodOptions
from bltcli.decoding.denoise import Confidence, EntropyBounded, OfLogits, OneStep, Prefix, make_unmask
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.errors import ModelError, UsageError
from bltcli.graphs import MASKED
from bltcli.pipeline import open_model
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli.train.blocks import Blocks
from bltcli.train.diffusion import decode_with_blocks
from bltcli.vocab import MASK, OUTPUT_IDS
from bltcli_engines.torch_engine import TorchBuffer
from tests.conftest import TinyBundle
from tests.tiny import sample_text, tiny_model

RULES: list[dict[str, Any]] = [
    {"unmask": "one-step"},
    {"unmask": "confidence", "alpha": 0.3},
    {"unmask": "confidence", "alpha": 1.0},
    {"unmask": "prefix", "alpha": 0.3},
    {"unmask": "entropy", "gamma": 2.0},
    {"unmask": "entropy-max", "gamma": 0.0},
]


def logits_with(*tops: float) -> np.ndarray:
    """One row of positions whose likeliest byte has the given probability, the rest spread over the others."""
    rows = []
    for top in tops:
        p = np.full(OUTPUT_IDS, (1 - top) / (OUTPUT_IDS - 4))
        p[[0, 1, 3]] = 1.0  # ids that are never generated do not count, however likely
        p[100] = top
        rows.append(np.log(p))
    return np.array([rows], dtype=np.float32)


def all_masked(n: int) -> np.ndarray:
    return np.ones((1, n), dtype=np.bool_)


def test_confidence_reveals_what_is_sure_else_the_surest() -> None:
    logits = logits_with(0.5, 0.9, 0.2, 0.8)
    assert Confidence(0.7).reveal(OfLogits(logits), all_masked(4))[0].tolist() == [False, True, False, True]
    assert Confidence(0.95).reveal(OfLogits(logits), all_masked(4))[0].tolist() == [False, True, False, False]
    masked = np.array([[True, False, True, False]])
    assert Confidence(0.7).reveal(OfLogits(logits), masked)[0].tolist() == [True, False, False, False]


def test_prefix_reveals_what_is_sure_from_the_left_else_the_first() -> None:
    logits = OfLogits(logits_with(0.8, 0.9, 0.2, 0.95))
    for alpha, shown in ((0.1, [0, 1, 2, 3]), (0.7, [0, 1]), (0.85, [0]), (1.0, [0])):
        assert np.flatnonzero(Prefix(alpha).reveal(logits, all_masked(4))[0]).tolist() == shown
    masked = np.array([[False, False, True, True]])
    assert Prefix(0.7).reveal(logits, masked)[0].tolist() == [False, False, True, False]
    assert Prefix(0.1).reveal(logits, masked)[0].tolist() == [False, False, True, True]


def test_entropy_reveals_the_largest_prefix_within_its_bound() -> None:
    logits = logits_with(0.999, 0.9, 0.99, 0.1)
    p = np.array([0.999, 0.9, 0.99, 0.1])
    rest = (1 - p) / 256
    nats = -(p * np.log(p) + (1 - p) * np.log(rest))
    order = np.argsort(nats).tolist()
    assert order == [0, 2, 1, 3]
    two = float(nats[0] + nats[2])
    for gamma, shown in ((0.0, 1), (two - 1e-4, 1), (two + 1e-4, 2), (1e6, 4)):
        found = EntropyBounded(gamma).reveal(OfLogits(logits), all_masked(4))[0]
        assert np.flatnonzero(found).tolist() == sorted(order[:shown])
    # the EB-Sampler's form leaves the largest of the prefix out: one more position each time
    assert EntropyBounded(two + 1e-4, "sum-max").reveal(OfLogits(logits), all_masked(4))[0].sum() == 3


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_reveals_only_masked_positions_and_at_least_one(rule: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 8, OUTPUT_IDS)).astype(np.float32)
    masked = rng.random((50, 8)) < 0.4
    shown = MethodOptions(**rule).rule().reveal(OfLogits(logits), masked)
    assert not (shown & ~masked).any()
    assert (shown.any(axis=1) == masked.any(axis=1)).all()


def test_block_rows_see_the_whole_block_and_no_row_is_blind() -> None:
    """The drawing of `KVCache.bias`."""
    cache = KVCache([TorchBuffer((1, 1, 6, 4), "float32")], rows=1, step=6)
    one, two, three = (np.array([n]) for n in (1, 2, 3))
    seen = cache.bias(three[:, None] + np.arange(2), 3)[0, 0] > MASKED / 2
    assert seen.astype(int).tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]
    seen = cache.bias(three[:, None] + np.arange(3), 3, blocks=(one, three))[0, 0] > MASKED / 2
    assert seen.astype(int).tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
    seen = cache.bias(two[:, None] + np.arange(4), None, blocks=(one, three))[0, 0] > MASKED / 2
    assert seen.astype(int).tolist() == [[1] * 3 + [0] * 3, [1] * 5 + [0], [1] * 5 + [0], [1] * 6]


def test_a_block_is_decoded_as_it_was_trained(tiny_bundle: TinyBundle) -> None:
    """At a patch start, inference and training lay the same block out: the same logits, to rounding. The pending byte
    is the block's last clean byte; it must not close a patch, whose latent inference does not have yet."""
    model = tiny_model("lookup", block_size=16)
    pipeline = open_model(tiny_bundle("lookup", block_size=16))
    ids = sample_text(260)
    layout = model.layout(ids[None])
    before = next(n for n in range(200, 240) if not layout.closes[0, n])  # the pending byte's position
    pipeline.extend([ids[:128]])
    pipeline.extend([ids[128:before]])
    _, (logits,) = pipeline.denoise(
        [ids[before : before + 1]], np.array([8]), OneStep(), lambda logits, rows, places: logits.argmax(-1)
    )
    blocks = Blocks(
        ids=np.full((1, 1, 8), MASK),
        targets=ids[None, None, before + 1 : before + 9],
        starts=np.array([[before + 1]]),
        latents=layout.latent_of_byte[:, before : before + 1],
        t=np.ones((1, 1), dtype=np.float32),
        weights=np.ones((1, 1, 8), dtype=np.float32),
    )
    with torch.no_grad():
        _, expected = decode_with_blocks(model, layout, blocks)
    assert np.abs(logits - expected[0, 0].numpy()).max() < 1e-4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_diffusion_with_verification_equals_ar_over_real_graphs(tiny_bundle: TinyBundle, temperature: float) -> None:
    model = open_model(tiny_bundle("lookup", block_size=16), rows=3)
    prompts = [b"", b"def f(x):", "Größe: 3 €".encode()]

    def texts(**options: Any) -> tuple[list[bytes], DecodeStats]:
        sampler = Sampler(temperature=temperature, seed=11, ignore_eos=True)
        method = MethodOptions(**options).make(model)
        return generate_texts(model, method, prompts, sampler=sampler, stop=Stop(max_bytes=120))

    expected, _ = texts(method="ar")
    for block in (1, 4, 16):
        for rule in RULES:
            found, stats = texts(method="blt-dv", block=block, **rule)
            assert found == expected
            passes = stats.decode.passes()
            assert passes["encoder"] == passes["patcher"] == stats.rounds >= passes["global"]
            if rule["unmask"] == "one-step":
                # one denoising pass and one verifying pass per round, but for rounds that draft nothing
                assert stats.rounds < passes["decoder"] <= 2 * stats.rounds
            assert 0 <= stats.accepted < stats.drafted


def test_models_and_blocks_that_do_not_fit_are_refused(tiny_bundle: TinyBundle) -> None:
    plain, blocks = open_model(tiny_bundle("lookup")), open_model(tiny_bundle("lookup", block_size=16))
    for method in ("blt-d", "blt-dv", "blt-h"):
        with pytest.raises(ModelError, match=f"trained on next bytes only; {method} needs one trained on blocks"):
            MethodOptions(method=method).make(plain)
        with pytest.raises(UsageError, match="block 17 exceeds the 16 this model was trained with; use --block 16"):
            MethodOptions(method=method, block=17).make(blocks)
        with pytest.raises(UsageError, match="--block is 0; use 1 to 16"):
            MethodOptions(method=method, block=0).make(blocks)


@pytest.mark.parametrize(
    ("name", "alpha", "gamma"),
    [("all", 0.3, 1.0), ("confidence", 1.1, 1.0), ("confidence", float("nan"), 1.0), ("prefix", -0.1, 1.0),
     ("entropy", 0.3, -1.0),
     ("entropy-max", 0.3, float("inf"))],
)  # fmt: skip
def test_rules_and_thresholds_out_of_range_are_refused(name: str, alpha: float, gamma: float) -> None:
    with pytest.raises(UsageError, match=r"use (one of|a probability|0 or)"):
        make_unmask(name, alpha, gamma)

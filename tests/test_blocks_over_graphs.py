"""Block methods over real graphs: what waits for the decoder, what a block reads, and that company changes nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from bltcli.decoding import MethodOptions
from bltcli.decoding.denoise import OneStep
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.rows import Rows
from bltcli.decoding.stop import Stop
from bltcli.layout import make_layout
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import Sampler
from bltcli.train.blocks import Blocks
from bltcli.train.diffusion import decode_with_blocks
from bltcli.vocab import MASK, IdArray, encode
from tests.conftest import TinyBundle
from tests.tiny import sample_text, tiny_model

PROMPTS = [b"", b"def f(x):", "Größe: 3 €".encode(), b"abc " * 30]
UNVERIFIED: list[dict[str, Any]] = [
    {"method": "blt-d", "block": 4, "unmask": "one-step"},
    {"method": "blt-d", "block": 16, "unmask": "confidence", "alpha": 0.02},
    {"method": "blt-d", "block": 8, "unmask": "entropy", "gamma": 9.0},
    {"method": "blt-d", "block": 8, "unmask": "prefix", "alpha": 0.02, "commit": "patches"},
    {"method": "blt-d", "block": 8, "unmask": "confidence", "alpha": 0.02, "commit": "sure"},
    {"method": "blt-d", "block": 8, "unmask": "entropy", "gamma": 9.0, "commit": "sure"},
    {"method": "blt-h", "block": 8, "unmask": "one-step", "trust": 0.031},
    {"method": "blt-h", "block": 3, "alpha": 0.02, "trust": 0.036, "ngram_draft": True},
]


def greedy(logits: np.ndarray, rows: IdArray, positions: IdArray) -> IdArray:
    chosen: IdArray = logits.argmax(-1)
    return chosen


def denoise(model: Pipeline, count: int, pending: IdArray | None = None) -> tuple[IdArray, np.ndarray]:
    blocks, logits = model.denoise(
        [sample_text(1)[:0] if pending is None else pending], np.array([count]), OneStep(), greedy
    )
    return blocks[0], logits[0]


def test_what_is_left_to_the_decoder_is_caught_up_with_to_the_bit(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup", block_size=16)
    ids = sample_text(120)
    plain = open_model(bundle)
    expected = np.concatenate([plain.extend([ids[:64]])[0, :64], plain.extend([ids[64:]])[0, :56]])
    model = open_model(bundle)
    model.extend([ids[:64]])
    model.absorb([ids[64:71]])
    model.absorb([ids[71:72]], peek=True)
    denoise(model, 8)  # runs the eight bytes as clean rows beside a block
    model.absorb([ids[72:75]])
    found = model.extend([ids[75:]])  # runs three bytes more than it gives logits for
    assert np.array_equal(found[0, :45], expected[75:])
    model.rewind(np.array([70]))
    model.absorb([ids[70:73]])
    model.rewind(np.array([71]))
    assert np.array_equal(model.extend([ids[71:90]])[0, :19], expected[71:90])
    assert model.patch_starts(0) == [s for s in plain.patch_starts(0) if s <= 90]


def trained_logits(ids: IdArray, start: int, count: int, *, ended: bool) -> np.ndarray:
    """Logits [count, 260] of a block at `start` as in training; `ended`: on the latent of a patch that ends before it,
    which the clean bytes do not read."""
    model = tiny_model("lookup", block_size=16)
    layout = model.layout(ids[None])
    latent_of_byte = layout.latent_of_byte
    if ended and not layout.closes[0, start - 1]:
        closes = layout.closes.copy()
        closes[0, start - 1] = True
        layout = make_layout(ids[None], closes, model.config.encoder)
    blocks = Blocks(
        ids=np.full((1, 1, count), MASK),
        targets=np.zeros((1, 1, count), dtype=np.int64),
        starts=np.array([[start]]),
        latents=layout.latent_of_byte[:, start - 1 : start],
        t=np.ones((1, 1), dtype=np.float32),
        weights=np.ones((1, 1, count), dtype=np.float32),
    )
    with torch.no_grad():
        layout = dataclasses.replace(layout, latent_of_byte=latent_of_byte)
        found: np.ndarray = decode_with_blocks(model, layout, blocks)[1][0, 0].numpy()
    return found


def test_after_absorbing_a_block_is_read_as_it_was_trained(tiny_bundle: TinyBundle) -> None:
    """At a patch start, and with a look at the open patch wherever it is: as if a patch ended there."""
    ids = sample_text(260)
    closes = tiny_model("lookup", block_size=16).layout(ids[None]).closes
    for start in range(200, 215):
        for peek in (False, True):
            model = open_model(tiny_bundle("lookup", block_size=16))
            model.extend([ids[:128]])
            model.absorb([ids[128:start]], peek=peek)
            _, logits = denoise(model, 8)
            assert np.abs(logits - trained_logits(ids, start, 8, ended=peek)).max() < 1e-4
            if not closes[0, start - 1]:  # negative control: it does matter
                assert np.abs(logits - trained_logits(ids, start, 8, ended=not peek)).max() > 1e-3


@pytest.mark.parametrize("options", UNVERIFIED, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unverified_texts_do_not_depend_on_their_company_or_length(
    tiny_bundle: TinyBundle, options: dict[str, Any], temperature: float
) -> None:
    bundle = tiny_bundle("lookup", block_size=16)
    sampler = Sampler(temperature=temperature, seed=4, ignore_eos=True)

    def texts(records: list[int], wanted: int) -> list[bytes]:
        model = open_model(bundle, rows=len(records))
        found, stats = generate_texts(
            model, MethodOptions(**options).make(model), [PROMPTS[r] for r in records],
            sampler=sampler, stop=Stop(max_bytes=wanted), records=records,
        )  # fmt: skip
        if options["method"] == "blt-h" and len(records) == 4:
            assert stats.drafted > 0  # bytes it did not trust
            rounds = stats.bytes_per_round_histogram
            assert sum(size * count for size, count in rounds.items()) > rounds.total() + stats.accepted  # and others
        return found

    together = texts([0, 1, 2, 3], 100)
    assert [len(text) for text in together] == [100] * 4
    for record in range(4):
        assert texts([record], 100)[0] == together[record]
    assert texts([2, 1], 61) == [together[2][:61], together[1][:61]]


def test_blocks_end_where_patches_do(tiny_bundle: TinyBundle) -> None:
    """A round commits up to its block's last patch end, and what it forgets leaves no trace: the text and its patches
    are those of a model that is given the same bytes."""
    bundle = tiny_bundle("lookup", block_size=16)
    model = open_model(bundle)
    method = MethodOptions(method="blt-d", block=11, alpha=0.02, commit="patches").make(model)
    spans, round_of = list[tuple[int, int]](), method.round

    def watched(rows: Rows) -> None:
        start = int(model.lengths[0]) + len(rows.pending[0])
        round_of(rows)
        spans.append((start, int(model.lengths[0])))

    method.round = watched  # type: ignore[method-assign]
    (text,), stats = generate_texts(
        model, method, PROMPTS[2:3], sampler=Sampler(temperature=1.0, seed=3, ignore_eos=True), stop=Stop(max_bytes=120)
    )
    ids = encode(PROMPTS[2] + text)
    plain = open_model(bundle)
    plain.extend([ids])
    starts = plain.patch_starts(0)
    assert [s for s in model.patch_starts(0) if s <= len(ids)] == starts
    assert len(spans) == stats.rounds > 5
    cut = [(start, end) for start, end in spans if end - start < 11 and end <= len(ids)]
    assert cut
    assert all(end in starts for _, end in cut)
    assert [s for start, end in spans for s in starts if start < s < end]


def test_a_hybrid_that_trusts_nothing_is_ar(tiny_bundle: TinyBundle) -> None:
    bundle, sampler = tiny_bundle("lookup", block_size=16), Sampler(temperature=0.7, seed=9, ignore_eos=True)
    found = {}
    for options in ({"method": "ar"}, {"method": "blt-h", "block": 6, "trust": 1.0}):
        model = open_model(bundle, rows=4)
        method = MethodOptions(**options).make(model)  # type: ignore[arg-type]
        found[options["method"]], stats = generate_texts(
            model, method, PROMPTS, sampler=sampler, stop=Stop(max_bytes=90)
        )
    assert found["ar"] == found["blt-h"]
    passes = stats.decode.passes()
    assert passes["patcher"] == passes["encoder"] == stats.rounds >= passes["global"]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_keeping_what_is_sure_of_nothing_is_ar(tiny_bundle: TinyBundle, temperature: float) -> None:
    """Also for a text that waits while another joins: its last byte is still to be run by the decoder."""
    bundle, sampler = tiny_bundle("lookup", block_size=16), Sampler(temperature=temperature, seed=9, ignore_eos=True)
    found = []
    for options in ({"method": "ar"}, {"method": "blt-d", "block": 6, "commit": "sure", "alpha": 1.0}):
        model = open_model(bundle, rows=3)
        method = MethodOptions(**options).make(model)  # type: ignore[arg-type]
        texts, stats = generate_texts(model, method, PROMPTS, sampler=sampler, stop=Stop(max_bytes=90))
        found.append((texts, stats.decode.passes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("options", [{"method": "ar"}, {"method": "blt-s"}, {"method": "auto"}], ids=str)
@pytest.mark.parametrize("form", ["lookup", "encoder"])
def test_copies_and_adaptive_drafts_write_what_ar_writes(
    tiny_bundle: TinyBundle, form: str, options: dict[str, Any]
) -> None:
    bundle, sampler, stop = tiny_bundle(form), Sampler(ignore_eos=True), Stop(max_bytes=120)
    model = open_model(bundle, rows=4)
    expected, _ = generate_texts(model, MethodOptions(method="ar").make(model), PROMPTS, sampler=sampler, stop=stop)
    for extra in ({"ngram_draft": True}, {"ngram_draft": True, "draft_bytes": "auto"}):
        method = MethodOptions(**options, **extra).make(model)  # type: ignore[arg-type]
        found, stats = generate_texts(model, method, PROMPTS, sampler=sampler, stop=stop)
        assert found == expected
        assert stats.drafted >= stats.copied >= stats.copied_accepted


@pytest.mark.parametrize(
    "options", [{"method": "ar"}, {"method": "blt-s"}, {"method": "blt-dv", "block": 8}, *UNVERIFIED], ids=str
)
def test_the_torch_engine_writes_the_same_bytes(tiny_bundle: TinyBundle, options: dict[str, Any]) -> None:
    bundle = tiny_bundle("lookup", block_size=16)
    found = []
    for engine in ("ort-cpu", "torch"):
        model = open_model(bundle, engine=engine, rows=2)
        method = MethodOptions(**options).make(model)
        found.append(generate_texts(model, method, PROMPTS[1:3], stop=Stop(max_bytes=60))[0])
    assert found[0] == found[1]
    assert len(found[0][0]) > 0

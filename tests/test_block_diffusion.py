"""The block diffusion objective: what is masked, what a block may see, and how its loss weighs."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
import torch

from bltcli.layout import Layout, make_layout
from bltcli.nn import Blt
from bltcli.train.blocks import block_starts, make_blocks
from bltcli.train.diffusion import ACCURACY_BINS, BlockDiffusion, decode_with_blocks, decoder_mask, masked_terms
from bltcli.vocab import BOS, EOS, MASK, PAD, encode
from tests.tiny import sample_text, tiny_model

#: BOS a b c d e | BOS f g EOS PAD PAD, patches: BOS ab cde | BOS f gE
IDS = np.concatenate([encode(b"abcde"), encode(b"fg"), [EOS, PAD, PAD]])[None]
CLOSES = np.array([[1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0]], dtype=bool)


@pytest.fixture(scope="module")
def model() -> Blt:
    return tiny_model("lookup")


def small_layout() -> Layout:
    return make_layout(IDS, CLOSES, tiny_model("lookup").config.encoder)


def test_blocks_start_at_patches_but_the_first_and_end_in_known_bytes() -> None:
    layout = small_layout()
    # a, c of the first document; f, g of the second, whose EOS is known, so that its blocks may run past it
    assert np.flatnonzero(block_starts(layout, 2, anywhere=False)[0]).tolist() == [1, 3, 7, 8]
    assert np.flatnonzero(block_starts(layout, 8, anywhere=False)[0]).tolist() == [1, 3, 7, 8]
    assert np.flatnonzero(block_starts(layout, 2, anywhere=True)[0]).tolist() == [2, 3, 4, 5, 8, 9]
    # the same row cut after "f": nobody knows what follows it
    cut = make_layout(IDS[:, :8], CLOSES[:, :8], tiny_model("lookup").config.encoder)
    assert np.flatnonzero(block_starts(cut, 4, anywhere=False)[0]).tolist() == [1, 3]


def test_a_block_holds_its_bytes_pads_past_the_end_and_reads_the_last_complete_latent() -> None:
    layout = small_layout()
    blocks = make_blocks(layout, 4, 4, np.random.default_rng(0))
    order = np.argsort(blocks.starts[0])
    assert blocks.starts[0][order].tolist() == [1, 3, 7, 8]
    byte = {name: int(encode(name.encode(), bos=False)[0]) for name in "abcdefg"}
    assert blocks.targets[0][order].tolist() == [
        [byte["a"], byte["b"], byte["c"], byte["d"]],
        [byte["c"], byte["d"], byte["e"], PAD],  # the next document is none of its business
        [byte["f"], byte["g"], EOS, PAD],
        [byte["g"], EOS, PAD, PAD],
    ]
    assert blocks.latents[0][order].tolist() == [0, 1, 3, 4]
    hidden = blocks.ids == MASK
    assert np.array_equal(blocks.ids[~hidden], blocks.targets[~hidden])
    assert (blocks.weights[blocks.targets == PAD] == 0).all()
    assert (blocks.weights[~hidden] == 0).all()
    assert (blocks.weights[hidden & (blocks.targets != PAD)] > 0).all()


def test_a_block_anywhere_reads_what_is_complete_before_the_byte_before_it() -> None:
    layout = small_layout()
    read = {}
    for seed in range(20):
        blocks = make_blocks(layout, 4, 4, np.random.default_rng(seed), random_starts=1.0)
        read |= dict(zip(blocks.starts[0].tolist(), blocks.latents[0].tolist(), strict=True))
    # "ab" is complete at b, which is pending where a block starts at c; at d, c is pending and b no longer
    assert read == {2: 0, 3: 0, 4: 1, 5: 1, 8: 3, 9: 4}


def test_the_mask_is_the_drawing_in_its_docstring() -> None:
    drawn = """
        1 . . . . . .
        1 1 . . . . .
        1 1 1 . . . .
        1 1 1 1 . . .
        1 1 1 1 1 . .
        1 1 1 . . 1 1
        1 1 1 . . 1 1
    """
    expected = np.array([[mark == "1" for mark in line.split()] for line in drawn.strip().splitlines()])
    positions, block, last = (
        torch.tensor([row]) for row in ([0, 1, 2, 3, 4, 3, 4], [-1] * 5 + [0] * 2, [0, 1, 2, 3, 4, 2, 2])
    )
    rows = positions, torch.zeros_like(positions), block, last
    assert np.array_equal(decoder_mask(*rows, None)[0], expected)
    windowed = decoder_mask(*rows, 2)[0]
    assert windowed[4].tolist() == [False, False, False, True, True, False, False]
    assert windowed[5].tolist() == [False, False, True, False, False, True, True]
    assert windowed[6].tolist() == [False, False, False, False, False, True, True]


def test_sampled_blocks_weigh_in_expectation_as_much_as_all_of_them() -> None:
    """Each masked byte weighs 1/t, each block all the blocks it stands for: the weights' expected sum is the number of
    real bytes in all blocks, 12 here, however few blocks are drawn."""
    layout, rng = small_layout(), np.random.default_rng(1)
    for count in (1, 2, 4):
        sums = [make_blocks(layout, 4, count, rng).weights.sum() for _ in range(4000)]
        bound = 4 * np.std(sums) / np.sqrt(len(sums))
        assert abs(np.mean(sums) - 12) < bound
        assert abs(np.mean(sums) - 14) > bound  # negative control


def test_masks_fall_independently_with_probability_t() -> None:
    layout, rng = small_layout(), np.random.default_rng(2)
    t, hidden = [], []
    for _ in range(3000):
        blocks = make_blocks(layout, 4, 4, rng)
        t.append(blocks.t[0])
        hidden.append(blocks.ids[0] == MASK)
    t_all, hidden_all = np.concatenate(t), np.concatenate(hidden)
    assert abs(t_all.mean() - 0.5) < 0.02
    for low in (0.0, 0.4, 0.8):
        chosen = (t_all >= low) & (t_all < low + 0.2)
        assert abs(hidden_all[chosen].mean() - t_all[chosen].mean()) < 0.02


def test_suffixes_of_every_length_are_masked_as_often_and_weigh_what_the_block_does() -> None:
    layout, rng = small_layout(), np.random.default_rng(5)
    drawn = [make_blocks(layout, 4, 1, rng, suffix=1.0) for _ in range(4000)]
    whole = [blocks for blocks in drawn if (blocks.targets != PAD).all()]
    hidden = np.concatenate([blocks.ids[0] == MASK for blocks in whole])
    lengths = hidden.sum(axis=1)
    assert (hidden == (np.arange(4) >= 4 - lengths[:, None])).all()  # the last ones
    assert np.abs(np.bincount(lengths, minlength=5)[1:] / len(lengths) - 0.25).max() < 0.05
    assert np.allclose(np.concatenate([blocks.t[0] for blocks in whole]), lengths / 4)
    patches = 4  # what the one drawn block stands for
    sums = [blocks.weights.sum() / patches for blocks in whole]
    assert set(np.round(np.divide(sums, lengths), 4)) == {1.6}  # 2B / (B + 1)
    assert abs(np.mean(sums) - 4) < 0.15
    mixed = [make_blocks(layout, 4, 1, rng, suffix=0.5).ids[0, 0] == MASK for _ in range(4000)]
    others = [row for row in mixed if (np.diff(row.astype(int)) < 0).any()]  # a masked byte before a given one
    assert 0.1 < len(others) / len(mixed) < 0.5


def test_the_loss_is_the_sum_written_by_hand() -> None:
    logits = torch.zeros(1, 1, 2, 260)
    logits[0, 0, 0, 7] = 3.0
    # uniform but for one logit: -log p(7) = log(259 + e^3) - 3 and -log p(9) = log 260
    expected = 2.0 * (np.log(259 + np.exp(3)) - 3) + 0.5 * np.log(260)
    loss, report = masked_terms(logits, torch.tensor([[[7, 9]]]), torch.tensor([[[2.0, 0.5]]]), torch.tensor([[0.6]]))
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert [int(x) for x in report["masked_accuracy_t_50_75"]] == [1, 2]
    assert [int(x) for x in report["masked_accuracy_t_0_25"]] == [0, 0]


def test_both_terms_are_sums_that_share_one_divisor() -> None:
    """A model that knows nothing loses log 260 nats per byte. Hand computed: (clean bytes + weights) * log 260."""
    model = tiny_model("lookup")
    torch.nn.init.zeros_(model.decoder.lm_head.weight)
    ids = np.stack([sample_text(96, seed) for seed in (1, 2)])
    terms = BlockDiffusion(block_sizes=(4,), blocks_per_row=3)(model, ids, False)
    rng = np.random.default_rng([0, zlib.crc32(ids.tobytes())])
    assert int(rng.choice((4,))) == 4
    weights = make_blocks(model.layout(ids), 4, 3, rng).weights.sum()
    assert int(terms.count) == 2 * 95
    assert terms.loss.item() == pytest.approx((2 * 95 + weights) * np.log(260), rel=1e-5)
    bits, count = (float(x) for x in terms.report["masked_bits_per_byte"])
    assert bits / count == pytest.approx(np.log2(260), rel=1e-5)
    terms = BlockDiffusion(block_sizes=(4,), blocks_per_row=3, block_weight=0.25)(model, ids, False)
    assert terms.loss.item() == pytest.approx((2 * 95 + 0.25 * weights) * np.log(260), rel=1e-5)


def test_training_learns_to_fill_blocks(model: Blt) -> None:
    """A text of one repeated phrase: after a few steps masked bytes are filled from their surroundings, at every t."""
    phrase = encode(b"the cat sat on the mat; " * 4, bos=False)
    rows = np.stack([np.concatenate([[BOS], np.roll(phrase, shift)]) for shift in range(8)])
    objective = BlockDiffusion(block_sizes=(4, 8), blocks_per_row=8, random_starts=0.25)
    learner = tiny_model("lookup", seed=1)
    parts = [learner.encoder, learner.global_model, learner.decoder]
    optimiser = torch.optim.AdamW([p for part in parts for p in part.parameters()], lr=6e-3)
    first = last = 0.0
    for step in range(150):
        terms = objective(learner, np.roll(rows, step, axis=0)[:4], False)
        (terms.loss / terms.count).backward()
        optimiser.step()
        optimiser.zero_grad()
        bits = float(terms.report["masked_bits_per_byte"][0] / terms.report["masked_bits_per_byte"][1])
        first, last = first or bits, bits
    right, count = (sum(float(terms.report[f"masked_accuracy_t_{b}"][i]) for b in ACCURACY_BINS) for i in (0, 1))
    assert first > 6
    assert last < 1.5
    assert right / count > 0.7


def test_clean_rows_do_not_notice_the_blocks(model: Blt) -> None:
    ids = np.stack([sample_text(96, seed) for seed in (1, 2)])
    layout = model.layout(ids)
    blocks = make_blocks(layout, 8, 5, np.random.default_rng(0))
    with torch.no_grad():
        clean, _ = decode_with_blocks(model, layout, blocks)
        assert (clean - model(layout)).abs().max() < 1e-5


def test_a_block_sees_nothing_of_the_clean_bytes_it_must_guess(model: Blt) -> None:
    """Changing the clean bytes from the block's start on, with the same patches, changes no logit of the block;
    changing the byte before it does (the negative control)."""
    ids = sample_text(96, 3)[None]
    layout = model.layout(ids)
    blocks = make_blocks(layout, 8, 1, np.random.default_rng(4))
    start = int(blocks.starts[0, 0])

    def block_logits(column: int) -> torch.Tensor:
        changed = ids.copy()
        changed[0, column:] = np.roll(ids[0, column:], 1)
        relaid = dataclasses.replace(make_layout(changed, layout.closes, model.config.encoder))
        with torch.no_grad():
            return decode_with_blocks(model, relaid, blocks)[1]

    same = block_logits(96)
    assert (block_logits(start) - same).abs().max() == 0
    assert (block_logits(start - 1) - same).abs().max() > 1e-4


def test_blocks_are_a_function_of_the_batch_and_the_seed(model: Blt) -> None:
    ids = sample_text(96, 5)[None]
    objectives = [BlockDiffusion(block_sizes=(4, 8), blocks_per_row=2, random_starts=0.5, seed=s) for s in (0, 0, 1)]
    values = [objective(model, ids, False).loss.item() for objective in objectives]
    assert values[0] == values[1] != values[2]


def test_no_block_starts_in_what_a_translation_is_asked_with_where_that_weighs_less(model: Blt) -> None:
    prompt, answer = b"en>fr\nA line to translate, of some length.\n", b"Une ligne."
    ids = np.append(encode(prompt + answer), EOS)[None]
    for random_starts in (0.0, 1.0):
        objectives = [
            BlockDiffusion(block_sizes=(4,), blocks_per_row=64, random_starts=random_starts, prompt_weight=weight)
            for weight in (1.0, 0.5)
        ]
        everywhere, answered = (o.prepare(model, ids)[1] for o in objectives)
        first = len(prompt) + 1  # of the answer
        assert everywhere.starts[everywhere.weights.any(-1)].min() < first
        assert answered.starts[answered.weights.any(-1)].min() >= first
        assert answered.weights.any()


def test_the_end_of_an_empty_document_is_worth_a_block() -> None:
    layout = make_layout(
        np.array([[BOS, EOS, PAD]]), np.array([[True, True, True]]), tiny_model("lookup").config.encoder
    )
    assert np.flatnonzero(block_starts(layout, 4, anywhere=False)[0]).tolist() == [1]

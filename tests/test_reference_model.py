"""The PyTorch model against Hugging Face's, on random tiny checkpoints and texts longer than the attention window."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bltcli.checkpoint import open_checkpoint
from bltcli.config import EncoderConfig, ModelConfig
from bltcli.layout import Layout
from bltcli.ngrams import hash_rows
from bltcli.nn import Blt
from bltcli.nn.loading import load_blt
from bltcli.vocab import IdArray, encode
from tests.helpers import FORMS, hf_logits, load_hf, random_ids, save_tiny_hf

IDS = random_ids(800)
CLOSE = {"rtol": 0.0, "atol": 1e-5}

#: Rows of six tables, ids of BOS and "A BLT has", tables of 500002 rows: computed with the public implementations.
HASHES = {
    3: [443987, 16978, 400950, 321279, 125336, 233820, 325162, 385732, 393791, 10044],
    4: [437197, 66496, 387530, 364158, 463445, 72068, 104370, 33310, 226509, 218092],
    5: [123201, 210012, 387706, 283546, 185174, 270065, 489776, 164494, 134533, 238336],
    6: [166353, 206948, 49662, 137804, 179656, 105098, 109715, 8726, 325985, 465850],
    7: [34117, 99402, 224648, 420332, 42636, 357424, 122798, 162815, 226511, 254370],
    8: [172383, 209416, 445626, 72328, 70820, 361678, 203646, 354462, 301812, 336868],
}


@torch.no_grad()
def run(model: Blt, ids: IdArray) -> tuple[torch.Tensor, Layout]:
    layout = model.layout(ids)
    return model(layout), layout


def with_patcher(model: Blt, **changes: Any) -> Blt:
    """`model` with another patching rule; the configuration of its modules is not touched by one."""
    patcher = dataclasses.replace(model.config.patcher, **changes)
    model.config = dataclasses.replace(model.config, patcher=patcher)
    return model


def assert_same_predictions(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("hf_checkpoint", FORMS, indirect=True)
def test_logits_patches_and_entropies_are_those_of_hugging_face(hf_checkpoint: Path) -> None:
    model, hf = load_blt(open_checkpoint(hf_checkpoint)), load_hf(hf_checkpoint)
    logits, layout = run(model, IDS)
    threshold = hf.config.patching_threshold
    with torch.no_grad():
        entropies, lengths, _ = hf.model.patcher(torch.from_numpy(IDS), patch_size=4, threshold=threshold)
    np.testing.assert_array_equal(layout.patch_len, lengths[:, : layout.patch_len.shape[1]].numpy())
    assert int(lengths[:, layout.patch_len.shape[1] :].sum()) == 0  # Hugging Face keeps an empty patch at the end
    torch.testing.assert_close(model.entropies(IDS), entropies, **CLOSE)
    assert_same_predictions(logits, hf_logits(hf, IDS))
    assert 3.5 < IDS.size / layout.patch_len.shape[1] < 4.6


@pytest.mark.parametrize(
    "changes",
    [
        {"local_attention_window_len": None},
        {"local_attention_window_len": 64},
        {"encoder_hash_byte_group_size": [2, 5], "encoder_hash_byte_group_nb_functions": 3},
    ],
    ids=["no-window", "window-64", "other-hashes"],
)
def test_variants_that_are_supported_equal_hugging_face(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = save_tiny_hf(tmp_path / "model", "1b", seed=3, **changes)
    logits, _ = run(load_blt(open_checkpoint(folder)), IDS)
    assert_same_predictions(logits, hf_logits(load_hf(folder), IDS))


def test_layer_counts_that_are_supported_equal_hugging_face(tmp_path: Path) -> None:
    local = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "hidden_size_global": 64,
        "num_hidden_layers": 2,
        "cross_attn_all_layers": False,
    }
    folder = save_tiny_hf(tmp_path / "model", "1b", seed=4, encoder_config=local, decoder_config=local)
    logits, _ = run(load_blt(open_checkpoint(folder)), IDS)
    assert_same_predictions(logits, hf_logits(load_hf(folder), IDS))


def test_the_window_matters_after_512_bytes_and_not_before(hf_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(hf_checkpoint)
    table = checkpoint.config.to_dict()
    for part in ("encoder", "decoder", "patcher"):
        table[part]["window"] = None
    windowed, _ = run(load_blt(checkpoint), IDS)
    without = load_blt(dataclasses.replace(checkpoint, config=ModelConfig.from_dict(table)))
    unbounded, _ = run(without, IDS)
    torch.testing.assert_close(windowed[:, :512], unbounded[:, :512], **CLOSE)
    assert (windowed[:, 512:] - unbounded[:, 512:]).abs().max() > 0.01


@pytest.mark.parametrize("longest", [1, 2, 3, 4, 8])
def test_a_maximum_patch_length_is_decided_without_looking_ahead(longest: int, hf_checkpoint: Path) -> None:
    model = with_patcher(load_blt(open_checkpoint(hf_checkpoint)), max_patch_length=longest)
    logits, layout = run(model, IDS[:, :300])
    assert layout.patch_len.max() <= longest
    for size in (1, 2, 3, 17, 100, 255):
        part, prefix = run(model, IDS[:, :size])
        np.testing.assert_array_equal(prefix.closes, layout.closes[:, :size])
        np.testing.assert_array_equal(prefix.latent_of_byte, layout.latent_of_byte[:, :size])
        np.testing.assert_array_equal(prefix.patch_len[:, :-1], layout.patch_len[:, : prefix.patch_len.shape[1] - 1])
        torch.testing.assert_close(part, logits[:, :size], **CLOSE)


@pytest.mark.parametrize("longest", [1, 2, 3, 4, 8])
def test_a_maximum_patch_length_equals_hugging_face_before_the_last_byte(longest: int, hf_checkpoint: Path) -> None:
    """Hugging Face splits by the text's length, so that its last byte may not see that its patch is full."""
    model = with_patcher(load_blt(open_checkpoint(hf_checkpoint)), max_patch_length=longest)
    hf = load_hf(hf_checkpoint)
    hf.config.max_patch_length = longest
    logits, _ = run(model, IDS[:, :300])
    assert_same_predictions(logits[:, :-1], hf_logits(hf, IDS[:, :300])[:, :-1])


def test_hash_rows_are_the_published_ones() -> None:
    sizes = tuple(HASHES)
    config = EncoderConfig(
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        intermediate_size=8,
        rope_theta=1e4,
        max_positions=64,
        window=None,
        hash_group_sizes=sizes,
        hash_vocab=500002,
    )
    ids = encode(b"A BLT has")
    assert ids.tolist() == [1, 69, 36, 70, 80, 88, 36, 108, 101, 119]
    rows = hash_rows(ids[None], np.arange(len(ids))[None], config)[0]
    for table, size in enumerate(sizes):
        assert (rows[:, table] - table * 500002).tolist() == HASHES[size], f"{size}-grams"


def test_a_packed_row_of_documents_equals_each_document_alone(hf_checkpoint: Path) -> None:
    model = load_blt(open_checkpoint(hf_checkpoint))
    documents = [random_ids(size, seed) for seed, size in enumerate((90, 1, 200, 33))]
    packed, _ = run(model, np.concatenate(documents, axis=1))
    alone = [run(model, ids)[0] for ids in documents]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), **CLOSE)


def test_the_patcher_stays_in_float32(hf_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(hf_checkpoint)
    half, full = load_blt(checkpoint, torch.bfloat16), load_blt(checkpoint)
    assert {p.dtype for p in half.patcher.parameters()} == {torch.float32}
    others = [p for name, p in half.named_parameters() if not name.startswith("patcher.")]
    assert {p.dtype for p in others} == {torch.bfloat16}
    assert not half.training
    np.testing.assert_array_equal(half.layout(IDS).closes, full.layout(IDS).closes)
    logits, _ = run(half, IDS)
    assert logits.dtype == torch.float32
    assert (logits - run(full, IDS)[0]).abs().max() < 0.3

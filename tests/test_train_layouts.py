"""A model trained on blocks fills them as well where it is used as where it was trained.

Could block rows see clean bytes of their own block in training, they would learn to copy: good there, lost in decoding.
The same measure is taken of such a model, to show that it would tell.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from bltcli.bundle import Bundle, open_bundle
from bltcli.checkpoint import open_checkpoint
from bltcli.decoding.denoise import OneStep
from bltcli.nn import Blt
from bltcli.nn.loading import load_blt
from bltcli.pipeline import Pipeline, open_model
from bltcli.train.blocks import Blocks
from bltcli.train.diffusion import decode_with_blocks
from bltcli.vocab import MASK, IdArray
from bltcli_export.exporter import export_checkpoint
from tests.trained import BLOCK, leaking, sentences, trained_model, write_trained

TEXTS = [sentences(seed) for seed in range(1, 25)]


def starts_of(model: Blt, ids: IdArray, pending: int) -> IdArray:
    """Where blocks of a text begin: at its patches, or one byte later where one byte is pending."""
    starts = np.flatnonzero(model.layout(ids[None]).closes[0]) + 1 + pending
    return starts[(starts >= 16) & (starts + BLOCK <= len(ids))]


def as_trained(model: Blt, ids: IdArray, pending: int, *, leak: bool = False) -> IdArray:
    """Guesses [S, B] of wholly masked blocks, all in one pass as in training."""
    starts, layout = starts_of(model, ids, pending), model.layout(ids[None])
    shape = (1, len(starts), BLOCK)
    blocks = Blocks(
        ids=np.full(shape, MASK),
        targets=np.zeros(shape, dtype=np.int64),
        starts=starts[None],
        latents=layout.latent_of_byte[:, starts - 1 - pending],
        t=np.ones(shape[:2], dtype=np.float32),
        weights=np.ones(shape, dtype=np.float32),
    )
    with torch.no_grad(), leaking() if leak else nullcontext():
        return decode_with_blocks(model, layout, blocks)[1][0].argmax(-1).numpy()


def as_decoded(pipeline: Pipeline, starts: IdArray, ids: IdArray, pending: int) -> IdArray:
    """The same guesses by the decoding path: prefill, then one denoising step."""
    pipeline.clear(0)
    guesses, done = [], 0
    for start in starts.tolist():
        run = start - pending
        pipeline.extend([ids[done:run]])
        done = run
        (guess,), _ = pipeline.denoise(
            [ids[run:start]], np.array([BLOCK]), OneStep(), lambda logits, rows, places: logits.argmax(-1)
        )
        guesses.append(guess)
    return np.array(guesses)


def accuracies(model: Blt, pipeline: Pipeline, pending: int, *, leak: bool = False) -> tuple[float, float]:
    """Share of bytes guessed right as trained and as decoded."""
    right: list[list[np.ndarray]] = [[], []]
    for ids in TEXTS:
        starts = starts_of(model, ids, pending)
        truth = ids[starts[:, None] + np.arange(BLOCK)]
        right[0].append(as_trained(model, ids, pending, leak=leak) == truth)
        right[1].append(as_decoded(pipeline, starts, ids, pending) == truth)
    trained, decoded = (float(np.concatenate(part).mean()) for part in right)
    return trained, decoded


@pytest.mark.parametrize("pending", [0, 1])
def test_blocks_are_filled_as_well_in_decoding_as_in_training(
    trained_checkpoint: Path, trained_bundle: Bundle, pending: int
) -> None:
    model = load_blt(open_checkpoint(trained_checkpoint))
    trained, decoded = accuracies(model, open_model(trained_bundle), pending)
    assert trained > 0.35  # the most frequent byte is right in 0.15
    assert abs(trained - decoded) < 0.03


def test_a_model_trained_with_a_leak_is_told_by_the_same_measure(tmp_path: Path) -> None:
    model = write_trained(tmp_path / "checkpoint", trained_model(steps=200, leak=True))
    bundle = export_checkpoint(
        open_checkpoint(tmp_path / "checkpoint"), tmp_path / "bundle", precision="fp32", check=False
    )
    trained, decoded = accuracies(model, open_model(open_bundle(bundle)), 0, leak=True)
    assert trained > 0.5
    assert trained - decoded > 0.2

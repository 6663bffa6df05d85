"""Training: packing never leaks across documents, a resumed run is the same run, and toy text is learned."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import load_file

from bltcli.checkpoint.names import expected_shapes
from bltcli.config import ModelConfig
from bltcli.errors import ModelError, UsageError
from bltcli.nn import Blt
from bltcli.train.config import OptimiserConfig, PhaseConfig, load_config
from bltcli.train.data import Corpus, held_out, pack, translation
from bltcli.train.loop import Figures, Trainer, learning_rate, make_optimisers
from bltcli.train.objective import NextByteObjective, PatcherObjective, asked, predicted
from bltcli.train.recipe import train
from bltcli.train.start import bytes_per_patch, calibrate, entropies
from bltcli.vocab import BOS, EOS, OFFSET, PAD, decode, encode
from tests.toy_training import RECIPE, quiet, with_blocks


def ids_of(text: bytes) -> np.ndarray:
    return np.append(encode(text), EOS)


def tiny_model(recipe: Path) -> Blt:
    torch.manual_seed(0)
    config = load_config(recipe).model
    patcher = dataclasses.replace(config.patcher, threshold_nats=5.3)
    return Blt(dataclasses.replace(config, patcher=patcher))


def losses_of(out: Path, phase: str) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(r["step"], r["bits_per_byte"]) for r in records if r["phase"] == phase]


# recipe


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seed = 7", "sede = 7", "unknown key 'sede'"),
        ("seed = 7", "seed = true", "recipe.data.seed is True, expected int"),
        ('kind = "prose"', 'kind = "verse"', "kind"),
        ("hidden_size = 64\n", "hidden_size = 65\n", "hidden_size 65"),
        ("bytes_per_patch = 4.0", "", "missing key 'bytes_per_patch'"),
    ],
)
def test_a_recipe_with_a_wrong_key_or_value_is_refused(recipe: Path, before: str, after: str, message: str) -> None:
    recipe.write_text(RECIPE.replace(before, after, 1))
    with pytest.raises(UsageError, match=message):
        load_config(recipe)


def test_the_shipped_recipe_reads_and_its_weights_stay_under_24_megabytes() -> None:
    config = load_config(Path(__file__).parents[1] / "examples" / "train-builtin-blocks.toml")
    assert 2 * sum(int(np.prod(shape)) for shape in expected_shapes(config.model).values()) < 24_000_000


# data


def test_whole_documents_are_packed_and_a_document_without_room_is_cut() -> None:
    documents = [ids_of(b"a" * n) for n in (10, 5, 3, 12)]
    packed = pack(documents, rows=2, row_bytes=16)
    texts = [decode(d) for row in packed for d in np.split(row, np.flatnonzero(row == BOS))]
    assert sorted(len(t) for t in texts if t) == [1, 3, 10, 12]  # the document of 5 found no room
    assert np.array_equal(packed[0], np.concatenate([documents[3], encode(b"a")]))


def test_a_batch_depends_on_the_seed_and_its_number_only(recipe: Path, data_root: Path) -> None:
    config = load_config(recipe).data
    first, second = Corpus(config, data_root, "train"), Corpus(config, data_root, "train")
    second.batch(3)
    assert np.array_equal(first.batch(5), second.batch(5))
    assert not np.array_equal(first.batch(5), first.batch(6))
    other = Corpus(dataclasses.replace(config, seed=8), data_root, "train")
    assert not np.array_equal(first.batch(5), other.batch(5))


def test_held_out_texts_never_reach_a_training_batch(recipe: Path, data_root: Path) -> None:
    config = load_config(recipe).data
    english = (data_root / "train/toy.en-fr.en").read_bytes().splitlines()
    dev = [line for line in english if held_out(line, config.dev_modulo)]
    assert 0 < len(dev) < len(english)
    batches = [Corpus(config, data_root, split).batch(n) for split in ("train", "dev") for n in range(20)]
    train_text = b"".join(decode(row.tolist()) + b"|" for batch in batches[:20] for row in batch)
    dev_text = b"".join(decode(row.tolist()) + b"|" for batch in batches[20:] for row in batch)
    assert not any(line in train_text for line in dev)
    assert any(line in dev_text for line in dev)


def test_documents_have_the_documented_form(recipe: Path, data_root: Path) -> None:
    corpus = Corpus(load_config(recipe).data, data_root, "train")
    rng = np.random.default_rng(0)
    pairs = [corpus.sources[0].draw(rng) for _ in range(20)]
    assert {p.split(b"\n")[0] for p in pairs} == {b"en>fr", b"fr>en"}
    assert all(p.count(b"\n") == 2 for p in pairs)
    assert translation("en>fr", b"A", b"B") == b"en>fr\nA\nB"
    prose = corpus.sources[1].draw(rng)
    assert b"to be kept and is wrapped" in prose


# objective


def test_no_loss_crosses_a_document_or_counts_padding() -> None:
    ids = np.concatenate([ids_of(b"ab"), ids_of(b"c"), [PAD, PAD]])[None]
    assert predicted(ids).tolist() == [[True, True, True, False, True, True, False, False]]


@pytest.mark.parametrize("objective", [PatcherObjective(), NextByteObjective()])
def test_the_loss_of_packed_documents_is_the_sum_of_their_own_losses(recipe: Path, objective: Any) -> None:
    model = tiny_model(recipe)
    documents = [ids_of(t) for t in (b"one document", "un deuxième, plus long".encode(), b"3")]
    packed = np.concatenate([*documents, np.full(4, PAD)])[None]
    with torch.no_grad():
        together = objective(model, packed, False)
        alone = [objective(model, d[None], False) for d in documents]
    assert together.count.item() == sum(a.count.item() for a in alone) == sum(len(d) - 1 for d in documents)
    torch.testing.assert_close(together.loss, torch.stack([a.loss for a in alone]).sum(), rtol=1e-5, atol=1e-4)


def test_what_a_translation_is_asked_with_weighs_what_the_recipe_says(recipe: Path) -> None:
    model, prompt, answer = tiny_model(recipe), b"en>fr\nOne line.\n", b"Une\nligne"
    packed = np.concatenate([ids_of(b"No tag:\n\nprose"), ids_of(prompt + answer)])[None]
    counted = asked(packed)[0].tolist()
    assert counted == [False] * 16 + [True] * (1 + len(prompt)) + [False] * (len(answer) + 1)
    assert not asked(ids_of(b"en>f")[None]).any()  # the row ends within a tag
    with torch.no_grad():
        whole, none, some = (NextByteObjective(weight)(model, packed, False) for weight in (1.0, 0.0, 0.25))
    of_prompt = whole.loss - none.loss
    assert of_prompt > 0
    torch.testing.assert_close(some.loss, none.loss + 0.25 * of_prompt)
    assert whole.count == some.count == packed.size - 2
    nats, count = some.report["bits_per_byte"]
    assert count == packed.size - 2 - len(prompt)
    torch.testing.assert_close(nats * math.log(2), none.loss)


def test_a_changed_document_leaves_its_neighbours_losses_alone(recipe: Path) -> None:
    model = tiny_model(recipe)
    first, second = ids_of(b"the first document"), ids_of(b"the second document")
    packed = np.concatenate([first, second])[None]
    changed = packed.copy()
    changed[0, 1 : len(first) - 1] = OFFSET + ord("z")
    with torch.no_grad():
        logits, others = model(model.layout(packed)), model(model.layout(changed))
    torch.testing.assert_close(logits[:, len(first) :], others[:, len(first) :], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[:, : len(first)], others[:, : len(first)])


# loop


def test_the_rate_warms_up_and_falls_to_its_final_fraction() -> None:
    phase = PhaseConfig(steps=10, learning_rate=1.0, warmup_steps=4, final_fraction=0.1)
    rates = [learning_rate(step, phase) for step in range(11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert rates[10] == pytest.approx(0.1)


def test_accumulated_batches_give_the_gradient_of_one_large_batch(
    recipe: Path, data_root: Path, tmp_path: Path
) -> None:
    config = load_config(recipe)
    phase = dataclasses.replace(config.patcher, steps=1)
    corpus = Corpus(config.data, data_root, "train")

    class Joined:
        def batch(self, number: int) -> np.ndarray:
            return np.concatenate([corpus.batch(2 * number), corpus.batch(2 * number + 1)])

    weights = []
    for data, accumulate in ((corpus, 2), (Joined(), 1)):
        model = tiny_model(recipe)
        optimiser = OptimiserConfig(accumulate=accumulate)
        trainer = Trainer(model, [model.patcher], PatcherObjective(), data, phase, optimiser, tmp_path / "s.pt")  # type: ignore[arg-type]
        trainer.run(lambda record: None)
        weights.append(model.patcher.state_dict()["layers.0.mlp.up_proj.weight"])
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stopped_in", "blocks", "muon"),
    [("patcher", False, False), ("blt", False, False), ("blt", True, False), ("blt", False, True)],
)
def test_a_resumed_run_has_exactly_the_losses_of_an_unbroken_one(
    recipe: Path,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped_in: str,
    blocks: bool,
    muon: bool,
) -> None:
    if blocks:
        with_blocks(recipe)
    config = load_config(recipe)
    config = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, muon=muon))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    figures = train(config, data_root, whole, resume=False, show=quiet)

    take_step = Trainer.take_step

    def stopping(self: Trainer, batches: Iterator[Any]) -> Figures:
        if self.state_file.stem == stopped_in and self.step == 4:
            raise KeyboardInterrupt
        return take_step(self, batches)

    monkeypatch.setattr(Trainer, "take_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(config, data_root, broken, resume=False, show=quiet)
    monkeypatch.setattr(Trainer, "take_step", take_step)
    assert train(config, data_root, broken, resume=True, show=quiet) == figures
    for phase in ("patcher", "blt"):
        assert dict(losses_of(broken, phase)) == dict(losses_of(whole, phase))
        assert len(losses_of(broken, phase)) == config.blt.steps + (phase == stopped_in)  # step 4 was taken twice
    ours, theirs = (load_file(out / "checkpoint" / "model.safetensors") for out in (whole, broken))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_recipe_with_blocks_trains_on_blocks_and_says_so(recipe: Path, data_root: Path, tmp_path: Path) -> None:
    with_blocks(recipe)
    config = load_config(recipe)
    config = dataclasses.replace(config, blt=dataclasses.replace(config.blt, steps=60, learning_rate=1e-2))
    train(config, data_root, tmp_path / "out", resume=False, show=quiet)
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    masked = [row["masked_bits_per_byte"] for row in rows if row["phase"] == "blt"]
    assert masked[0] > 7
    assert np.mean(masked[-5:]) < 5
    assert all("masked_bits_per_byte" not in row for row in rows if row["phase"] == "patcher")
    written = json.loads((tmp_path / "out" / "checkpoint" / "config.json").read_text())
    assert written["model"]["block_size"] == 8


def test_a_block_size_that_is_not_trained_is_refused(recipe: Path) -> None:
    with_blocks(recipe)
    recipe.write_text(recipe.read_text().replace("block_size = 8", "block_size = 16"))
    with pytest.raises(UsageError, match=r"model\.block_size is 16, the largest block trained is 8"):
        load_config(recipe)


def test_windows_longer_than_the_rows_of_training_are_refused(recipe: Path) -> None:
    text = recipe.read_text()
    for name in ("encoder", "decoder"):
        head, tail = text.split(f"[model.{name}]")
        recipe.write_text(f"{head}[model.{name}]{tail.replace('window = 64', 'window = 97', 1)}")
        with pytest.raises(UsageError, match=rf"model\.{name}\.window is 97, rows have 96 bytes: .* use at most 96"):
            load_config(recipe)


def test_an_earlier_run_is_neither_overwritten_nor_resumed_unasked(
    recipe: Path, data_root: Path, tmp_path: Path
) -> None:
    config = load_config(recipe)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "blt.pt").touch()
    with pytest.raises(UsageError, match="--resume"):
        train(config, data_root, tmp_path / "out", resume=False, show=quiet)


@pytest.mark.parametrize("muon", [False, True])
def test_both_losses_fall_on_a_toy_text(recipe: Path, data_root: Path, tmp_path: Path, muon: bool) -> None:
    config = load_config(recipe)
    optimiser = dataclasses.replace(config.optimiser, muon=muon)
    corpus = Corpus(config.data, data_root, "train")
    model = tiny_model(recipe)
    phase = dataclasses.replace(config.blt, steps=60, learning_rate=1e-2)
    for objective, parts in (
        (PatcherObjective(), [model.patcher]),
        (NextByteObjective(), [model.encoder, model.global_model, model.decoder]),
    ):
        records: list[dict[str, Any]] = []
        Trainer(model, parts, objective, corpus, phase, optimiser, tmp_path / "s.pt").run(records.append)
        assert records[0]["bits_per_byte"] > 7
        assert records[-1]["bits_per_byte"] < 3.5


def test_muon_takes_linear_weights_but_the_outputs_and_adamw_the_rest(recipe: Path) -> None:
    model = tiny_model(recipe)
    parts = [model.encoder, model.global_model, model.decoder]
    adamw, muon = make_optimisers(parts, OptimiserConfig(muon=True, weight_decay=0.25))
    assert isinstance(muon, torch.optim.Muon)
    names = {id(p): name for name, p in model.named_parameters() if not name.startswith("patcher.")}
    taken = [[names[id(p)] for group in each.param_groups for p in group["params"]] for each in (adamw, muon)]
    assert sorted(taken[0] + taken[1]) == sorted(names.values())
    assert "decoder.lm_head.weight" in taken[0]
    assert all(not name.endswith("_proj.weight") and "projection" not in name for name in taken[0])
    assert all(name.endswith("_proj.weight") or "projection" in name for name in taken[1])
    assert [group["weight_decay"] for each in (adamw, muon) for group in each.param_groups] == [0.25, 0.0, 0.25]
    assert len(make_optimisers(parts, OptimiserConfig())) == 1


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_in_bfloat16_loss_and_gradient_are_nearly_those_of_float32(
    recipe: Path, data_root: Path, kv_heads: int
) -> None:
    recipe.write_text(recipe.read_text().replace("num_kv_heads = 2", f"num_kv_heads = {kv_heads}"))
    model, ids = tiny_model(recipe), Corpus(load_config(recipe).data, data_root, "train").batch(0)
    losses, gradients = [], []
    for bf16 in (False, True):
        model.zero_grad()
        terms = NextByteObjective()(model, ids, bf16)
        terms.loss.backward()
        losses.append(terms.loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[1] != losses[0]
    torch.testing.assert_close(F.cosine_similarity(*gradients, dim=0), torch.tensor(1.0), rtol=0, atol=1e-2)


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_does_harm(
    recipe: Path, data_root: Path, tmp_path: Path
) -> None:
    config = load_config(recipe)
    model = tiny_model(recipe)
    torch.nn.init.constant_(model.patcher.lm_head.weight, float("nan"))
    corpus = Corpus(config.data, data_root, "train")
    trainer = Trainer(
        model, [model.patcher], PatcherObjective(), corpus, config.patcher, config.optimiser, tmp_path / "s.pt"
    )
    with pytest.raises(ModelError, match="gradient of step 1 is not finite"):
        trainer.run(lambda record: None)
    assert not (tmp_path / "s.pt").exists()


# checkpoint


def test_the_threshold_is_calibrated_to_the_wanted_patch_length(recipe: Path, data_root: Path) -> None:
    config = load_config(recipe)
    model = tiny_model(recipe)
    ids, nats = entropies(model, Corpus(config.data, data_root, "dev"))
    threshold = calibrate(config.model, ids, nats, 3.0)
    patcher = dataclasses.replace(config.model.patcher, threshold_nats=threshold)
    assert bytes_per_patch(dataclasses.replace(config.model, patcher=patcher), ids, nats) == pytest.approx(3.0, abs=0.1)


def test_the_command_writes_a_checkpoint_of_the_documented_form(recipe: Path, data_root: Path, tmp_path: Path) -> None:
    from bltcli.commands.train import command

    arguments = [str(recipe), "--data", str(data_root), "--out", str(tmp_path / "out"), "--steps", "2"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert not result.stdout
    folder = tmp_path / "out" / "checkpoint"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["format_version"]) == ("bltcli-checkpoint", 1)
    assert config["training"]["blt"]["steps"] == 2
    model = ModelConfig.from_dict(config["model"])
    tensors = load_file(folder / "model.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == expected_shapes(model)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    Blt(model).load_state_dict(tensors)

"""Quantised weights: how they are rounded, that the graphs compute with exactly those, and that rows stay exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bltcli.bundle import Bundle, open_bundle
from bltcli.checkpoint import open_checkpoint, write_checkpoint
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.errors import ModelError
from bltcli.graphs import GRAPHS
from bltcli.models import builtin_checkpoint, resolve_bundle
from bltcli.pipeline import open_model
from bltcli.quantised import BLOCKS, STEPS, Quantised, block_of, dequantise, quantise, rounded
from bltcli.sampling import Sampler
from bltcli_engines.onnx_weights import read_weights
from bltcli_export import parity
from bltcli_export.exporter import export_checkpoint
from tests.conftest import TinyBundle
from tests.test_pipeline import run, uneven
from tests.tiny import sample_text, tiny_checkpoint

KINDS: list[Quantised] = ["int8", "int4"]
FORMS = ["lookup", "encoder", "projected"]
PROMPTS = [b"en>fr\nOpen the file.\n", b"It was a dark night", b"", bytes(range(30, 90))]


# how weights are rounded


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_is_off_by_half_a_step_of_its_block_at_most(kind: Quantised) -> None:
    weight = np.random.default_rng(0).standard_normal((24, 256)).astype(np.float32)
    weight[3, 5] = 40  # costs its own block precision, and no other
    numbers, scales = quantise(weight, 128, kind)
    assert np.abs(numbers).max() == STEPS[kind]
    assert scales.shape == (24, 2)
    off = np.abs(dequantise(numbers, scales) - weight).reshape(24, 2, 128)
    assert (off <= scales[..., None] * 0.5001).all()
    largest = np.abs(weight).reshape(24, 2, 128).max(-1)
    np.testing.assert_allclose(scales, largest / STEPS[kind], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_representable_comes_back_and_zeros_stay_zeros(kind: Quantised) -> None:
    rng = np.random.default_rng(1)
    numbers = rng.integers(-STEPS[kind], STEPS[kind] + 1, (8, 64)).astype(np.int8)
    numbers[:, 0] = STEPS[kind]
    weight = dequantise(numbers, np.full((8, 1), 0.25, np.float32))
    weight[2] = 0
    numbers[2] = 0
    assert np.array_equal(quantise(weight, 64, kind)[0], numbers)
    assert np.array_equal(rounded("decoder.layers.0.mlp.up_proj.weight", weight, kind), weight)


def test_the_rule_says_which_weights_and_which_blocks() -> None:
    name = "global_model.layers.0.mlp.down_proj.weight"
    found = {inputs: block_of(name, (8, inputs)) for inputs in (2816, 5632, 1280, 352, 192, 48, 40)}
    assert found == {2816: 128, 5632: 128, 1280: 128, 352: 32, 192: 64, 48: 16, 40: None}
    kept = ["patcher.layers.0.mlp.up_proj.weight", "decoder.lm_head.weight", "encoder.embed_tokens.weight"]
    assert [block_of(other, (8, 128)) for other in kept] == [None] * 3
    assert block_of("decoder.norm.weight", (128,)) is None


# the graphs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_graphs_compute_with_the_rounded_weights(tmp_path: Path, form: str, kind: Quantised) -> None:
    """The gate passes as tightly as at fp32 when activations are not rounded, and loosely as the bundle runs."""
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", form)
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", precision=kind))
    record = bundle.manifest["parity"]
    assert record["tolerance"] == 1e-4
    assert max(record["differences"].values()) < 1e-5
    as_run = record["as_run"]["differences"]
    assert 1e-4 < max(as_run.values()) < record["as_run"]["tolerance"]
    assert as_run["patcher entropy"] < 1e-6, "the patcher is not quantised"


def test_a_gate_against_unrounded_weights_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "lookup")
    monkeypatch.setattr("bltcli_export.twins.rounded", lambda name, weight, kind: weight)
    with pytest.raises(ModelError, match=r"parity check failed: .* tolerance 1e-04"):
        export_checkpoint(checkpoint, tmp_path / "bundle", precision="int8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_holds_whole_numbers_in_standard_onnx(tiny_bundle: TinyBundle, kind: Quantised) -> None:
    full, small = tiny_bundle("lookup"), tiny_bundle("lookup", kind)
    for name in GRAPHS:
        path = small.graph_paths[name]
        onnx.checker.check_model(str(path))
        model = onnx.load(path, load_external_data=False)
        assert {node.domain for node in model.graph.node} == {""}
        blocked = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
        assert bool(blocked) == (name != "patcher")
        assert {len(node.input) for node in blocked} <= {2}, "no zero points, which TensorRT would refuse"
    assert small.parameters == full.parameters
    assert small.weight_bytes["patcher"] == full.weight_bytes["patcher"]
    bits = {"int8": 8, "int4": 4}[kind]
    # blocks of 32 have a scale of 32 bits each; the head, norms and inputs of the graph stay as they are
    ratio = full.weight_bytes["global"] / small.weight_bytes["global"]
    assert 32 / (bits + 1) * 0.8 < ratio < 32 / (bits + 0.5)
    assert small.manifest["quantised"]["bits"] == bits
    counts = small.manifest["quantised"]["weights_by_block"]
    assert sum(counts.values()) == sum(small.parameters.values())
    assert set(counts) <= {*map(str, BLOCKS), "float32"}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_read_back_are_the_checkpoints_rounded(tiny_bundle: TinyBundle, kind: Quantised) -> None:
    full, small = (
        read_weights(b.config, b.graph_paths) for b in (tiny_bundle("encoder"), tiny_bundle("encoder", kind))
    )
    assert full.keys() == small.keys()
    for name, weight in full.items():
        assert np.array_equal(small[name], rounded(name, weight, kind)), name
    changed = [name for name in full if not np.array_equal(full[name], small[name])]
    assert any("global_model" in name for name in changed)
    assert not any(name.startswith("patcher.") for name in changed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_torch_engine_runs_the_same_weights(tiny_bundle: TinyBundle, kind: Quantised) -> None:
    bundle, ids = tiny_bundle("lookup", kind), sample_text(80)
    ours, theirs = (open_model(bundle, engine=engine).extend([ids])[0, :80] for engine in ("ort-cpu", "torch"))
    assert 0 < np.abs(ours - theirs).max() < 0.5  # activations rounded to int8, or not


def test_tables_have_sixteen_bits(tiny_bundle: TinyBundle) -> None:
    tables = tiny_bundle("lookup", "int8").tables()
    assert (tables.byte.dtype, tables.hashed.dtype) == (np.float16, np.float16)


def test_golden_outputs_stand_in_for_torch_more_loosely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "find_spec", lambda name: None)
    source = open_checkpoint(builtin_checkpoint())
    bundle = open_bundle(export_checkpoint(source, tmp_path / "bundle", precision="int8"))
    record = bundle.manifest["parity"]
    assert record["against"] == "golden outputs"
    assert 1e-4 < record["differences"]["logits"] < record["tolerance"] == 0.1
    assert record["differences"]["entropy"] < 1e-4
    weights = {name: weight.numpy().copy() for name, weight in source.weights.items()}
    weights["patcher.layers.0.mlp.down_proj.weight"][0] += 0.05
    write_checkpoint(tmp_path / "wrong", source.config, weights, licence={}, metadata={})
    (tmp_path / "wrong" / "golden.safetensors").write_bytes((source.path / "golden.safetensors").read_bytes())
    with pytest.raises(ModelError, match="parity check failed: entropy"):
        export_checkpoint(open_checkpoint(tmp_path / "wrong"), tmp_path / "other", precision="int8")


# rows stay exact


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_rows_do_not_depend_on_their_call(tiny_bundle: TinyBundle, form: str, kind: Quantised) -> None:
    bundle, ids = tiny_bundle(form, kind), sample_text(700)
    alone = run(open_model(bundle), ids, [1] * 700)
    assert np.array_equal(alone, run(open_model(bundle), ids, [128] * 6))
    assert np.array_equal(alone, run(open_model(bundle, threads=2), ids, uneven(700, 1)))
    assert np.array_equal(alone[:200], run(open_model(bundle, rows=4), ids[:200], [1] * 200, row=2))  # single rows
    beside = open_model(bundle, rows=3)
    beside.extend([sample_text(90, 5), ids[:0], sample_text(40, 6)])
    assert np.array_equal(alone, run(beside, ids, uneven(700, 2), row=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_speculation_writes_what_plain_decoding_writes(tiny_bundle: TinyBundle, form: str, kind: Quantised) -> None:
    bundle = tiny_bundle(form, kind)
    for sampler in (Sampler(ignore_eos=True), Sampler(temperature=0.9, seed=3, ignore_eos=True)):
        plain = texts(bundle, "ar", 1, sampler, 70)
        assert texts(bundle, "blt-s", 5, sampler, 70) == plain


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_does_on_the_built_in_model(kind: Quantised) -> None:
    bundle = open_bundle(resolve_bundle(None, kind, lambda line: None))
    for sampler in (Sampler(ignore_eos=True), Sampler(temperature=0.9, seed=3, ignore_eos=True)):
        plain = texts(bundle, "ar", 1, sampler, 100)
        assert texts(bundle, "blt-s", 8, sampler, 100) == plain
        assert texts(bundle, "blt-s", 3, sampler, 100, rows=1) == plain


def texts(bundle: Bundle, method: str, k: int, sampler: Sampler, count: int, rows: int = 0) -> list[bytes]:
    """PROMPTS continued, all at once or one after another on one model."""
    stop, made = Stop(max_bytes=count), MethodOptions(method=method, draft_bytes=k)
    model = open_model(bundle, rows=rows or len(PROMPTS))
    if not rows:
        return generate_texts(model, made.make(model), PROMPTS, sampler=sampler, stop=stop)[0]
    found = []
    for record, prompt in enumerate(PROMPTS):
        found += generate_texts(model, made.make(model), [prompt], sampler=sampler, stop=stop, records=[record])[0]
    return found

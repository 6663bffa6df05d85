"""State is exact: however a text reaches the model, each byte gets bitwise the same logits."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from bltcli.bundle import Bundle, open_bundle
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.setting import parse_setting
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.graphs import GRAPHS
from bltcli.pipeline import Pipeline, open_model, patch_text
from bltcli.sampling import FloatArray, Sampler
from bltcli.texts import PREFILL_ROWS
from bltcli.vocab import IdArray, decode, encode
from bltcli_engines.few_rows import FewRows
from bltcli_engines.onnxruntime_engine import OrtEngine
from bltcli_engines.protocol import Arrays
from bltcli_export.exporter import export_checkpoint
from tests.conftest import TinyBundle
from tests.tiny import WINDOW, sample_text, tiny_checkpoint

FORMS = ["lookup", "encoder", "projected"]
LENGTH = 1300  # longer than the buffers, which slide


def run(model: Pipeline, ids: IdArray, sizes: list[int], row: int = 0) -> FloatArray:
    """Logits [len, 260] of one text run in pieces of the given sizes."""
    logits, start = [], 0
    for size in sizes:
        pieces = [ids[:0]] * model.rows
        pieces[row] = ids[start : start + size]
        logits.append(model.extend(pieces)[row, : len(pieces[row])].copy())
        start += size
    assert start >= len(ids)
    return np.concatenate(logits)


def uneven(total: int, seed: int) -> list[int]:
    rng, sizes = np.random.default_rng(seed), []
    while sum(sizes) < total:
        sizes.append(min(int(rng.integers(1, 40)), total - sum(sizes)))
    return sizes


@pytest.fixture(params=FORMS)
def tiny(request: pytest.FixtureRequest, tiny_bundle: TinyBundle) -> Bundle:
    return tiny_bundle(request.param)


def test_onnx_equals_the_torch_model_over_a_whole_text(tiny_bundle: TinyBundle) -> None:
    from tests.tiny import tiny_model

    for form in FORMS:
        model, ids = tiny_model(form), sample_text(LENGTH)
        with torch.no_grad():
            expected = model(model.layout(ids[None]))[0].numpy()
        found = run(open_model(tiny_bundle(form)), ids, uneven(LENGTH, 3))
        assert np.abs(found - expected).max() < 1e-4
        assert (found.argmax(-1) == expected.argmax(-1)).all()


def test_byte_by_byte_equals_prefill_equals_uneven_pieces(tiny: Bundle) -> None:
    ids = sample_text(LENGTH)
    alone = run(open_model(tiny), ids, [1] * LENGTH)
    assert np.array_equal(alone, run(open_model(tiny), ids, [128] * 11))
    assert np.array_equal(alone, run(open_model(tiny), ids, uneven(LENGTH, 1)))


def test_rewound_equals_never_advanced(tiny: Bundle) -> None:
    ids, rng = sample_text(LENGTH), np.random.default_rng(5)
    straight, model = run(open_model(tiny), ids, [7] * (LENGTH // 7 + 1)), open_model(tiny)
    found = []
    for start in range(0, LENGTH, 7):
        wrong = rng.integers(4, 260, int(rng.integers(1, 17)))
        model.extend([wrong])
        model.rewind(np.array([start]))
        piece = ids[start : start + 7]
        found.append(model.extend([piece])[0, : len(piece)].copy())
    assert np.array_equal(straight, np.concatenate(found))


def test_drafting_leaves_no_trace(tiny: Bundle) -> None:
    ids, model = sample_text(300), open_model(tiny)
    straight, found = run(open_model(tiny), ids, [5] * 60), []
    for start in range(0, 300, 5):
        if start:
            model.draft(ids[start : start + 1], np.array([6]), lambda logits, rows, positions: logits.argmax(-1))
        found.append(model.extend([ids[start : start + 5]])[0, :5].copy())
    assert np.array_equal(straight, np.concatenate(found))


def test_graphs_with_other_windows_share_rows_that_see_the_same(tiny: Bundle) -> None:
    model, shared = open_model(tiny), 0
    model.make_room(32)
    for start, (other, window) in itertools.product(range(12), itertools.permutations((None, 5, 8), 2)):
        starts = np.array([start])
        last, alone = model.span(starts, 2, other), model.span(starts, 2, window)
        found = model.span(starts, 2, window, last)
        shared += found is last
        assert found.place["attn_bias"].tolist() == alone.place["attn_bias"].tolist()
        assert found.positions.tolist() == alone.positions.tolist()
        assert found.ids.tolist() == alone.ids.tolist()
    assert shared == 4 * 4 + 2 * 7  # two rows from 0 to 3 fit into windows of 5, from 0 to 6 into those of 8


def test_a_batch_of_mixed_lengths_equals_each_text_alone(tiny: Bundle) -> None:
    texts = [sample_text(n, seed) for seed, n in enumerate([700, 1300, 40, 555])]
    alone = [run(open_model(tiny), text, uneven(len(text), 9)) for text in texts]
    model, rng = open_model(tiny, rows=4), np.random.default_rng(2)
    found: list[list[FloatArray]] = [[], [], [], []]
    starts = np.zeros(4, dtype=int)
    while any(starts[row] < len(text) for row, text in enumerate(texts)):
        pieces = [text[starts[row] : starts[row] + int(rng.integers(0, 30))] for row, text in enumerate(texts)]
        if not any(map(len, pieces)):
            continue
        logits = model.extend(pieces)
        for row, piece in enumerate(pieces):
            found[row].append(logits[row, : len(piece)].copy())
            starts[row] += len(piece)
    for row in range(4):
        assert np.array_equal(alone[row], np.concatenate(found[row]))


def test_the_global_model_runs_for_the_rows_that_closed_a_patch(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of six rows do at most bytes; what they get is what a text alone gets."""
    sizes: list[int] = []
    take = FewRows.run

    def run_few(few: FewRows, feeds: Arrays) -> Arrays:
        sizes.append(len(feeds["batch_rows"]))
        return take(few, feeds)

    monkeypatch.setattr(FewRows, "run", run_few)
    texts = [sample_text(150, seed) for seed in range(6)]
    alone = [run(open_model(tiny), text, [1] * len(text)) for text in texts]
    assert not sizes
    model = open_model(tiny, rows=6)
    found = np.stack([model.extend([text[at : at + 1] for text in texts])[:, 0].copy() for at in range(150)], axis=1)
    assert np.array_equal(found, np.stack(alone))
    calls = len(sizes)
    assert 20 < calls < 150
    assert set(sizes) == {2, 4}  # an even number: single rows count only in pairs
    whole = open_model(tiny, rows=3)  # too few rows to choose among them
    for at in range(150):
        logits = whole.extend([text[at : at + 1] for text in texts[:3]])[:, 0]
        assert np.array_equal(logits, found[:3, at])
    assert model.ledger.work.passes()["patcher"] == whole.ledger.work.passes()["patcher"]
    assert model.ledger.work.kv_bytes < 2 * whole.ledger.work.kv_bytes
    assert len(sizes) == calls


@pytest.mark.parametrize(("texts", "rows"), [(1, 2), (2, 1), (3, 2), (4, 1)])
def test_an_even_number_of_texts_runs_one_row_each(
    tiny: Bundle, texts: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[str, tuple[int, ...]]] = []
    run_graph = OrtEngine.run

    def record(engine: OrtEngine, feeds: Arrays) -> Arrays:
        shapes.append((engine.spec.name, feeds["position_ids"].shape))
        return run_graph(engine, feeds)

    model = open_model(tiny, rows=texts)
    model.extend([sample_text(20)] * texts)
    monkeypatch.setattr(OrtEngine, "run", record)
    for at in range(9):
        model.extend([np.array([100 + at])] * texts)
    assert set(shapes) == {(graph, (texts, rows)) for graph in GRAPHS}


def test_a_cleared_row_starts_anew(tiny: Bundle) -> None:
    ids, model = sample_text(200), open_model(tiny, rows=2)
    first = run(model, ids, [50] * 4, row=1)
    run(model, sample_text(90, 8), [90], row=0)
    model.clear(1)
    assert np.array_equal(first, run(model, ids, [20] * 10, row=1))


@pytest.mark.parametrize(("head_dim", "step"), [(32, 512), (64, 256), (96, 128)])
def test_buffers_slide_in_steps_that_leave_every_value_as_it_was(
    tmp_path: Path, head_dim: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "lookup", head_dim=head_dim)
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp32", check=False))
    ids, model, sizes = sample_text(LENGTH), open_model(bundle), uneven(LENGTH, 4)
    found = run(model, ids, sizes)
    assert model.byte_cache.bases[0] >= LENGTH - sizes[-1] - WINDOW - step
    assert model.byte_cache.bases[0] % step == 0
    monkeypatch.setattr("bltcli.texts.slide_step", lambda _: 2 * LENGTH)
    still = open_model(bundle)
    assert np.array_equal(found, run(still, ids, sizes))
    assert still.byte_cache.bases[0] == 0


@pytest.mark.parametrize("texts", [1, 6])
def test_latents_slide_away_and_leave_every_value_as_it_was(
    tiny: Bundle, texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece is followed by some bytes that are taken back, as a draft's are."""
    ids, sizes, draft = sample_text(LENGTH), uneven(LENGTH, 4), sample_text(30, 9)

    def logits(model: Pipeline) -> list[FloatArray]:
        found, start = [], 0
        for number, size in enumerate(sizes):
            rows = [number % texts, (number + 1) % texts][:texts]  # of a batch, two texts at a time
            pieces = [ids[start : start + size] if row in rows else ids[:0] for row in range(texts)]
            found.append(model.extend(pieces)[rows[0], :size].copy())
            lengths = model.lengths.copy()
            model.extend([draft if row in rows else ids[:0] for row in range(texts)])
            model.rewind(lengths)
            start += size
        return found

    still, model = open_model(tiny, rows=texts), open_model(tiny, rows=texts)
    monkeypatch.setattr("bltcli.texts.LATENT_SLOTS", 2 * LENGTH)
    expected = logits(still)
    monkeypatch.setattr("bltcli.texts.LATENT_SLOTS", 48)
    for found, once in zip(logits(model), expected, strict=True):
        assert np.array_equal(found, once)
    assert not still.latent_cache.bases.any()
    assert model.latent_cache.bases.all()
    assert model.latent_cache.capacity < still.latent_cache.capacity


@pytest.mark.parametrize("texts", [1, 4])
def test_methods_write_the_same_while_latents_slide(
    tiny_bundle: TinyBundle, texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, written = open_model(tiny_bundle("lookup", block_size=16), rows=texts), {}
    prompts = [b"slide " * (number + 1) for number in range(texts)]
    for slots in (2 * LENGTH, 16):
        monkeypatch.setattr("bltcli.texts.LATENT_SLOTS", slots)
        for setting in ("blt-s k=4", "blt-d block=4", "blt-dv block=4", "blt-h block=4"):
            method = parse_setting(setting)[0].make(model)
            stop = Stop(max_bytes=200)
            found, _ = generate_texts(model, method, prompts, sampler=Sampler(ignore_eos=True), stop=stop)
            assert found == written.setdefault(setting, found)
            assert model.latent_cache.bases.any() == (slots == 16)


@pytest.mark.parametrize("texts", [1, 6])
def test_a_dropped_model_is_freed_at_once(tiny: Bundle, texts: int) -> None:
    model = open_model(tiny, rows=texts)
    model.extend([sample_text(20)] * texts)
    model.nursery.extend([sample_text(20)])
    seen = [weakref.ref(model), weakref.ref(model.nursery), weakref.ref(model.engines["global"].engine)]
    gc.collect()
    gc.disable()  # what only the garbage collector frees is hundreds of megabytes, for as long as it likes
    try:
        del model
        assert [at() for at in seen] == [None] * 3
    finally:
        gc.enable()


def test_one_global_pass_per_patch_when_going_byte_by_byte(tiny: Bundle) -> None:
    model = open_model(tiny)
    run(model, sample_text(300), [1] * 300)
    passes = model.ledger.work.passes()
    assert passes["global"] == int(model.patches[0])
    assert passes["patcher"] == passes["decoder"] == 300
    reads_states = tiny.config.decoder.input == "encoder"
    assert passes["encoder"] == (300 if reads_states else passes["global"])  # what nothing reads yet can wait


def test_at_most_one_global_pass_per_call(tiny: Bundle) -> None:
    model = open_model(tiny)
    run(model, sample_text(300), [20] * 15)
    assert model.ledger.work.passes() == {"patcher": 15, "encoder": 15, "global": 15, "decoder": 15}


def test_the_unpadded_opt_out_stays_close(tiny: Bundle) -> None:
    ids = sample_text(300)
    padded = run(open_model(tiny), ids, [1] * 300)
    assert np.abs(padded - run(open_model(tiny, exact=False), ids, [1] * 300)).max() < 1e-4


def test_the_torch_engine_agrees(tiny: Bundle) -> None:
    ids = sample_text(700)
    found = run(open_model(tiny, engine="torch"), ids, uneven(700, 4))
    assert np.abs(found - run(open_model(tiny), ids, [100] * 7)).max() < 1e-4


def test_patches_of_a_text_put_together_are_the_text(tiny: Bundle) -> None:
    data = bytes(range(256)) * 2
    patches = patch_text(tiny, data)
    assert b"".join(patch for patch, _ in patches) == data
    assert all(len(patch) == len(entropies) for patch, entropies in patches)
    limit = tiny.config.patcher.max_patch_length
    assert limit is None or max(len(patch) for patch, _ in patches) <= limit
    threshold = tiny.config.patcher.threshold_nats
    opened_by_entropy = [entropies[0] > threshold for _, entropies in patches[1:]]
    assert limit is not None or all(opened_by_entropy)


def test_the_context_is_as_long_as_its_patches_allow(tiny_bundle: TinyBundle) -> None:
    """100 patches of one to eight bytes hold far more than 100 bytes; only where they are used up does the text end."""
    bundle = tiny_bundle("lookup", max_patches=100)
    data = decode(sample_text(3000).tolist())
    assert 50 < len(patch_text(bundle, data[:200])) < 100
    with pytest.raises(
        UsageError, match=r"the text has 2999 bytes, the model's context is full of patches after \d{3}"
    ):
        patch_text(bundle, data)
    with pytest.raises(UsageError, match=r"the text has 5000 bytes, the model's context holds 4095"):
        patch_text(bundle, bytes(5000))


@pytest.mark.parametrize("form", ["encoder", "lookup"])
def test_an_endless_patch_outlives_the_window(
    tiny_bundle: TinyBundle, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no maximum length and a threshold that is never reached, all bytes are one open patch; its states are kept
    however far the buffers would have slid, and it closes as one patch. No call takes more rows than one may."""
    from tests.tiny import tiny_model

    bundle = tiny_bundle(form, bytes_per_patch=400, bounded=False)
    model = tiny_model(form, bytes_per_patch=400, bounded=False)
    ids = np.concatenate([encode(b"a" * 1200), sample_text(400)[1:]])
    layout = model.layout(ids[None])
    assert layout.patch_len.max() > 700
    with torch.no_grad():
        expected = model(layout)[0].numpy()
    run_graph, most = OrtEngine.run, 0

    def measure(engine: OrtEngine, feeds: Arrays) -> Arrays:
        nonlocal most
        if engine.spec.name != "global":
            most = max(most, feeds["position_ids"].shape[1])
        return run_graph(engine, feeds)

    monkeypatch.setattr(OrtEngine, "run", measure)
    found = run(open_model(bundle), ids, uneven(len(ids), 6))
    assert np.abs(found - expected).max() < 1e-4
    assert 64 < most <= PREFILL_ROWS if form == "lookup" else most <= 40
    assert np.array_equal(found, run(open_model(bundle), ids, [1] * len(ids)))

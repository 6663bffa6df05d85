"""The methods over a toy model with a known law, and over real graphs: speculation changes nothing but the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import Chunk, generate
from bltcli.decoding.stop import Output, Stop
from bltcli.errors import UsageError
from bltcli.pipeline import open_model
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli.vocab import BOS, EOS, OFFSET, PAD, encode
from tests.conftest import TinyBundle
from tests.toy import ToyModel, chain, random_law

A, B, C, D = (OFFSET + b for b in b"abcd")
ABC = chain(A, B, C)
ALWAYS_D = chain(D) + np.eye(260, dtype=np.float32)[D] * 9


def decode(
    model: ToyModel,
    method: str,
    k: int = 4,
    prompt: bytes = b"a",
    stop: Stop | None = None,
    sampler: Sampler | None = None,
) -> tuple[bytes, str | None, DecodeStats]:
    stats = DecodeStats()
    chunks = list(
        generate(
            model,
            MethodOptions(method=method, draft_bytes=k).make(model),
            [prompt],
            sampler=sampler or Sampler(),
            stop=stop or Stop(max_bytes=12),
            stats=stats,
        )
    )
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    return b"".join(c.data for c in chunks), chunks[-1].finish_reason, stats


def test_every_counter_of_a_scripted_run_when_all_drafts_are_right() -> None:
    text, reason, stats = decode(ToyModel(ABC, ABC), "blt-s", k=4)
    assert (text, reason) == (b"bcabcabcabca", "length")
    # the prompt gives 1 byte, two rounds 5 each, the last is asked for the 1 byte that is left and drafts none
    assert (stats.prompt_bytes, stats.new_bytes, stats.rounds) == (1, 12, 3)
    assert (stats.drafted, stats.accepted, stats.acceptance_rate) == (8, 8, 1.0)
    assert dict(stats.bytes_per_round_histogram) == {5: 2, 1: 1}
    assert stats.bytes_per_round == 11 / 3
    # a round is four drafting passes and one pass of everything
    assert stats.decode.passes() == {"patcher": 3, "encoder": 3, "global": 3, "decoder": 3 + 8}
    assert stats.prefill.passes() == {"patcher": 1, "encoder": 1, "global": 1, "decoder": 1}
    assert stats.decode.weight_bytes == 3 * (1 + 2 + 100 + 10) + 8 * 10
    assert stats.decode.kv_bytes == 3 * 4 + 8
    assert (stats.patches, stats.bytes_per_patch) == (11, 1.0)


def test_every_counter_when_no_draft_is_right() -> None:
    text, _, stats = decode(ToyModel(ABC, ALWAYS_D), "blt-s", k=4)
    assert text == b"bcabcabcabca"
    assert (stats.rounds, stats.accepted) == (11, 0)
    # k = 4 until fewer bytes are left than that: 8 rounds of 4, then 3, 2, 1, 0 ... of the bytes still wanted
    assert stats.drafted == sum(min(4, left - 1) for left in range(11, 0, -1))
    assert dict(stats.bytes_per_round_histogram) == {1: 11}


def test_ar_commits_one_byte_per_round_and_drafts_nothing() -> None:
    text, _, stats = decode(ToyModel(ABC, ALWAYS_D), "ar")
    assert text == b"bcabcabcabca"
    assert (stats.rounds, stats.drafted, stats.acceptance_rate) == (11, 0, None)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_self_speculation_equals_ar_on_random_laws(k: int, temperature: float) -> None:
    law = random_law(1)
    guess = law + random_law(2, 0.7)
    sampler = Sampler(temperature=temperature, seed=5, ignore_eos=True, top_p=0.9 if k == 3 else 1.0)
    stop = Stop(max_bytes=200)
    expected = decode(ToyModel(law, guess), "ar", stop=stop, sampler=sampler)[0]
    found, _, stats = decode(ToyModel(law, guess), "blt-s", k=k, stop=stop, sampler=sampler)
    assert found == expected
    assert 0 < stats.accepted < stats.drafted


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize("method", ["ar", "blt-s"])
def test_eos_ends_the_text_wherever_it_falls_in_a_draft(method: str, offset: int) -> None:
    ids = [A, *(OFFSET + 100 + i for i in range(offset)), EOS]
    law = chain(*ids)
    law[EOS] = ABC[A]  # what would follow EOS must never be seen
    text, reason, stats = decode(ToyModel(law, law), method, k=4)
    assert (text, reason) == (bytes(100 + i for i in range(offset)), "eos")
    assert stats.new_bytes == offset
    text, reason, _ = decode(ToyModel(law, law), method, sampler=Sampler(ignore_eos=True))
    assert (len(text), reason) == (12, "length")


@pytest.mark.parametrize("method", ["ar", "blt-s"])
@pytest.mark.parametrize("stop", [b"cab", b"bcabca", b"b", b"abcabcab"])
def test_a_stop_string_matches_across_rounds_and_is_not_output(method: str, stop: bytes) -> None:
    text, reason, stats = decode(ToyModel(ABC, ABC), method, k=2, stop=Stop(max_bytes=40, strings=(b"zzz", stop)))
    assert reason == "stop"
    assert text == (b"bca" * 9)[: (b"bca" * 9).index(stop)]
    assert stats.new_bytes == len(text)


def test_what_might_become_a_stop_string_is_held_back_and_released() -> None:
    output = Output(Stop(max_bytes=9, strings=(b"abcd", b"bx")))
    assert output.add(encode(b"za", bos=False).tolist()) == b"z"
    assert output.add(encode(b"b", bos=False).tolist()) == b""
    assert output.add(encode(b"c", bos=False).tolist()) == b""
    assert output.add(encode(b"c", bos=False).tolist()) == b"abcc"
    assert output.add(encode(b"ab", bos=False).tolist()) == b""
    assert output.end("context") == b"ab"


def test_n_bytes_means_n_bytes_even_if_a_round_commits_more() -> None:
    for n in range(1, 12):
        text, reason, stats = decode(ToyModel(ABC, ABC), "blt-s", k=8, stop=Stop(max_bytes=n))
        assert (len(text), reason, stats.new_bytes) == (n, "length", n)


@pytest.mark.parametrize("context", [3, 4, 9, 10])
def test_the_context_ends_every_method_at_the_same_byte(context: int) -> None:
    texts = {
        method: decode(ToyModel(ABC, ABC, context=context), method, k=4, stop=Stop(max_bytes=50))[:2]
        for method in ("ar", "blt-s")
    }
    assert texts["ar"] == texts["blt-s"]
    assert texts["ar"][1] == "context"
    assert len(texts["ar"][0]) == context - 1


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(UsageError, match="the prompt has 3 bytes, the model's context holds 2"):
        decode(ToyModel(ABC, ABC, context=4), "ar", prompt=b"abc")


def test_texts_of_a_batch_do_not_wait_for_each_other_and_come_out_as_alone() -> None:
    law = random_law(3)
    sampler = Sampler(temperature=1.0, seed=1)
    prompts = [b"a", b"bcd", b"", b"xyz" * 20]

    def texts(rows: list[int], method: str) -> list[bytes]:
        model = ToyModel(law, law, rows=len(rows))
        found = dict.fromkeys(rows, b"")
        chunks = generate(
            model,
            MethodOptions(method=method, draft_bytes=3).make(model),
            [prompts[row] for row in rows],
            sampler=sampler,
            stop=Stop(max_bytes=300),
            stats=DecodeStats(),
            records=rows,
        )
        for chunk in chunks:
            found[chunk.record] += chunk.data
        return list(found.values())

    together = texts([0, 1, 2, 3], "blt-s")
    assert together == [texts([row], "ar")[0] for row in range(4)]
    assert len({len(text) for text in together}) > 1  # they ended at their own times


def test_stopping_early_keeps_the_counters() -> None:
    stats, model = DecodeStats(), ToyModel(ABC, ABC)
    chunks = generate(
        model,
        MethodOptions(method="blt-s", draft_bytes=2).make(model),
        [b"a"],
        sampler=Sampler(),
        stop=Stop(max_bytes=100),
        stats=stats,
    )
    first: Chunk = next(chunks)
    chunks.close()
    assert first.data == b"b"
    assert stats.new_bytes == 1
    assert stats.wall_s > 0


@pytest.mark.parametrize(("name", "k"), [("blt-s", 0), ("blt-s", 65), ("blt-q", 4)])
def test_methods_and_k_out_of_range_are_refused(name: str, k: int) -> None:
    with pytest.raises(UsageError, match=r"--method|--draft-bytes"):
        MethodOptions(method=name, draft_bytes=k).make(ToyModel(ABC, ABC))


@pytest.mark.parametrize("form", ["lookup", "encoder", "projected"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_self_speculation_equals_ar_over_real_graphs(tiny_bundle: TinyBundle, form: str, temperature: float) -> None:
    bundle = tiny_bundle(form)
    rng = np.random.default_rng(0)
    prompts = [b"", b"def f(x):\n    return x", rng.bytes(40), "Größe: 3 €".encode()]
    sampler = Sampler(temperature=temperature, seed=11, ignore_eos=True)

    def texts(method: str, k: int, prompts: list[bytes]) -> tuple[list[bytes], DecodeStats]:
        model, stats = open_model(bundle, rows=len(prompts)), DecodeStats()
        found = [b""] * len(prompts)
        for chunk in generate(
            model,
            MethodOptions(method=method, draft_bytes=k).make(model),
            prompts,
            sampler=sampler,
            stop=Stop(max_bytes=150),
            stats=stats,
        ):
            found[chunk.record] += chunk.data
        return found, stats

    expected = [texts("ar", 1, prompts)[0], [texts("ar", 1, [prompts[0]])[0][0]]]
    assert expected[0][0] == expected[1][0]
    for k in (1, 4, 16):
        found, stats = texts("blt-s", k, prompts)
        assert found == expected[0]
        assert stats.drafted > stats.accepted > 0
        passes = stats.decode.passes()
        assert passes["global"] <= stats.rounds == passes["patcher"]
        if form == "lookup":
            assert passes["encoder"] == stats.rounds


def test_greedy_ar_through_onnx_equals_hugging_face_generate(hf_folder: object, tmp_path: Path) -> None:
    import torch

    from bltcli.bundle import open_bundle
    from bltcli.checkpoint import open_checkpoint
    from bltcli_export.exporter import export_checkpoint
    from tests.helpers import load_hf

    for form in ("1b", "7b", "gqa"):
        folder = hf_folder(form)  # type: ignore[operator]  # a fixture that makes folders
        bundle = open_bundle(export_checkpoint(open_checkpoint(folder), tmp_path / form, precision="fp32", check=False))
        for prompt in (b"A BLT has", b"\xff\x00 "):
            ids = torch.from_numpy(encode(prompt))[None]
            expected = load_hf(folder).generate(
                ids,
                max_new_tokens=64,
                do_sample=False,
                use_cache=False,
                suppress_tokens=[0, BOS, PAD],
                eos_token_id=EOS,
            )[0, len(prompt) + 1 :]
            model = open_model(bundle)
            chunks = generate(
                model,
                MethodOptions(method="ar", draft_bytes=1).make(model),
                [prompt],
                sampler=Sampler(),
                stop=Stop(max_bytes=64),
                stats=DecodeStats(),
            )
            text = b"".join(chunk.data for chunk in chunks)
            assert encode(text, bos=False).tolist() == [i for i in expected.tolist() if i != EOS]

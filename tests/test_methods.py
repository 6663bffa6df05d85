"""All methods over a toy model with a known law: outputs, every counter, every boundary."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from bltcli.decoding import METHODS, MethodOptions
from bltcli.decoding.denoise import OfLogits
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli.vocab import EOS, OFFSET
from tests.toy import ToyModel, chain, random_law

A, B, C, D = (OFFSET + b for b in b"abcd")
ABC = chain(A, B, C)
ALWAYS_D = chain(D) + np.eye(260, dtype=np.float32)[D] * 9
EVERY: list[dict[str, Any]] = [
    {"method": "ar"},
    {"method": "ar", "ngram_draft": True},
    {"method": "blt-s", "draft_bytes": 4},
    {"method": "blt-s", "draft_bytes": "auto"},
    {"method": "blt-s", "draft_bytes": 3, "ngram_draft": True},
    {"method": "blt-d", "block": 4},
    {"method": "blt-d", "block": 8, "unmask": "one-step"},
    {"method": "blt-d", "block": 4, "commit": "patches"},
    {"method": "blt-d", "block": 4, "commit": "sure"},
    {"method": "blt-d", "block": 4, "commit": "sure", "alpha": 1.0},
    {"method": "blt-dv", "block": 4},
    {"method": "blt-dv", "block": 5, "unmask": "entropy", "gamma": 1.0, "ngram_draft": True},
    {"method": "blt-h", "block": 4, "trust": 0.5},
    {"method": "blt-h", "block": 4, "trust": 1.0, "ngram_draft": True},
    {"method": "auto"},
]
EXACT = [o for o in EVERY if MethodOptions(**o).verified]


def names(options: dict[str, Any]) -> str:
    return " ".join(map(str, options.values()))


def run(
    options: dict[str, Any],
    law: np.ndarray = ABC,
    guess: np.ndarray = ABC,
    prompt: bytes = b"a",
    stop: Stop | None = None,
    sampler: Sampler | None = None,
    context: int = 4096,
) -> tuple[bytes, DecodeStats]:
    model = ToyModel(law, guess, context=context)
    method = MethodOptions(**options).make(model)
    texts, stats = generate_texts(model, method, [prompt], sampler=sampler, stop=stop or Stop(max_bytes=12))
    return texts[0], stats


@pytest.mark.parametrize("options", EVERY, ids=names)
def test_every_method_writes_what_a_law_it_is_sure_of_says(options: dict[str, Any]) -> None:
    for wanted in (1, 2, 3, 4, 5, 11, 12, 40):
        text, stats = run(options, stop=Stop(max_bytes=wanted))
        assert text == (b"bca" * 20)[:wanted]
        assert stats.new_bytes == wanted


@pytest.mark.parametrize("options", EXACT, ids=names)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_methods_that_verify_write_what_ar_writes_however_bad_the_drafts(
    options: dict[str, Any], temperature: float
) -> None:
    law = random_law(1)
    for guess in (law, law + random_law(2, 0.7), ALWAYS_D):
        sampler, stop = Sampler(temperature=temperature, seed=5, ignore_eos=True, top_p=0.9), Stop(max_bytes=150)
        expected, _ = run({"method": "ar"}, law, guess, stop=stop, sampler=sampler)
        assert run(options, law, guess, stop=stop, sampler=sampler)[0] == expected


@pytest.mark.parametrize("options", EVERY, ids=names)
@pytest.mark.parametrize("offset", range(1, 8))
def test_eos_ends_the_text_wherever_it_falls(options: dict[str, Any], offset: int) -> None:
    ids = [A, *(OFFSET + 100 + i for i in range(offset)), EOS]
    law = chain(*ids)
    law[EOS] = ABC[A]  # what would follow EOS must never be seen
    text, stats = run(options, law, law)
    assert text == bytes(100 + i for i in range(offset))
    assert stats.new_bytes == offset


@pytest.mark.parametrize("options", EVERY, ids=names)
@pytest.mark.parametrize("stop", [b"cab", b"bcabca", b"b", b"abcabcab"])
def test_a_stop_string_is_found_across_blocks(options: dict[str, Any], stop: bytes) -> None:
    text, stats = run(options, stop=Stop(max_bytes=40, strings=(b"zzz", stop)))
    assert text == (b"bca" * 9)[: (b"bca" * 9).index(stop)]
    assert stats.new_bytes == len(text)


@pytest.mark.parametrize("options", EVERY, ids=names)
@pytest.mark.parametrize("context", [3, 4, 5, 9, 10])
def test_every_method_fills_the_context_to_its_last_byte(options: dict[str, Any], context: int) -> None:
    """The last byte that is predicted needs no place of its own, but a byte of a block does."""
    text, _ = run(options, stop=Stop(max_bytes=50), context=context)
    in_a_block = options["method"] == "blt-d" and options.get("commit") != "sure"
    assert text == (b"bca" * 20)[: context - 1 - in_a_block]


@pytest.mark.parametrize("options", EVERY, ids=names)
def test_a_text_does_not_depend_on_how_much_is_wanted_or_on_its_company(options: dict[str, Any]) -> None:
    law = random_law(3)
    sampler = Sampler(temperature=1.0, seed=1)
    prompts = [b"a", b"bcd", b"", b"xyz" * 20]
    model = ToyModel(law, law + random_law(4, 0.5), rows=4)
    method = MethodOptions(**options).make(model)
    together, _ = generate_texts(model, method, prompts, sampler=sampler, stop=Stop(max_bytes=90))
    for record, (prompt, expected) in enumerate(zip(prompts, together, strict=True)):
        for wanted in (7, 90):
            alone = ToyModel(law, law + random_law(4, 0.5))
            texts, _ = generate_texts(
                alone, MethodOptions(**options).make(alone), [prompt], sampler=sampler, stop=Stop(max_bytes=wanted),
                records=[record],
            )  # fmt: skip
            assert texts[0] == expected[:wanted]


def passes(stats: DecodeStats) -> tuple[int, int, int, int]:
    p, e, g, d = stats.decode.passes().values()
    return p, e, g, d


def test_counters_of_block_diffusion_by_hand() -> None:
    # 1 byte comes of the prompt; 3 blocks of 4, the last of which runs over the 12 wanted
    _, stats = run({"method": "blt-d", "block": 4, "unmask": "one-step"})
    assert (stats.rounds, stats.drafted, stats.acceptance_rate) == (3, 0, None)
    assert dict(stats.bytes_per_round_histogram) == {4: 3}
    assert passes(stats) == (3, 3, 3, 3)
    assert stats.decode.weight_bytes == 3 * (1 + 2 + 100 + 10)
    # with a bound that none of the bytes meets, one byte is settled per pass
    _, stats = run({"method": "blt-d", "block": 4, "unmask": "confidence", "alpha": 1.0})
    assert passes(stats) == (3, 3, 3, 12)
    # what was committed last is never run: the first byte and two blocks were
    assert (stats.patches, stats.patch_bytes) == (9, 9)


@pytest.mark.parametrize(("commit", "histogram"), [("block", {7: 2}), ("patches", {6: 2})])
def test_blocks_that_end_with_patches_by_hand(
    monkeypatch: pytest.MonkeyPatch, commit: str, histogram: dict[int, int]
) -> None:
    """Patches of three: the first is BOS, a, and b, which comes of the prompt. 11 more bytes are wanted. A block of
    seven bytes holds two whole patches."""
    monkeypatch.setattr(ToyModel, "patch_bytes", 3)
    text, stats = run({"method": "blt-d", "block": 7, "unmask": "one-step", "commit": commit})
    assert text == b"bcabcabcabca"
    assert dict(stats.bytes_per_round_histogram) == histogram


def test_counters_of_what_is_sure_by_hand() -> None:
    """A round is one pass of each graph, whatever it keeps: blocks of four here, or as many as the rule reveals."""
    sure = {"method": "blt-d", "block": 4, "commit": "sure"}
    text, stats = run({**sure, "unmask": "one-step"})
    assert (text, dict(stats.bytes_per_round_histogram), passes(stats)) == (b"bcabcabcabca", {4: 3}, (3, 3, 3, 3))
    text, stats = run({**sure, "alpha": 1.0})
    assert (text, dict(stats.bytes_per_round_histogram), passes(stats)) == (b"bcabcabcabca", {1: 11}, (11,) * 4)
    # the next byte is the full model's, those behind it are a guess
    text, stats = run({**sure, "unmask": "one-step", "block": 2}, ABC, ALWAYS_D, stop=Stop(max_bytes=3))
    assert (text, dict(stats.bytes_per_round_histogram)) == (b"bcd", {2: 1})


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_is_sure_is_ar_where_no_second_byte_is(temperature: float) -> None:
    law = random_law(1)
    sampler, stop = Sampler(temperature=temperature, seed=5, ignore_eos=True), Stop(max_bytes=150)
    expected, _ = run({"method": "ar"}, law, ALWAYS_D, stop=stop, sampler=sampler)
    options = {"method": "blt-d", "block": 4, "commit": "sure", "alpha": 1.0}
    assert run(options, law, ALWAYS_D, stop=stop, sampler=sampler)[0] == expected


def test_counters_of_diffusion_with_verification_by_hand() -> None:
    # rounds keep 4 + 1 bytes of a right draft: 1 + 5 + 5 bytes, and the last drafts nothing
    _, stats = run({"method": "blt-dv", "block": 4, "unmask": "one-step"})
    assert (stats.rounds, stats.drafted, stats.accepted) == (3, 8, 8)
    assert dict(stats.bytes_per_round_histogram) == {5: 2, 1: 1}
    assert passes(stats) == (3, 3, 3, 2 + 3)
    # none is right: each of 11 rounds keeps the full model's byte
    _, stats = run({"method": "blt-dv", "block": 4, "unmask": "one-step"}, ABC, ALWAYS_D)
    assert (stats.rounds, stats.accepted, dict(stats.bytes_per_round_histogram)) == (11, 0, {1: 11})
    assert stats.drafted == sum(min(4, left - 1) for left in range(11, 0, -1))
    assert passes(stats) == (11, 11, 11, 10 + 11)


def test_counters_of_the_hybrid_by_hand() -> None:
    one_step = {"method": "blt-h", "block": 4, "unmask": "one-step"}
    # trusts everything: b comes of the prompt, and each round adds the full model's byte and three of the block's
    _, stats = run({**one_step, "trust": 0.0})
    assert dict(stats.bytes_per_round_histogram) == {1: 1, 4: 2}
    assert (passes(stats), stats.drafted) == ((3, 3, 3, 3), 0)
    # trusts nothing: the same bytes, each verified by the pass that guesses the next ones
    _, stats = run({**one_step, "trust": 1.0})
    assert dict(stats.bytes_per_round_histogram) == {1: 1, 4: 2, 2: 1}
    assert (passes(stats), stats.drafted, stats.accepted) == ((4, 4, 4, 4), 7, 7)
    # guesses nothing: ar, in as many passes
    _, stats = run({"method": "blt-h", "block": 4, "alpha": 1.0})
    assert (dict(stats.bytes_per_round_histogram), passes(stats), stats.drafted) == ({1: 11}, (11,) * 4, 0)
    # guesses are wrong: after a refused draft there is none
    _, stats = run({**one_step, "trust": 1.0}, ABC, ALWAYS_D)
    assert (dict(stats.bytes_per_round_histogram), passes(stats), stats.accepted) == ({1: 11}, (11,) * 4, 0)
    assert stats.drafted == 3 + 3 + 3 + 3 + 1


def test_the_hybrid_verifies_only_bytes_it_is_not_sure_of() -> None:
    """The chain a b c d is sure but for what follows d: a, or rarely d again."""
    law = chain(A, B, C, D)
    law[D, D] = 8.5
    text, stats = run({"method": "blt-h", "block": 2, "unmask": "one-step", "trust": 0.9}, law, law,
                      stop=Stop(max_bytes=40))  # fmt: skip
    assert text == (b"bcda" * 10)
    assert stats.drafted == stats.accepted > 0
    rounds = stats.bytes_per_round_histogram
    verified = rounds.total() + stats.accepted  # the full model's bytes and kept drafts
    assert sum(size * count for size, count in rounds.items()) > verified  # others were committed as they were
    assert stats.decode.passes()["decoder"] == rounds.total()


def test_copies_are_counted_and_verified() -> None:
    prompt = b"the name is Zaphod Beeblebrox. I said: the name is Zap"
    law = random_law(8)
    copying = {"method": "ar", "ngram_draft": True}
    expected, _ = run({"method": "ar"}, law, law, prompt, Stop(max_bytes=60))
    text, stats = run(copying, law, law, prompt, Stop(max_bytes=60))
    assert text == expected
    assert stats.drafted == stats.copied >= stats.copied_accepted == stats.accepted
    # a text that goes round is copied from itself: after a period and a match, whole copies are right
    _, stats = run(copying, prompt=b"abcabc", stop=Stop(max_bytes=100))
    assert stats.copied_accepted == stats.copied > 80
    assert stats.rounds < 12


@pytest.mark.parametrize("options", [{"block": 1}, {"block": 3}], ids=names)
def test_one_byte_at_a_time_draws_from_the_chain_itself(options: dict[str, Any]) -> None:
    """The rule of unverified sampling: the toy's conditionals are exact, so revealing byte by byte, in whatever order,
    draws whole blocks from the chain. Revealing all at once draws independent marginals: the negative control."""
    law = np.full((260, 260), -30, dtype=np.float32)
    law[np.ix_([A, B, C], [A, B, C])] = np.log([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.6, 0.1]])
    transition = OfLogits(law).probabilities
    runs, stop = 2000, Stop(max_bytes=4)
    sampler = Sampler(temperature=1.0, seed=2)

    def distance(unmask: dict[str, Any]) -> float:
        found: Counter[bytes] = Counter()
        model = ToyModel(law, law, rows=100)
        for start in range(0, runs, 100):
            method = MethodOptions(method="blt-d", **options, **unmask).make(model)
            texts, _ = generate_texts(
                model, method, [b"a"] * 100, sampler=sampler, stop=stop, records=range(start, start + 100)
            )
            found.update(texts)
        total = 0.0
        for number in range(81):
            ids = [A, *(A + number // 3**i % 3 for i in range(4))]
            p = float(np.prod([transition[i, j] for i, j in itertools.pairwise(ids)]))
            total += abs(p - found[bytes(i - OFFSET for i in ids[1:])] / runs)
        return total / 2

    bound = 0.5 * np.sqrt(81 / runs) * 1.5  # of a sample of this size from the law itself
    assert distance({"unmask": "confidence", "alpha": 1.0}) < bound
    assert distance({"unmask": "entropy", "gamma": 0.0}) < bound
    if options["block"] > 1:
        assert distance({"unmask": "one-step"}) > 1.5 * bound


def test_options_out_of_range_are_refused() -> None:
    for options, reason in (
        ({"method": "blt-q"}, f"--method is 'blt-q'; use one of {', '.join(METHODS)}"),
        ({"draft_bytes": 0}, "--draft-bytes is 0; use 1 to 64, or auto"),
        ({"draft_bytes": 65}, "--draft-bytes is 65"),
        ({"trust": 1.5}, "--trust is 1.5; use a probability"),
        ({"method": "blt-d", "ngram_draft": True}, "needs a method that verifies"),
        ({"unmask": "some"}, "--unmask is 'some'; use one of"),
        ({"commit": "some"}, "--commit is 'some'; use one of block, patches, sure"),
        ({"unmask": "confidence", "alpha": 2.0}, "--alpha is 2.0"),
        ({"unmask": "entropy", "gamma": -1.0}, "--gamma is -1.0"),
    ):
        with pytest.raises(UsageError, match=reason):
            MethodOptions(**options)  # type: ignore[arg-type]

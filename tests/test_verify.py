"""Proofs on one's own machine: what passes, what is found, and how a difference is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bltcli import differences
from bltcli.decoding import MethodOptions
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.stop import Stop
from bltcli.differences import Difference, Run, explain
from bltcli.pipeline import open_model
from bltcli.sampling import Sampler
from bltcli.verify import Check, Verification
from bltcli.vocab import OFFSET, encode
from tests.cli_support import here
from tests.conftest import TinyBundle

PROMPTS = [b"def f(x):", b"", b"abc abc abc"]


def test_a_good_bundle_passes_every_check(tiny_bundle: TinyBundle) -> None:
    proof = Verification(tiny_bundle("lookup", block_size=16), "auto", PROMPTS, new_bytes=40)
    checks = {check.name: check for check in proof.checks()}
    assert all(check.ok for check in checks.values()), checks
    assert {"files", "rows independent of their call", "the PyTorch model", "blt-dv equals ar, sampled"} <= set(checks)
    assert "padding of --exact costs" in checks["without padding (--no-exact)"].detail


def ar(bundle: object, prompt: bytes, wanted: int = 40) -> Run:
    model = open_model(bundle)  # type: ignore[arg-type]
    texts, _ = generate_texts(
        model,
        MethodOptions(method="ar").make(model),
        [prompt],
        sampler=Sampler(ignore_eos=True),
        stop=Stop(max_bytes=wanted),
    )
    return Run(texts[0], model.patch_starts(0), int(model.lengths[0]))


def test_a_difference_is_judged_by_the_margin_of_its_first_decision(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle("lookup", block_size=16)
    prompt, expected = b"def f(x):", ar(bundle, b"def f(x):")
    ids = encode(prompt + expected.text[:20])
    model = open_model(bundle)
    scores = model.extend([ids])[0, len(ids) - 1]
    ours, runner_up, last = (
        expected.text[20] + OFFSET,
        int(np.argsort(scores[4:])[-2]) + 4,
        int(scores[4:].argmin()) + 4,
    )

    def judged(other: int, *, promised: bool = False) -> Difference:
        text = expected.text[:20] + bytes([other - OFFSET]) + expected.text[21:]
        return explain(
            bundle, "auto", prompt, 0, expected, replace(expected, text=text), Sampler(), "blt-s", promised=promised
        )

    close, far = judged(runner_up), judged(last)
    assert (close.offset, close.decision) == (far.offset, far.decision) == (20, "byte")
    assert close.margin == pytest.approx(scores[ours] - scores[runner_up], abs=1e-5)
    assert far.margin == pytest.approx(scores[ours] - scores[last], abs=1e-5)
    assert far.bug
    monkeypatch.setitem(differences.NEAR_TIE, "fp32", close.margin * 1.01)
    assert not judged(runner_up).bug
    assert judged(last).bug
    assert judged(runner_up, promised=True).bug  # where equality is promised to the bit


def test_a_flipped_boundary_before_the_byte_is_the_decision(tiny_bundle: TinyBundle) -> None:
    bundle = tiny_bundle("lookup", block_size=16)
    expected = ar(bundle, b"def f(x):")
    start = next(s for s in expected.patch_starts if s > 15)
    starts = [s for s in expected.patch_starts if s != start]
    found = Run(expected.text[:30] + b"\x00", starts, expected.length)
    verdict = explain(bundle, "auto", b"def f(x):", 0, expected, found, Sampler(), "blt-s", promised=False)
    assert (verdict.offset, verdict.decision) == (30, "patch")
    model = open_model(bundle)
    model.extend([encode(b"def f(x):" + expected.text[:30])])
    entropy = float(model.engines["patcher"].outputs["entropy"][0, start - 1])
    assert verdict.margin == pytest.approx(abs(entropy - bundle.config.patcher.threshold_nats), abs=1e-5)


def test_a_method_that_writes_something_else_is_found(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier that believes every draft."""
    from bltcli.decoding import rows

    monkeypatch.setattr(rows, "count_agreed", lambda draft, own: len(draft))
    proof = Verification(tiny_bundle("lookup", block_size=16), "auto", PROMPTS, new_bytes=40)
    checks = list(proof.speculation(["blt-s k=4"]))
    assert not any(check.ok for check in checks)
    assert all(difference.bug for check in checks for difference in check.differences)


def test_verify_prints_what_holds_and_ends_with_5_when_something_does_not(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = str(tiny_bundle("lookup", block_size=16).path)
    lines = tmp_path / "prompts.txt"
    lines.write_bytes(b"one\r\ntwo\n\xff\n")
    done = here("verify", folder, "--prompts", str(lines), "-n", "12", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert len(report["checks"]) == 4 + 2 * (4 + 3) + 1
    monkeypatch.setattr(Verification, "golden", lambda self: Check("golden outputs", False, "off by 1"))
    done = here("verify", folder, "--count", "1", "-n", "4")
    assert done.returncode == 5
    assert b"FAIL  golden outputs: off by 1\n" in done.stdout
    lines.write_bytes(b"")
    done = here("verify", folder, "--prompts", str(lines))
    assert (done.returncode, done.stdout) == (2, b"")

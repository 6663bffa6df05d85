"""What `bltcli generate` writes, where, and how it ends; in processes of its own."""

from __future__ import annotations

import json
from pathlib import Path

from bltcli.bandwidth import paper_gb
from tests.cli_support import CONTEXT, generate, home, one_line

STATISTICS = {
    "prompt_bytes", "new_bytes", "wall_s", "prefill_s", "ttfb_s", "bytes_per_s", "rounds", "drafted", "accepted",
    "acceptance_rate", "bytes_per_round", "patches", "bytes_per_patch", "nfe", "text_nfe", "prefill_nfe",
    "weight_bytes_read", "kv_bytes_read", "paper_gb", "peak_rss_bytes", "engine", "precision", "method", "k",
    "seed", "bundle_sha256", "finish_reason",
}  # fmt: skip


def test_stdout_is_the_generated_bytes_and_stderr_is_empty() -> None:
    done = generate("-n", "50")
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 50, b"")


def test_every_method_and_draft_length_gives_the_same_bytes() -> None:
    sampled = ("-n", "60", "--temperature", "0.9", "--seed", "3")
    expected = generate(*sampled, "--method", "ar").stdout
    assert len(expected) == 60
    for k in ("1", "8", "64"):
        assert generate(*sampled, "-k", k).stdout == expected
    assert generate(*sampled[:-1], "4").stdout != expected


def test_a_prompt_is_taken_and_echoed_byte_for_byte(tmp_path: Path) -> None:
    prompt = bytes(range(256)) + b"\r\n[bold]\xff\xfe\n\n"
    (tmp_path / "prompt").write_bytes(prompt)
    piped = generate("-n", "9", "--echo", data=prompt).stdout
    assert piped.startswith(prompt)
    assert len(piped) == len(prompt) + 9
    assert generate("-n", "9", "--echo", "-", data=prompt).stdout == piped
    assert generate("-n", "9", "--echo", str(tmp_path / "prompt")).stdout == piped
    assert generate("-n", "9", "--echo", "-p", "é\n").stdout.startswith("é\n".encode())


def test_the_newline_at_the_end_of_stdin_is_part_of_the_prompt() -> None:
    generate("-n", "1", "--stats-json", "stats.json", data=b"ab\n")
    assert json.loads((home() / "stats.json").read_bytes())["prompt_bytes"] == 3


def test_an_empty_prompt_is_legal() -> None:
    done = generate("-n", "5", data=b"")
    assert (done.returncode, len(done.stdout)) == (0, 5)
    assert generate("-n", "5", "-p", "").stdout == done.stdout


def test_output_ends_before_the_stop_string() -> None:
    whole = generate("-n", "60").stdout
    escaped = "".join(f"\\x{byte:02x}" for byte in whole[20:23])
    assert generate("-n", "60", "--stop", escaped).stdout == whole[: whole.find(whole[20:23])]


def test_the_end_of_the_context_is_said_and_no_failure() -> None:
    done = generate("-n", "100000", "--stats-json", "stats.json", data=b"x" * (CONTEXT - 20))
    assert done.returncode == 0
    assert "context" in one_line(done)
    assert json.loads((home() / "stats.json").read_bytes())["finish_reason"] == "context"
    assert generate("-q", "-n", "100000", data=b"x" * (CONTEXT - 20)).stderr == b""


def test_statistics_have_their_keys_and_agree_with_the_output() -> None:
    done = generate("-n", "40", "--stats-json", "stats.json")
    facts = json.loads((home() / "stats.json").read_bytes())
    manifest = json.loads((home() / "bundle" / "manifest.json").read_bytes())
    parameters = {name: graph["parameters"] for name, graph in manifest["graphs"].items()}
    assert set(facts) >= STATISTICS
    assert (facts["new_bytes"], facts["prompt_bytes"], facts["finish_reason"]) == (40, 4, "length")
    assert (facts["method"], facts["k"], facts["engine"], facts["precision"]) == ("blt-s", "auto", "ort-cpu", "fp32")
    assert facts["paper_gb"] == paper_gb(facts["nfe"], parameters)
    assert (done.stderr, len(facts["bundle_sha256"])) == (b"", 64)


def test_statistics_for_people_go_to_stderr() -> None:
    done = generate("-n", "10", "--stats", "--method", "ar")
    assert len(done.stdout) == 10
    assert b"generated  10 bytes" in done.stderr
    assert b"\x1b" not in done.stderr


def test_a_refused_prompt_leaves_the_statistics_file_alone(tmp_path: Path) -> None:
    done = generate("--stats-json", str(tmp_path / "stats.json"), data=b"x" * 2 * CONTEXT)
    assert done.returncode == 2
    assert "context holds" in one_line(done)
    assert not list(tmp_path.iterdir())

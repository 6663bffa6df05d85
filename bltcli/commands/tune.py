"""`bltcli tune`: find what --method auto should do here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bltcli import __version__, render, settings, streams
from bltcli.commands import engine_option, json_option, model_option, options, precision_option
from bltcli.commands.decoding import sampling_options, take_sampler

if TYPE_CHECKING:
    from bltcli.bench.tune import Found
    from bltcli.graphs import Precision
    from bltcli.sampling import Sampler

PIECES = 4  # of a long sample text
PIECE_BYTES = 256
SHOWN = 12  # settings


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `tune`."""

    text_file: str | None
    model: str | None
    precision: Precision | None
    engine: str
    quality: float | None
    max_bytes: int
    sampler: Sampler
    state: str | None
    again: bool
    json: bool
    progress: bool | None


class Quality(click.ParamType[str]):
    """ "exact", or a share of bytes."""

    name = "quality"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "exact":
            return "exact"
        try:
            share = float(value)
        except ValueError:
            self.fail(f"{value!r} is neither 'exact' nor a share", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{value} is no share from 0 to 1", param, ctx)
        return str(share)


@click.command(
    epilog="""
The sample is what you generate from: a text, of which some pieces are continued, or a FILE.jsonl with one
{"prompt": TEXT} per line. Settings take turns; the slower ones drop out; one is chosen only if it is faster than ar by
more than the noise of the repeats, else ar itself. What was measured is appended to a state file at once, so that an
interrupted search goes on where it was.

The profile is kept per bundle, engine and machine, and is what --method auto does from then on; deleting the file that
is named at the end undoes it. With --quality exact, auto writes the bytes of ar as before. With --quality SHARE it may
not: then bltcli generate -v --method auto says which method it uses.

\b
Examples:
  printf 'Once upon a time, in a land far away' | bltcli tune -n 16
  printf 'Once upon a time, in a land far away' | bltcli tune -n 16 --json
  bltcli generate -p 'Once upon a time' -n 16 --method auto -v""",
)
@click.argument("text_file", required=False, type=click.Path())
@options(
    model_option,
    engine_option,
    precision_option,
    click.option("--quality", type=Quality(), default="exact", show_default=True, metavar="exact|SHARE",
                 help="exact: only methods that write the bytes of ar. A share, 0.9 say: also those of whose bytes at "
                      "least so many are those of ar, at the same place."),
    click.option("-n", "--max-bytes", type=int, default=256, show_default=True, metavar="N",
                 help="Bytes to generate at most, per piece."),
    sampling_options,
    click.option("--state", metavar="FILE", default=None,
                 help="Keep what was measured in this file.  [default: one per search, in bltcli's cache]"),
    click.option("--again", is_flag=True, help="Forget what an earlier search measured."),
    json_option,
    click.option("--progress/--no-progress", default=None,
                 help="Show progress on stderr.  [default: if stderr is a terminal]"),
    settings.verbosity_options,
)  # fmt: skip
def command(**values: Any) -> None:
    """Find the fastest method for this machine and the text in TEXT_FILE or on stdin, and have --method auto use it."""
    quality = values.pop("quality")
    run(Options(quality=None if quality == "exact" else float(quality), sampler=take_sampler(values), **values))


def run(o: Options) -> None:
    from bltcli.bench.measure import Task, open_contenders
    from bltcli.bench.profiles import Profile, profile_path, write_profile
    from bltcli.bench.prompts import read_prompts
    from bltcli.bench.run import open_bundles
    from bltcli.bench.tune import State, candidates, most_turns, search, search_key
    from bltcli.decoding.stop import Stop
    from bltcli.models import cache_dir

    # options
    stop = Stop(max_bytes=o.max_bytes)
    data = streams.read_input(None, o.text_file, example="bltcli tune sample.txt")
    prompts = read_prompts(data, o.text_file)
    task = Task(pieces(data) if prompts == (data,) else prompts, o.sampler, stop)

    # search
    bundle_of = open_bundles(o.model, o.precision, render.notice)
    bundle = bundle_of(None)
    chosen = candidates(bundle.config.block_size, o.quality)
    contenders = open_contenders(chosen, bundle_of, task, engine=o.engine, threads=0)
    engine = contenders[0].model.engine_name
    key = search_key(task, bundle.sha256, engine, o.quality)
    name = hashlib.sha256(json.dumps([__version__, key], sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir() / "tune" / f"{name}.jsonl" if o.state is None else Path(o.state)
    if o.again:
        path.unlink(missing_ok=True)
    render.detail(f"{bundle.path} ({bundle.precision}) on {engine}, {len(chosen)} settings, state in {path}")
    with State(path, key) as state, render.progress(most_turns(len(chosen)), o.progress, unit="runs") as advance:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            advance(done)

        found = search(contenders, state, o.quality, count)

    # profile
    profile = Profile(
        setting=found.best.setting,
        quality=str(key["quality"]),
        bundle_sha256=bundle.sha256,
        engine=engine,
        machine=key["machine"],
        speedup=found.speedup,
        equal_share=found.best.equal_share,
        sample_sha256=key["prompt_sha256"],
    )
    target = profile_path(bundle.sha256, engine)
    write_profile(profile, target)
    streams.write_stdout(render.to_json(facts(found, profile, target, path)) if o.json else text(found, target))


def pieces(data: bytes) -> tuple[bytes, ...]:
    """What is continued of a sample: all of a short one, evenly spread pieces of a long one."""
    if len(data) <= PIECE_BYTES:
        return (data,)
    step = (len(data) - PIECE_BYTES) / (PIECES - 1)
    return tuple(data[round(step * i) : round(step * i) + PIECE_BYTES] for i in range(PIECES))


def facts(found: Found, profile: Any, path: Path, state: Path) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(profile),
        "profile": str(path),
        "state": str(state),
        "measured": [{**asdict(m), "bytes_per_s": 1 / m.median, "refused": m in found.refused} for m in found.measured],
    }


def text(found: Found, path: Path) -> bytes:
    rows = [["setting", "bytes/s", "over ar", "repeats", "bytes of ar"]]
    for m in found.measured[:SHOWN]:
        share = "equal" if m.equal_share == 1 else f"{m.equal_share:.0%}"
        rows.append([m.setting, f"{1 / m.median:.1f}", f"{found.reference.median / m.median:.2f}",
                     str(len(m.seconds_per_byte)), share + (", refused" if m in found.refused else "")])  # fmt: skip
    left = len(found.measured) - SHOWN
    more = f"and {left} more that are slower or refused\n" if left > 0 else ""
    if found.best.setting == found.reference.setting:
        verdict = "Nothing is faster than ar by more than noise: --method auto is ar"
    else:
        verdict = f"--method auto is {found.best.setting} ({found.speedup:.2f} times the speed of ar)"
    return f"{render.table(rows)}{more}\n{verdict}; kept in {path}\n".encode()

"""Everything there is to find out on a machine with a GPU, in stages of minutes; goes on where it was stopped.

    python benchmarks/gpu.py [--out FILE.jsonl] [--minutes 9] [--stages environment,graphs,...]
                             [--large FOLDER [--forms 1b,1b-lookup,7b,7b-lookup]]

Needs this checkout and what is at hand: TensorRT, else TensorRT-RTX, ONNX Runtime's CUDA provider, PyTorch, in any
folder on PYTHONPATH. What is not there is reported as absent; without a GPU the same stages run on the CPU. A stage is
a process of its own, so that one that crashes or hangs costs no other; its rows go to FILE.jsonl (default:
benchmarks/results/gpu.jsonl), and it is not run again once they are complete. At the end all rows are printed as
tables. `--large` adds models with the shapes of the released ones, random weights and small hash tables, which are
written to FOLDER/1b and FOLDER/7b first; each of their rows names the form and says "random". The forms 1b-lookup and
7b-lookup have a decoder that looks ids up and fills blocks, as in Fast BLT: every method runs on them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "engines"), str(ROOT / "benchmarks")]  # from a checkout

Row = dict[str, Any]

#: Stages that need no engine, then those that are run per model, precision and engine.
ONCE: Final = ("environment", "bandwidth")
PER_BUNDLE: Final = ("validity", "build", "engines")
PER_ENGINE: Final = ("graphs", "rows", "ar", "verify", "times", "methods", "replayed")
LEAST_SECONDS: Final = 20  # a stage is not begun with less time than this
FORMS: Final = ("1b", "1b-lookup", "7b", "7b-lookup")  # of the released models, and with Fast BLT's decoder
LARGEST_SHARE: Final = 0.9  # of the minutes: a stage that had as much and did not end is not tried again


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.jsonl")
    parser.add_argument("--model", default="builtin", help="a bundle, or the built-in model")
    parser.add_argument("--precisions", default="fp32,fp16", help="of the built-in model")
    parser.add_argument("--stages", default=",".join((*ONCE, *PER_BUNDLE, *PER_ENGINE)))
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call, and the most for a stage")
    parser.add_argument("--large", type=Path, default=None, help="folder for models of released form, random weights")
    parser.add_argument("--forms", default="1b", help=f"of the models in --large, with commas: {', '.join(FORMS)}")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-bytes", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--one", default=None, help=argparse.SUPPRESS
    )  # stage, model, precision, engine: in this process
    o = parser.parse_args()
    if o.one is not None:
        return run_one(o)
    end, arguments = time.monotonic() + 60 * o.minutes, sys.argv[1:]
    for kind, given, known in (("stages", o.stages, (*ONCE, *PER_BUNDLE, *PER_ENGINE)), ("forms", o.forms, FORMS)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"unknown {kind}: {', '.join(sorted(unknown))}")
    for key in plan(o):
        if key in finished(o.out):
            continue
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            print(f"out of time before {' '.join(filter(None, key))}; run again to go on")
            return 3
        began = time.monotonic()
        try:
            done = subprocess.run([sys.executable, __file__, *arguments, "--one", json.dumps(key)], timeout=left)
            failure = f"exit status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            if left < LARGEST_SHARE * 60 * o.minutes:
                print(f"out of time in {' '.join(filter(None, key))}; run again to go on")
                return 3
            failure = f"stopped after {left:.0f} s"
        if failure:
            add_rows(o.out, [{**named(key), **weights(o, key[1]), "failed": failure}])
        print(f"{' '.join(filter(None, key))}: {failure or 'done'} in {time.monotonic() - began:.0f} s", flush=True)
    from gpu_report import report

    print(report(read_rows(o.out)))
    return 0


def plan(o: argparse.Namespace) -> Iterator[tuple[str, str, str, str]]:
    """Stage, model, precision, engine, in order. Which engines there are is known once "engines" has run."""
    stages = o.stages.split(",")
    yield from ((stage, "", "", "") for stage in ONCE if stage in stages)
    bundles = [(o.model, p) for p in (o.precisions.split(",") if o.model == "builtin" else [""])]
    if o.large is not None:
        bundles += [(str(o.large / form), "fp16") for form in o.forms.split(",")]
    for model, precision in bundles:
        random = bool(weights(o, model))
        if random:
            yield "write", model, precision, ""
        yield from ((stage, model, precision, "") for stage in PER_BUNDLE if stage in stages or stage == "engines")
        found = [row for row in read_rows(o.out) if row.get("model") == model and row.get("precision") == precision]
        engines = [row["opened"] for row in found if "opened" in row]
        other = "methods" if random else "replayed"  # random weights draft at random
        for engine in engines[-1] if engines else []:
            yield from ((stage, model, precision, engine) for stage in PER_ENGINE if stage in stages and stage != other)


def weights(o: argparse.Namespace, model: str) -> Row:
    """What a row has to say of a model in the folder of `--large`; nothing of any other."""
    folder = Path(model)
    return {"form": folder.name, "weights": "random"} if o.large is not None and folder.parent == o.large else {}


def named(key: Sequence[str]) -> Row:
    return dict(zip(("stage", "model", "precision", "engine"), key, strict=True))


def finished(out: Path) -> set[tuple[str, ...]]:
    """Stages that have run to their end, and those that failed: what killed them once may do so again."""
    rows = [row for row in read_rows(out) if "done" in row or "failed" in row]
    return {tuple(str(row[field]) for field in ("stage", "model", "precision", "engine")) for row in rows}


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_rows(path: Path, rows: Sequence[Row]) -> None:
    """All or none: a row that is half written when the process is killed spoils the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def run_one(o: argparse.Namespace) -> int:
    """One stage in this process."""
    from gpu_stage import Stage
    from gpu_stages import STAGES

    from bltcli.errors import BltError

    key = json.loads(o.one)
    known = [row["bytes_per_s"] for row in read_rows(o.out) if row["stage"] == "bandwidth" and "memory" in row]
    stage = Stage(
        **named(key), prompts=o.prompts, new_bytes=o.new_bytes, repeats=o.repeats,
        bytes_per_s=known[-1] if known else None,
    )  # fmt: skip
    about: Row = {**named(key), **weights(o, stage.model)}
    began, rows = time.perf_counter(), []
    try:
        for row in STAGES[stage.stage](stage):
            rows.append({**about, **row})
            print(json.dumps(row, ensure_ascii=False)[:300], flush=True)
    except (BltError, ImportError) as error:
        rows.append({**about, "absent": " ".join(str(error).split())})
        print(rows[-1]["absent"])
    add_rows(o.out, [*rows, {**about, "done": True, "seconds": round(time.perf_counter() - began, 1)}])
    return 0


if __name__ == "__main__":
    sys.exit(main())

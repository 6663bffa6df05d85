"""Count the lines of test sets that the texts of a recipe repeat.

    python scripts/overlap.py RECIPE.toml --data DIR FILE...

For each file: lines that a training text repeats as a whole, and lines that share a run of 40 letters and digits with
one; case, spaces and punctuation aside. The recipe's own `exclude` is not applied: what it would leave out is counted.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from bltcli.train.config import load_config
from bltcli.train.data import Corpus
from bltcli.train.overlap import RUN, normal, windows

Line = tuple[Path, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    o = parser.parse_args()
    lines: dict[Line, str] = {
        (file, number): normal(line)
        for file in o.files
        for number, line in enumerate(file.read_bytes().splitlines())
        if normal(line)
    }
    whole, runs = defaultdict[str, set[Line]](set), defaultdict[int, set[Line]](set)
    for place, line in lines.items():
        whole[line].add(place)
        for run in windows(line, RUN, 1):
            runs[run].add(place)
    repeated, shared = set[Line](), set[Line]()
    for source in Corpus(replace(load_config(o.recipe).data, exclude=()), o.data, "train").sources:
        for text in source.texts:
            for side in map(normal, text):
                repeated |= whole.get(side, set())
                shared.update(*(runs[run] for run in windows(side, RUN, 1) if run in runs))
    for file in o.files:
        counts = [sum(place[0] == file for place in places) for places in (lines, repeated, shared)]
        print(f"{file}: {counts[0]} lines, {counts[1]} repeated, {counts[2]} share a run of {RUN}")


if __name__ == "__main__":
    main()

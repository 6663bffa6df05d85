"""Write the texts that a recipe never trains on, as line-aligned test sets.

    python scripts/held_out.py RECIPE.toml --data DIR --out DIR [--lines 300]

One pair of files per source of translations: NAME.en and NAME.fr, say, of as many lines, for `bltcli eval mt`. They are
those that the hash of the text holds out (`data.dev_modulo`) and of which no side is trained on with another
partner, of at least --least bytes and at most --most on either side, evenly over the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bltcli.atomic import write_atomically
from bltcli.train.config import load_config
from bltcli.train.data import Corpus, Source


def chosen(source: Source, trained: set[bytes], lines: int, least: int, most: int) -> list[tuple[bytes, ...]]:
    """At most `lines` pairs, each once, evenly over the source, without texts that are `trained` on."""

    def fits(pair: tuple[bytes, ...]) -> bool:
        return trained.isdisjoint(pair) and all(least <= len(side) <= most for side in pair)

    fitting = list(dict.fromkeys(filter(fits, source.texts)))
    count = min(lines, len(fitting))
    return [fitting[number * len(fitting) // count] for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=300)
    parser.add_argument("--least", type=int, default=20)
    parser.add_argument("--most", type=int, default=300)
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    data = load_config(o.recipe).data
    trained = {side for source in Corpus(data, o.data, "train").sources for text in source.texts for side in text}
    for source in Corpus(data, o.data, "dev").sources:
        if not source.languages:
            continue
        pairs = chosen(source, trained, o.lines, o.least, o.most)
        for side, language in enumerate(source.languages):
            file = o.out / f"{source.config.name}.{language}"
            write_atomically(file, b"".join(pair[side] + b"\n" for pair in pairs))
        print(f"{source.config.name}: {len(pairs)} of {len(source.texts)} pairs")


if __name__ == "__main__":
    main()

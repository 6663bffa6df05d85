"""Files to documents to packed batches, each batch a pure function of the seed and its number; knows no model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from bltcli.errors import UsageError
from bltcli.train.config import DataConfig, SourceConfig
from bltcli.train.overlap import Overlap
from bltcli.vocab import BOS, EOS, PAD, IdArray, encode

Split = Literal["train", "dev"]
_PROBES = 256  # documents drawn to estimate a source's mean document length
_FILL = 0.95  # share of a batch that is drawn: the fuller, the more documents are cut


def held_out(text: bytes, modulo: int) -> bool:
    """Whether `text` belongs to the dev split: a fixed hash, so it holds across files, directions and releases."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % modulo == 0


def translation(tag: str, source: bytes, target: bytes) -> bytes:
    """The document form of a translation: `b"en>fr\\nHello.\\nBonjour."`; the prompt is everything up to the second
    line feed."""
    return tag.encode() + b"\n" + source + b"\n" + target


class Source:
    """The documents of one source and split, without texts of which a side is in `excluded`."""

    def __init__(self, config: SourceConfig, root: Path, split: Split, modulo: int, excluded: Overlap) -> None:
        self.config = config
        self.languages = config.languages if config.kind == "pairs" else []
        read = self._pairs if config.kind == "pairs" else self._paragraphs
        texts = (t for t in read(root) if held_out(t[0], modulo) == (split == "dev"))
        self.texts = [t for t in texts if not any(side in excluded for side in t)]
        if not self.texts:
            raise UsageError(f"source {config.name}: the {split} split is empty")

    def _pairs(self, root: Path) -> Sequence[tuple[bytes, ...]]:
        left, right = (_read(root / path).splitlines() for path in self.config.paths)
        if len(left) != len(right):
            raise UsageError(f"source {self.config.name}: {len(left)} lines against {len(right)}")
        return list(zip(left, right, strict=True))

    def _paragraphs(self, root: Path) -> Sequence[tuple[bytes, ...]]:
        between = b"\n" if self.config.line_paragraphs else b"\n\n"
        pieces = (p for file in self.config.paths for p in _read(root / file).split(between))
        joined = (b" ".join(p.split()) for p in pieces)  # undoes hard line breaks
        dropped = [d.encode() for d in self.config.drop]
        return [(p,) for p in joined if len(p) >= 40 and not any(d in p for d in dropped)]

    def draw(self, rng: np.random.Generator) -> bytes:
        """One document: joined pairs in a random direction, or consecutive paragraphs."""
        count = int(rng.integers(1, self.config.join + 1))
        if self.config.kind == "prose":
            start = int(rng.integers(len(self.texts)))
            return b"\n".join(t[0] for t in self.texts[start : start + count])
        # pairs are joined from anywhere: neighbours in a sorted file repeat each other
        chosen = [self.texts[i] for i in rng.integers(len(self.texts), size=count).tolist()]
        sides = [b" ".join(pair[side] for pair in chosen) for side in (0, 1)]
        first = int(rng.integers(2))
        tag = f"{self.languages[first]}>{self.languages[1 - first]}"
        return translation(tag, sides[first], sides[1 - first])


class Corpus:
    """All sources of one split."""

    def __init__(self, config: DataConfig, root: Path, split: Split) -> None:
        self.config, self.split = config, split
        excluded = Overlap(line for file in config.exclude for line in _read(root / file).splitlines())
        self.sources = [Source(s, root, split, config.dev_modulo, excluded) for s in config.sources]
        # weights are shares of bytes, documents are drawn one by one
        rates = [s.config.weight / self._mean_bytes(n, s) for n, s in enumerate(self.sources)]
        self.rates = np.array(rates) / sum(rates)

    def _mean_bytes(self, number: int, source: Source) -> float:
        rng = np.random.default_rng([self.config.seed, 1, number])
        return float(np.mean([min(len(source.draw(rng)) + 2, self.config.row_bytes) for _ in range(_PROBES)]))

    def batch(self, number: int, source: int | None = None) -> IdArray:
        """Batch `number`, packed ids [batch_rows, row_bytes], of all sources or of one."""
        rng = np.random.default_rng([self.config.seed, 2 if self.split == "train" else 3, number, 1 + (source or 0)])
        room = int(_FILL * self.config.batch_rows * self.config.row_bytes)
        documents: list[IdArray] = []
        while room > 0:
            chosen = int(rng.choice(len(self.rates), p=self.rates)) if source is None else source
            ids = np.append(encode(self.sources[chosen].draw(rng)), EOS)[: self.config.row_bytes]
            documents.append(ids)
            room -= len(ids)
        return pack(documents, self.config.batch_rows, self.config.row_bytes)


def pack(documents: Sequence[IdArray], rows: int, row_bytes: int) -> IdArray:
    """Put whole documents into rows, longest first, each into the fullest row that holds it; one that no row holds is
    cut into the emptiest. What stays free is PAD after an EOS, which the loss does not count."""
    packed = np.full((rows, row_bytes), PAD, dtype=np.int64)
    used = [0] * rows
    for ids in sorted(documents, key=len, reverse=True):
        fits = [r for r in range(rows) if used[r] + len(ids) <= row_bytes]
        row = max(fits, key=used.__getitem__) if fits else min(range(rows), key=used.__getitem__)
        part = ids[: row_bytes - used[row]]
        packed[row, used[row] : used[row] + len(part)] = part
        used[row] += len(part)
    packed[np.array(used) == 0, 0] = BOS  # a row without a document still starts one
    return packed


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().replace(b"\r\n", b"\n")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; set data.root, --data or BLTCLI_DATA") from error

"""Lines too long for a model in pieces, and back: at sentence ends, else at spaces, else between characters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

#: White space that never goes through the model: it stays around a line and between its pieces as it is.
_SPACES: Final = re.compile(rb"[ \t\r\v\f]*")
#: A full stop and its like with closing quotes and brackets, before white space; those of CJK scripts need none.
_SENTENCE_END: Final = re.compile(
    rb"""(?: [.!?] | \xe2\x80\xa6 | \xd8\x9f | \xdb\x94 | \xe0\xa5\xa4 )      # . ! ? ellipsis, Arabic ? and ., danda
         (?: ["')\]] | \xc2\xbb | \xe2\x80[\x99\x9d] )* (?=[ \t\r\v\f])
       | (?: \xe3\x80\x82 | \xef\xbc[\x81\x9f] ) (?: \xe3\x80[\x8d\x8f] )*    # ideographic full stop, wide ! and ?
    """,
    re.VERBOSE,
)
_SPACE: Final = re.compile(rb"[ \t\r\v\f]+")


@dataclass(frozen=True)
class Segments:
    """A line: `lead`, then each piece with the gap after it. Pieces neither begin nor end with white space."""

    lead: bytes
    pieces: tuple[bytes, ...]
    gaps: tuple[bytes, ...]

    def joined(self, pieces: tuple[bytes, ...] | list[bytes]) -> bytes:
        """The line with other pieces in the places of its own."""
        return self.lead + b"".join(piece + gap for piece, gap in zip(pieces, self.gaps, strict=True))


def split(line: bytes, limit: int) -> Segments:
    """`line` (without its end) in pieces of at most `limit` bytes, as long as sentences allow; no pieces if it is
    blank. `split(line, n).joined(split(line, n).pieces) == line`."""
    assert limit >= 4, "a character has up to 4 bytes"
    if is_blank(line):
        return Segments(line, (), ())
    start, end = len(line) - len(line.lstrip(b" \t\r\v\f")), len(line.rstrip(b" \t\r\v\f"))
    lead, pieces, gaps = line[:start], [], []
    while end - start > limit:
        cut = _cut(line, start, start + limit)
        gap = _SPACES.match(line, cut)
        assert gap is not None
        pieces.append(line[start:cut])
        gaps.append(gap.group())
        start = gap.end()
    return Segments(lead, (*pieces, line[start:end]), (*gaps, line[end:]))


def is_blank(line: bytes) -> bool:
    """Whether there is nothing to translate: no byte, or white space alone, of Unicode too."""
    return not line.decode(errors="replace").strip()


def _cut(line: bytes, start: int, last: int) -> int:
    """Where to end the piece that begins at `start`, at most at `last`, which lies inside the line."""
    for pattern in (_SENTENCE_END, _SPACE):
        ends = [
            found.end() if pattern is _SENTENCE_END else found.start()
            for found in pattern.finditer(line, start + 1, last + 1)
        ]
        ends = [end for end in ends if end <= last]
        if ends:
            return ends[-1]
    for cut in range(last, last - 4, -1):  # the first byte of a character begins the next piece
        if line[cut] & 0xC0 != 0x80:
            return cut
    return last  # no UTF-8

"""When a text ends: EOS, a stop string, or enough bytes. Applied outside the methods, to committed ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bltcli.errors import UsageError
from bltcli.vocab import EOS, decode

FinishReason = Literal["eos", "stop", "length", "context"]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """The ends a user asked for. A stop string is not part of the output."""

    max_bytes: int = 512
    strings: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise UsageError(f"--max-bytes is {self.max_bytes}; use at least 1")
        if any(not s for s in self.strings):
            raise UsageError("--stop is empty; give at least one byte")


class Output:
    """The bytes of one text as they are committed; holds back what may yet become a stop string."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.data = bytearray()
        self.released = 0
        self.reason: FinishReason | None = None

    def add(self, ids: Sequence[int]) -> bytes:
        """Take committed ids; return the bytes that are now certain. Sets `reason` at the end."""
        for index in ids:
            if index == EOS:
                return self.end("eos")
            self.data += decode((index,))
            for string in self.stop.strings:
                if self.data.endswith(string):
                    del self.data[-len(string) :]
                    return self.end("stop")
            if len(self.data) >= self.stop.max_bytes:
                return self.end("length")
        return self._release(len(self.data) - self._held())

    def end(self, reason: FinishReason) -> bytes:
        """Close the text and return what was held back."""
        self.reason = reason
        return self._release(len(self.data))

    def _held(self) -> int:
        """Length of the longest tail that a stop string begins with."""
        if not self.stop.strings:
            return 0
        tails = (
            n
            for s in self.stop.strings
            for n in range(min(len(s) - 1, len(self.data)), 0, -1)
            if self.data.endswith(s[:n])
        )
        return max(tails, default=0)

    def _release(self, upto: int) -> bytes:
        upto = max(upto, self.released)
        data, self.released = bytes(self.data[self.released : upto]), upto
        return data

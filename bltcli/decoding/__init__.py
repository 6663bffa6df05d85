"""The decoding methods: WHAT is generated and in what order, over anything that implements `ByteModel`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bltcli.decoding.autoregressive import Autoregressive
from bltcli.decoding.protocol import ByteModel, DecodingMethod
from bltcli.decoding.self_speculation import SelfSpeculation
from bltcli.errors import UsageError

#: Every method by its name on the command line; each takes the model and k, the most bytes to draft per round.
METHODS: Final[dict[str, Callable[[ByteModel, int], DecodingMethod]]] = {
    "ar": lambda model, k: Autoregressive(model),
    "blt-s": SelfSpeculation,
}
MAX_DRAFT_BYTES: Final = 64


def make_method(name: str, model: ByteModel, k: int) -> DecodingMethod:
    """The method `name` over `model`. UsageError for an unknown name or k outside 1..64."""
    if name not in METHODS:
        raise UsageError(f"--method is {name!r}; use one of {', '.join(METHODS)}")
    if not 1 <= k <= MAX_DRAFT_BYTES:
        raise UsageError(f"--draft-bytes is {k}; use 1 to {MAX_DRAFT_BYTES}")
    return METHODS[name](model, k)

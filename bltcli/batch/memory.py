"""How many texts at a time memory is likely to hold: an estimate made before any of it is used."""

from __future__ import annotations

from typing import Final

from bltcli.bundle import Bundle
from bltcli.cache import STEP
from bltcli.graphs import GRAPHS
from bltcli.memory import available_bytes
from bltcli.texts import LATENT_SLOTS, PREFILL_ROWS, slide_step

SHARE: Final = 0.8  # of what is available; the rest is for what no estimate knows
BYTES_PER_PATCH: Final = 2  # patches of texts are 3 to 6 bytes long on average
#: Of attention scores that are alive at once in one pass: scores, their softmax, the mask.
_SCORES: Final = 3
_ITEM_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}


def rows_that_fit(bundle: Bundle, rows: int, longest: int, available: int | None = None) -> int:
    """At most `rows` texts of `longest` bytes, continuations included, that fit into SHARE of `available` bytes
    (default: what this machine has) beside the weights; at least one, as the estimate may be wrong."""
    available = available_bytes() if available is None else available
    if available is None:
        return rows
    room = SHARE * available - sum(bundle.weight_bytes.values())
    return max(1, min(rows, int(room // bytes_per_row(bundle, longest))))


def bytes_per_row(bundle: Bundle, longest: int) -> int:
    """Memory that one text of `longest` bytes takes: its caches, what the host keeps of it, and its share of a pass."""
    config = bundle.config
    longest = min(longest, config.max_bytes)
    slots = {
        "slots": _rounded(min(longest, config.reach + slide_step(config)) + PREFILL_ROWS),
        "patch_slots": _rounded(longest // BYTES_PER_PATCH),
        "latent_slots": min(_rounded(longest // BYTES_PER_PATCH), LATENT_SLOTS),
    }
    caches = 0
    for name in GRAPHS:
        spec, copies = bundle.specs[name], 3 if name == "global" else 2  # halves: see `FewRows`
        for tensor in spec.inputs:
            if tensor.name in spec.state:
                _, heads, axis, width = tensor.shape
                caches += int(heads) * slots[str(axis)] * int(width) * _ITEM_BYTES[tensor.dtype] * copies // 2
    columns = min(longest, PREFILL_ROWS)
    scores = max(
        *(stack.num_heads * columns * slots["slots"] for stack in config.local),
        config.global_model.num_heads * columns // BYTES_PER_PATCH * slots["patch_slots"],
    )
    host = 8 * (2 * config.max_bytes + config.global_model.max_positions)
    return caches + _SCORES * 4 * scores + host


def _rounded(slots: int) -> int:
    return -(-slots // STEP) * STEP

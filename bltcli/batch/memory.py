"""How many texts at a time memory is likely to hold: an estimate made before any of it is used."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from bltcli.bundle import Bundle
from bltcli.cache import SLIDE, STEP
from bltcli.graphs import GRAPHS
from bltcli.texts import PREFILL_ROWS

SHARE: Final = 0.8  # of what is available; the rest is for what no estimate knows
BYTES_PER_PATCH: Final = 2  # patches of texts are 3 to 6 bytes long on average
#: Of attention scores that are alive at once in one pass: scores, their softmax, the mask.
_SCORES: Final = 3
_ITEM_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
_CGROUPS: Final = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


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
    local = (config.patcher, config.encoder, config.decoder)
    reach = max(stack.window or config.max_bytes for stack in local)
    slots = {
        "slots": _rounded(min(longest, reach + SLIDE) + PREFILL_ROWS),
        "patch_slots": _rounded(longest // BYTES_PER_PATCH),
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
        *(stack.num_heads * columns * slots["slots"] for stack in local),
        config.global_model.num_heads * columns // BYTES_PER_PATCH * slots["patch_slots"],
    )
    host = 8 * (2 * config.max_bytes + config.global_model.max_positions)
    return caches + _SCORES * 4 * scores + host


def available_bytes() -> int | None:
    """Memory that can still be taken, by the kernel's own estimate and the limits set for this process and its group;
    None where the platform does not say."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass
    for limit, usage in _CGROUPS:
        try:
            limits, used = ((Path("/sys/fs/cgroup") / name).read_text().strip() for name in (limit, usage))
            if limits != "max":
                found.append(max(0, int(limits) - int(used)))
        except OSError:
            continue
    with suppress(ImportError, OSError):  # Windows has no such limit
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            found.append(max(0, most - pages * resource.getpagesize()))
    return min(found, default=None)


def _rounded(slots: int) -> int:
    return -(-slots // STEP) * STEP

"""How much memory this process may still take."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

_CGROUPS: Final = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


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

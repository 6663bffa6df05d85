"""Has the C library give freed memory back, so that loaded weights are in memory once."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_ANY_WEIGHT: Final = 2**18  # bytes
_LARGEST: Final = 2**25  # where glibc's own, moving threshold ends


@contextmanager
def freed_at_once() -> Iterator[None]:
    """While weights are loaded, blocks of _ANY_WEIGHT bytes and more go back to the system when they are freed.

    ONNX Runtime lays each weight out anew for its kernels and frees what it had; glibc keeps such blocks below 32 MiB
    for later, and the process holds up to 1.7 times its weights. Does nothing on other C libraries.
    """
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _ANY_WEIGHT)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
        libc.malloc_trim(0)

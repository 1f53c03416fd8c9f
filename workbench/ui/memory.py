"""Give memory that was freed back to the system: a page that is redrawn all night frees much.

glibc keeps what is freed in the middle of its heaps, and Arrow's pool what its threads freed. With
a plot drawn each second the heaps get holes of all sizes, and a process that holds ever the same
takes ever more.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import pyarrow as pa

EVERY = 20.0
"""Seconds; some 10 ms of work each time."""


def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, musl, Windows
        return None
    return trim


_malloc_trim = _trim()
_last = 0.0


def give_back() -> None:
    """Give free memory back, at most once in EVERY seconds, however many pages are open."""
    global _last
    now = time.monotonic()
    if now - _last < EVERY:
        return
    _last = now
    pa.default_memory_pool().release_unused()
    if _malloc_trim is not None:
        _malloc_trim(0)

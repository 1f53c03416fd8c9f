"""Keep the app's memory flat: a page that is redrawn each second for a night frees much.

Three things were seen to grow where nothing was held: Arrow's own pool (a table read for the page
leaves pieces in it), plots that wait for the garbage collector, and in glibc's heaps, one for each
thread, the holes between what is freed and what stays. benchmarks/results/soak.md has the numbers.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable

EVERY = 20.0
"""Seconds between two times that free memory is given back; some 10 ms of work each."""
M_ARENA_MAX = -8
"""A number of <malloc.h>."""


def share() -> None:
    """One heap for all threads that do not have their own yet: call it first of all. glibc only."""
    if _mallopt is not None:
        _mallopt(M_ARENA_MAX, 1)


def settle() -> None:
    """When the app is built, in a process of its own: what there is now is there to stay.

    Python looks through everything only after a quarter of everything is new; with the half
    million objects of the libraries out of the count, plots that hold each other go sooner.
    """
    import pyarrow as pa  # takes long, and share() comes before anything else

    pa.set_memory_pool(pa.system_memory_pool())
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Give free memory back to the system, once in EVERY seconds however many pages are open."""
    global _last
    now = time.monotonic()
    if _malloc_trim is not None and now - _last >= EVERY:
        _last = now
        _malloc_trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none: macOS, musl, Windows."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function


_mallopt, _malloc_trim = _of_glibc("mallopt"), _of_glibc("malloc_trim")
_last = 0.0

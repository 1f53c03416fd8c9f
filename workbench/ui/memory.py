"""Keep the app's memory flat: a page that is redrawn each second for a night frees much.

Three things were seen to grow where nothing was held: Arrow's own pool (a table read for the page
leaves pieces in it), plots that wait for the garbage collector, and the holes between what is freed
and what stays in glibc's heaps. benchmarks/results/soak.md has what came of it.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable

import pyarrow as pa

EVERY = 20.0
"""Seconds between two times that free memory is given back; some 10 ms of work each."""


def settle() -> None:
    """Once, when the app is built: what is there stays, what comes is looked through often.

    Python looks through everything only after a quarter of everything is new; with the half
    million objects of the libraries out of the count, plots that hold each other go sooner.
    """
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


def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, musl, Windows
        return None
    return trim


_malloc_trim = _trim()
_last = 0.0

"""What keeps the app's memory flat, in a process of its own: it changes the whole process."""

import subprocess
import sys

import pytest

from workbench import heap

GIVES_BACK = """
import re
from workbench import heap

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

heap.share()
pieces = [bytearray(4096) for _ in range(25_000)]  # 100 MB with a piece that stays at every tenth
kept, full = pieces[::10], resident()
del pieces
before = resident()
heap.give_back()
after = resident()
again = [bytearray(4096) for _ in range(25_000)]
del again
holes = resident()
heap.give_back()  # too soon after the first
assert full - after > 60, (full, before, after)
assert abs(resident() - holes) < 5
"""

SETTLES = """
import gc
import pyarrow as pa
from workbench import heap

heap.settle()
assert gc.get_freeze_count() > 1000
assert pa.default_memory_pool().backend_name == "system"
"""


@pytest.mark.skipif(heap._malloc_trim is None, reason="not glibc")
def test_free_memory_between_kept_pieces_is_given_back_now_and_then() -> None:
    subprocess.run([sys.executable, "-c", GIVES_BACK], check=True)


def test_settles_with_arrow_on_the_common_heap() -> None:
    subprocess.run([sys.executable, "-c", SETTLES], check=True)


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_mallopt", heap._of_glibc("no_such_function"))
    monkeypatch.setattr(heap, "_malloc_trim", None)
    heap.share()
    heap.give_back()

r"""Mathematical answers: `\boxed{…}` or the last expression, compared by math-verify.

The work is done in another process (math_worker.py) with a limit of time and memory, since a model
may write 9^9^9 and math-verify's own limits do not hold in a thread. It starts with the first
completion, takes one after the other, and is started anew after one that took too long.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from functools import lru_cache
from typing import Any

from workbench.config import ConfigError
from workbench.tasks.problem import Problem
from workbench.tasks.scoring import Part

STARTING = 120.0
"""Seconds the process may take to load math-verify."""


class MathError(RuntimeError):
    """math-verify failed on a text, or took too long over it."""


class MathReward:
    """1.0 where the completion's final answer equals the problem's, as mathematics; else 0.0."""

    def __init__(self, seconds: float, characters: int) -> None:
        """Raises ConfigError where math-verify is not installed."""
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                "rewards.kind: 'math' needs math-verify; pip install 'bridge-workbench[math]'"
            )
        self.seconds, self.characters = seconds, characters
        self._worker: _Worker | None = None
        self._asking = threading.Lock()
        # the same text is scored again by looks and by replayed steps
        self._compare = lru_cache(maxsize=4096)(self._ask)

    def __call__(self, completion: str, problem: Problem) -> Part:
        """Raises MathError where the comparison failed or took longer than `seconds`."""
        correct, extracted = self._compare(completion[-self.characters :], problem.answer)
        return Part(float(correct), extracted)

    def _ask(self, completion: str, answer: str) -> tuple[bool, str]:
        with self._asking:
            if self._worker is None:
                self._worker = _Worker()
                self._worker.ask({"completion": "1", "answer": "1"}, STARTING)  # loads the library
            try:
                said = self._worker.ask({"completion": completion, "answer": answer}, self.seconds)
            except MathError:
                self._worker.stop()
                self._worker = None
                raise
        if "error" in said:
            raise MathError(said["error"])
        return said["correct"], said["extracted"]


class _Worker:
    """The other process; it ends with us, or when nobody holds this object any more."""

    def __init__(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workbench.tasks.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": paths},
        )
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read, args=(self._process, lines), daemon=True).start()
        self._lines = lines
        self.stop = weakref.finalize(self, _end, self._process)

    def ask(self, question: dict[str, str], seconds: float) -> dict[str, Any]:
        """Its answer. Raises MathError where it takes longer than `seconds` or has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise MathError(f"took longer than {seconds:g} s") from None
        except OSError:
            line = ""
        if not line:
            raise MathError("math-verify's process ended")
        return json.loads(line)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")  # it has ended


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()

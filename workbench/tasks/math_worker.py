r"""Compares mathematical answers in a process of its own: a JSON line in, a JSON line out.

    {"completion": "… \\boxed{1/2}", "answer": "0.5"}  →  {"correct": true, "extracted": "1/2"}

math-verify's own time limits are signals, which exist in a main thread only and do not interrupt a
long calculation in C. Here it has none: who asks waits as long as he likes and then ends us.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from typing import Any

MEMORY = 4 * 2**30  # bytes; 9^9^9 must not take the machine's


def compare(completion: str, answer: str) -> dict[str, Any]:
    """Whether the completion's final answer equals `answer`, a number or LaTeX. Raises freely."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    ways = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    # a bare '\\frac12' is read as LaTeX only inside dollars
    right = parse(f"${answer}$", ways, parsing_timeout=None) or parse(answer, parsing_timeout=None)
    if not right:
        raise ValueError(f"math-verify cannot read the answer {answer!r}")
    boxed = last_boxed(completion)
    text = completion if boxed is None else f"\\boxed{{{boxed}}}"
    found = parse(text, ways, parsing_timeout=None)
    correct = bool(found) and verify(right, found, timeout_seconds=None)
    written = next((part for part in reversed(found) if isinstance(part, str)), "")
    return {"correct": correct, "extracted": written if boxed is None else boxed}


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{…} whose braces close; None where there is none."""
    before, opening, rest = text.rpartition("\\boxed{")
    if not opening:
        return None
    depth = 1
    for at, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:at]
    return last_boxed(before)


def main() -> None:
    """Answer lines until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks; his end is ours
    logging.disable(logging.WARNING)
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            said = compare(asked["completion"], asked["answer"])
        except (Exception, RecursionError, MemoryError) as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()

"""What rewards have in common: when two answers are the same, and how a reward is made noisy."""

from __future__ import annotations

import hashlib
import re
from decimal import Decimal

# A minus sign counts unless something stands right before it: '5-2' ends in 2, '= -2' in -2.
_NUMBER_IN_TEXT = re.compile(r"(?:(?<![\w)\].])[-−])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_NUMBER = re.compile(r"[-+−]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)")


def last_number(text: str) -> str | None:
    """The last number written in a text, e.g. 'so 5 - 9 = -4.' → '-4'; None where there is none."""
    found = _NUMBER_IN_TEXT.findall(text)
    return found[-1].replace("−", "-") if found else None


def same_answer(found: str | None, right: str) -> bool:
    """Whether two answers agree: as numbers where both are ('1,000' = '1000.0'), else as texts."""
    if found is None:
        return False
    found, right = found.strip(), right.strip()
    if _NUMBER.fullmatch(found) and _NUMBER.fullmatch(right):
        return _value(found) == _value(right)
    return found == right


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("−", "-"))


def flip(reward: float, p: float, seed: int, step: int, sequence: int) -> float:
    """The reward with probability 1 − p, and 1 − reward with probability p.

        u = first 64 bits of BLAKE2b("flip/{seed}/{step}/{sequence}") / 2^64
        r̃ = 1 − r  if u < p,  else r        so  E[r̃] = (1 − 2p)·r + p

    Counter-based: the same (seed, step, sequence) always flips the same way, and a larger p flips
    what a smaller p flips and more. The additive p cancels in a group's advantages.
    [paper: p = 0.2]
    """
    digest = hashlib.blake2b(f"flip/{seed}/{step}/{sequence}".encode(), digest_size=8).digest()
    u = int.from_bytes(digest, "big") / 2**64
    return 1.0 - reward if u < p else reward

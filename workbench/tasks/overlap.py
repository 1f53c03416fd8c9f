"""Texts to train on that give away texts to evaluate on: equal ones, and shared runs of words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Overlap:
    """An evaluation text, and the training text that gives most of it away."""

    held_out: str
    """Id of the evaluation text."""
    train: str
    """Id of the training text."""
    kind: Literal["exact", "n-gram"]
    """exact: equal but for case and spaces."""
    share: float
    """Share of the evaluation text's n-grams that occur in the training text; 1 where equal."""


def overlaps(
    train: Mapping[str, str], held_out: Mapping[str, str], n: int = 8, least: float = 0.5
) -> list[Overlap]:
    """The overlaps of texts by id, the largest first; at most one a held-out text.

    Words are runs of letters and digits, and single other characters. A text of fewer than n words
    has no n-gram: it is compared as a whole only. [after GPT-3's contamination study, arXiv
    2005.14165, which uses n = 13 on long texts]
    """
    wholes: dict[tuple[str, ...], str] = {}
    places: dict[tuple[str, ...], set[str]] = defaultdict(set)
    wanted = {gram for text in held_out.values() for gram in _grams(_words(text), n)}
    for name, text in train.items():
        words = _words(text)
        wholes.setdefault(words, name)
        for gram in _grams(words, n) & wanted:
            places[gram].add(name)
    found = []
    for name, text in held_out.items():
        words = _words(text)
        if words in wholes:
            found.append(Overlap(name, wholes[words], "exact", 1.0))
            continue
        grams = _grams(words, n)
        counts: dict[str, int] = defaultdict(int)
        for gram in grams:
            for other in places.get(gram, ()):
                counts[other] += 1
        if counts:
            other = max(counts, key=lambda o: (counts[o], o))
            share = counts[other] / len(grams)
            if share >= least:
                found.append(Overlap(name, other, "n-gram", share))
    return sorted(found, key=lambda o: (-o.share, o.kind, o.held_out))


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _grams(words: tuple[str, ...], n: int) -> set[tuple[str, ...]]:
    return {words[i : i + n] for i in range(len(words) - n + 1)}

"""What a step's rollouts tell a detector, as metrics.

They stand in the metrics frame under the names below, so that a finding is a function of the
metrics alone. `signs` makes them; it reads training rollouts only, and never a rollout's `correct`:
in earnest nobody knows that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

LONGEST_UNIT = 16
LOOP_TOKENS, LOOP_REPEATS = 12, 3
"""A loop: a unit of at most 16 tokens, repeated 3 times more, over at least 12 tokens. [ours]"""


def signs(rollouts: Iterable[Any], clip_range: float = 0.2) -> dict[str, float]:
    """Metrics of a step's training rollouts (RolloutRow, or rows of the frame by `itertuples`).

    groups/too_easy, groups/too_hard      share of groups with equal rewards above 0, or not
    completions/repetition, /unanswered   shares of completions
    completions/reference_nll             median over completions of −log π_ref a token, nats
    verifier/inconsistent, /pairs         pairs with equal prompt and answer, and their share with
                                          different rewards
    sampling/sampling_logp_difference/mean, /max   |log π sampled − log π trained|, as in TRL
    baseline/clip_ratio_low, _high, baseline/log_ratio_max   of π_(θ̂+w) over π_(θ+w)

    What cannot be told from the rollouts is left out.
    """
    rows = [row for row in rollouts if row.purpose == "train"]
    if not rows:
        return {}
    found = _groups(rows) | _verifier(rows)
    found["completions/repetition"] = float(np.mean([loops(row.token_ids) for row in rows]))
    found["completions/unanswered"] = float(np.mean([not row.extracted for row in rows]))
    reference = [-float(np.mean(r.reference_logprob)) for r in rows if len(r.reference_logprob)]
    if reference:
        found["completions/reference_nll"] = float(np.median(reference))
    trained = [row for row in rows if len(row.logprob)]
    if trained:
        log_probs = _joined(row.logprob for row in trained)
        apart = np.abs(log_probs - _joined(row.sampling_logprob for row in trained))
        found["sampling/sampling_logp_difference/mean"] = float(apart.mean())
        found["sampling/sampling_logp_difference/max"] = float(apart.max())
    both = [row for row in trained if len(row.baseline_logprob)]
    if both:
        log_ratio = _joined(r.baseline_logprob for r in both) - _joined(r.logprob for r in both)
        advantage = np.repeat([r.advantage for r in both], [len(r.logprob) for r in both])
        low = (log_ratio < np.log1p(-min(clip_range, 0.999))) & (advantage < 0)
        high = (log_ratio > np.log1p(clip_range)) & (advantage > 0)
        found["baseline/clip_ratio_low"] = float(low.mean())
        found["baseline/clip_ratio_high"] = float(high.mean())
        found["baseline/log_ratio_max"] = float(np.abs(log_ratio).max())
    return found


def _joined(arrays: Iterable[Sequence[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(array, dtype=float) for array in arrays])


def _groups(rows: list[Any]) -> dict[str, float]:
    alike: list[tuple[bool, bool]] = []  # (all equal and above 0, all equal and not)
    for _, group in groupby(rows, key=lambda row: row.prompt_id):
        rewards = [row.reward for row in group]
        equal = len(set(rewards)) == 1
        alike.append((equal and rewards[0] > 0, equal and rewards[0] <= 0))
    easy, hard = np.mean(alike, axis=0)
    return {"groups/too_easy": float(easy), "groups/too_hard": float(hard)}


def inconsistent_rollouts(rows: Iterable[Any]) -> tuple[int, int, list[int]]:
    """(pairs with the same prompt and answer, those with different rewards, sequences in them)."""
    answers: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        if row.extracted:
            answers.setdefault((row.prompt_id, row.extracted), []).append(row)
    pairs = different = 0
    sequences: list[int] = []
    for same in answers.values():
        n, paid = len(same), sum(row.reward > 0.5 for row in same)
        pairs += n * (n - 1) // 2
        different += paid * (n - paid)
        if 0 < paid < n:
            sequences += [row.sequence for row in same]
    return pairs, different, sequences


def _verifier(rows: list[Any]) -> dict[str, float]:
    pairs, different, _ = inconsistent_rollouts(rows)
    if not pairs:
        return {}
    return {"verifier/inconsistent": different / pairs, "verifier/pairs": float(pairs)}


def loops(token_ids: Sequence[int]) -> bool:
    """Whether a completion ends in a loop; its last token, end of text perhaps, may differ."""
    ids = np.asarray(token_ids)
    for end in (ids, ids[:-1]):
        for unit in range(1, LONGEST_UNIT + 1):
            needed = max(LOOP_TOKENS, LOOP_REPEATS * unit)
            if len(end) < needed + unit:
                break
            if (end[-needed:] == end[-needed - unit : -unit]).all():
                return True
    return False

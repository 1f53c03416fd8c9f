"""Policies that have moved apart: clipped tokens, ratio outliers, sampler against trainer."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, log

import numpy as np

from workbench.diagnosis.detector import Detector, Symptom, lower
from workbench.diagnosis.history import History

CLIP_WARNING, CLIP_CRITICAL = 0.20, 0.40
"""[rldoctor clip_saturation]"""
ASYMMETRY, ASYMMETRY_LEAST = 3.0, 0.02
"""[rldoctor clip_saturation; the mechanism is DAPO's, arXiv 2503.14476]"""
OUTLIER = log(100.0)
"""|log ratio| of a single token. [ours]"""
MISMATCH_WARNING, MISMATCH_CRITICAL = 0.1, 1.0
"""Mean |Δ log π| a token, nats; 0.1: [verl rollout_is: |mismatch_kl| > 0.1]; 1.0: [ours]"""

SIDES = (
    ("clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/high_mean", "joint"),
    ("baseline/clip_ratio", "baseline/clip_ratio_low", "baseline/clip_ratio_high", "baseline"),
)
TOO_FAR = (
    "a learning rate that moves the policy further than the clip allows",
    "rollouts drawn by a policy that has changed a lot since",
)


def check_clipping(h: History) -> Iterator[Symptom]:
    """The clip removes the gradient of many tokens, or of one side's only."""
    for whole, low, high, who in SIDES:
        share = h.level(whole, 8)
        if h.count(whole) >= 8 and share >= CLIP_WARNING:
            since = h.since(whole, lambda v: v >= CLIP_WARNING)
            yield Symptom(
                "critical" if share >= CLIP_CRITICAL else "warning",
                since,
                f"{share:.0%} of the tokens are clipped ({whole}) since step {since}: their "
                "gradient is lost.",
                {"metric": whole, "share": share},
                TOO_FAR,
                lower(h, "base_lr", 3),
                kind=who,
            )
        down, up = h.level(low, 8), h.level(high, 8)
        if h.count(low) >= 8 and down >= max(ASYMMETRY_LEAST, ASYMMETRY * up):
            yield Symptom(
                "warning" if who == "joint" else "note",
                h.since(low, lambda v: v >= ASYMMETRY_LEAST),
                f"{down:.1%} of the tokens are clipped from below but {up:.1%} from above: the "
                "update pushes tokens down more readily than up.",
                {"low": down, "high": up, "metric": low},
                ("an equal clip on both sides leaves rare tokens no room to grow (DAPO)",),
                {"clip_range": 0.28},
                kind=f"{who}-asymmetry",
            )


def check_outliers(h: History) -> Iterator[Symptom]:
    """In most of the last 5 steps some token's ratio is beyond 100 or below 1/100."""
    for name, who in (("ratio/log_max", "joint"), ("baseline/log_ratio_max", "baseline")):
        if h.count(name) < 5:
            continue
        largest = h.level(name)
        if largest < OUTLIER:
            continue
        since = h.since(name, lambda v: v >= OUTLIER)
        yield Symptom(
            "note" if who == "baseline" else "warning",
            since,
            f"Some tokens' probability ratio is {exp(min(largest, 50)):.0f} to 1 and more "
            f"({who} policy) since step {since}.",
            {"metric": name, "log_ratio": largest},
            TOO_FAR,
            lower(h, "base_lr", 3),
            kind=who,
        )


def check_mismatch(h: History) -> Iterator[Symptom]:
    """The sampler's log-probs are not the trainer's, of the same tokens and weights."""
    name = "sampling/sampling_logp_difference/mean"
    difference = h.level(name)
    if h.count(name) >= 3 and difference >= MISMATCH_WARNING:
        since = h.since(name, lambda v: v >= MISMATCH_WARNING)
        yield Symptom(
            "critical" if difference >= MISMATCH_CRITICAL else "warning",
            since,
            f"Sampler and trainer differ by {difference:.2g} nats a token since step {since}: "
            "training is off-policy without knowing it.",
            {"metric": name, "difference": difference},
            (
                "the sampler runs in another precision or with another kernel",
                "top-k, top-p, a penalty or a temperature that the trainer does not apply",
                "the sampler still has older weights",
            ),
            {"temperature": 1.0},
        )
    ratios = h.tail("sampling/importance_sampling_ratio/mean", 5)
    if len(ratios) >= 3 and not 0.5 <= float(np.median(ratios)) <= 2.0:
        yield Symptom(
            "warning",
            h.since("sampling/importance_sampling_ratio/mean", lambda v: not 0.5 <= v <= 2.0),
            f"The mean importance ratio is {np.median(ratios):.2g}, outside 0.5 to 2.",
            {"ratio": float(np.median(ratios))},
            ("the sampler and the trainer do not hold the same policy",),
            {"temperature": 1.0},
            kind="ratio",
        )


CLIPPING = Detector(
    "clipping",
    (("clip_ratio/region_mean", "baseline/clip_ratio", "clip_ratio/low_mean"),),
    check_clipping,
    "rldoctor clip_saturation: 20 %, 40 %; low over high 3 with at least 2 %",
)
OUTLIERS = Detector(
    "ratio_outliers", (("ratio/log_max", "baseline/log_ratio_max"),), check_outliers, "[ours]: 100"
)
MISMATCH = Detector(
    "logprob_mismatch",
    (("sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean"),),
    check_mismatch,
    "verl rollout importance sampling guide: 0.1 nats, mean ratio 0.5 to 2",
)

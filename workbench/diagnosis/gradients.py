"""Gradients and losses that jump out of their past, fade away or are exactly zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.diagnosis.detector import Detector, Symptom, lower
from workbench.diagnosis.history import History
from workbench.diagnosis.learning import gaining, solved
from workbench.diagnosis.statistics import robust_z

NORMS = (
    "grad_norm",
    "grad_norm/sft",
    "grad_norm/rl",
    "baseline/grad_norm",
    "coordinator/grad_norm",
)
"""Norms before clipping."""
LOSSES = ("loss/sft", "loss")

PAST = 30
SPIKE_Z = 8.0
"""[rldoctor: 8 robust σ]"""
SPIKE_RATIO = 4.0
"""A spike is also this many times the median: 8 σ of a calm past may be little. [ours]"""
VANISHED = 0.05
"""Share of its early size a gradient must have fallen to. [rldoctor]"""


def check_spikes(h: History) -> Iterator[Symptom]:
    """A norm 8 robust σ above, and 4 times, the median of the last 30.

    Clipping makes up for a single one: that is a note, the third in 30 a warning [rldoctor]. What
    moves θ is grad_norm: a part of it that jumps alone is a note. Norms of θ̂ and w hang on live
    importance ratios, whose tails are heavy: they are always a note [ours].
    """
    for name in NORMS:
        value, past = h.now(name), h.before(name, PAST)
        if not value > 0 or len(past) < 5:
            continue
        middle = float(np.median(past))
        z, ratio = robust_z(value, past), value / max(middle, 1e-12)
        if z < SPIKE_Z or ratio < SPIKE_RATIO:
            continue
        n_before = sum(p > SPIKE_RATIO * middle for p in past)
        severe = n_before >= 2 and name == "grad_norm"
        yield Symptom(
            "warning" if severe else "note",
            h.step,
            f"{name} is {value:.3g} at step {h.step}, {ratio:.0f} times the median of the steps "
            "before it.",
            {"metric": name, "value": value, "median": middle, "z": z, "spikes_before": n_before},
            (
                "a few broken or very unusual samples in the step's batch",
                "a learning rate near the edge of what is stable",
            ),
            lower(h, "max_grad_norm", 2) | lower(h, "base_lr", 3),
            kind=name,
        )


def check_loss_spikes(h: History) -> Iterator[Symptom]:
    """A loss 8 robust σ above, and 2.5 times, the median of the last 30."""
    for name in LOSSES:
        value, past = h.now(name), h.before(name, PAST)
        if not value > 0 or len(past) < 5:
            continue
        middle = float(np.median(past))
        z = robust_z(value, past)
        if z < SPIKE_Z or middle <= 0 or value < 2.5 * middle or value < past.max() * 1.5:
            continue
        yield Symptom(
            "warning",
            h.step,
            f"{name} is {value:.3g} at step {h.step} after a median of {middle:.3g}: this step's "
            "batch is unlike those before.",
            {"metric": name, "value": value, "median": middle, "z": z},
            (
                "broken samples: wrong encoding, shuffled or cut texts, another language",
                "the step before moved the weights too far",
            ),
            {"set_aside": None} | lower(h, "base_lr", 3),
            kind=name,
        )


def check_vanishing(h: History) -> Iterator[Symptom]:
    """The median of the last 5 norms is below 5 % of the first 5's, and nothing is gained.

    The whole is looked at only where its parts are not logged: a method that switches one of them
    off, as HPT does with SFT, makes the whole small by design.
    """
    parts = [name for name in ("grad_norm/rl", "grad_norm/sft") if name in h]
    for name in parts or ["grad_norm"]:
        if h.count(name) < 12:
            continue
        early, now = h.start(name), h.level(name)
        if not 0 < now <= VANISHED * early or solved(h) or gaining(h):
            continue
        alike = h.level("frac_reward_zero_std")
        yield Symptom(
            "warning",
            h.since(name, lambda v, limit=VANISHED * early: v <= limit),  # type: ignore[misc]
            f"{name} has fallen to {now / early:.1%} of its early size ({early:.3g} to {now:.3g}): "
            "hardly anything is learned any more.",
            {"metric": name, "early": early, "now": now, "frac_reward_zero_std": alike},
            (
                "nearly all groups have equal rewards, so that advantages are zero"
                if alike >= 0.5
                else "the policy has become so sure that no sample changes it",
                "a learning-rate schedule that has ended",
            ),
            {"temperature": 1.0, "group_size": None},
            kind=name,
        )


def check_zero(h: History) -> Iterator[Symptom]:
    """A norm that is exactly zero three times in a row: a part that gets no gradient at all."""
    for name in ("grad_norm", "grad_norm/sft", "baseline/grad_norm", "coordinator/grad_norm"):
        last = h.tail(name, 3)
        if len(last) == 3 and not last.any() and not solved(h):
            yield Symptom(
                "critical",
                h.since(name, lambda v: v == 0, misses=0),
                f"{name} is exactly 0 since step {h.since(name, lambda v: v == 0, misses=0)}: "
                "these weights are not trained.",
                {"metric": name, "zeros": 3},
                (
                    "parameters that are frozen or detached from the loss",
                    "all rewards of every group are equal (see frac_reward_zero_std)",
                ),
                {"train_coordinator": True} if name.startswith("coordinator") else {},
                kind=name,
            )


SPIKES = Detector(
    "gradient_spike",
    (("grad_norm",),),
    check_spikes,
    "rldoctor grad_pathology: 8 robust σ, three spikes; 4 times the median [ours]",
)
LOSS_SPIKES = Detector(
    "loss_spike",
    (LOSSES,),
    check_loss_spikes,
    "8 robust σ as for gradients, 2.5 times the median [ours]",
)
VANISHING = Detector(
    "vanishing_gradient", (("grad_norm",),), check_vanishing, "rldoctor grad_pathology: 5 %"
)
ZERO = Detector("zero_gradient", (("grad_norm",),), check_zero, "[ours]: three exact zeros")

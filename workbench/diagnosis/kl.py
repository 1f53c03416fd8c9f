"""KL to the frozen starting policy: blowing up, or strangled by its own coefficient."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.diagnosis.detector import Detector, Symptom, higher, lower
from workbench.diagnosis.history import History
from workbench.diagnosis.learning import gaining, solved
from workbench.diagnosis.statistics import robust_z

HIGH, EXTREME = 0.5, 2.0
"""Nats a token. [rldoctor kl_drift]"""
IN_A_ROW = 3
"""Rows, since the mean of k3 has a heavy tail: a single unlikely text can make it large. [ours]"""
EARLY = 8
"""Rows before which the reward's trend cannot be told from its noise. [ours]"""
FLAT = 1e-4
"""[rldoctor kl_drift]"""
JUMP_Z, JUMP_RATIO, JUMP_LEAST = 8.0, 5.0, 0.5
"""[rlwatch kl_explosion has 3 σ; on groups of eight that is noise: ours]"""

CAUSES = (
    "a learning rate that is too high",
    "a KL coefficient that is 0 or too small to hold the policy",
    "a reward that pays for texts unlike the starting policy's",
)


def check_blowup(h: History) -> Iterator[Symptom]:
    """KL beyond 2 nats a token, beyond 0.5 while nothing is gained, or jumping.

    Beyond 2: the median of three rows. Beyond 0.5: all three. That is told from the first rows on:
    KL is exactly 0 where a run starts, so nothing about the run has to be known first.
    """
    last = h.tail("kl", IN_A_ROW)
    level = float(np.median(last))
    if len(last) == IN_A_ROW and (level >= EXTREME or last.min() >= HIGH):
        paid = gaining(h) or solved(h)
        if h.count("reward") < EARLY:  # too few for a trend
            paid = paid or h.level("reward", 2) > h.start("reward", 2)
        if level >= EXTREME or not paid:
            since = h.since("kl", lambda v: v >= HIGH)
            yield Symptom(
                "critical" if level >= EXTREME and not paid else "warning",
                since,
                f"KL to the starting policy is {level:.2g} nats a token, above {HIGH:g} since step "
                f"{since}"
                + (", while the policy gains by it." if paid else ", and nothing is gained by it."),
                {"metric": "kl", "kl": level, "largest": float(h.tail("kl", 20).max())},
                CAUSES,
                lower(h, "base_lr", 5) | _more_kl(h),
            )
    value, past = h.now("kl"), h.before("kl", 20)
    if len(past) >= 12 and value >= max(JUMP_LEAST, JUMP_RATIO * float(np.median(past))):
        z = robust_z(value, past)
        if z >= JUMP_Z and value > 2 * float(past.max()):
            yield Symptom(
                "note",  # k3 of a single unlikely text can do it
                h.step,
                f"KL to the starting policy jumped to {value:.2g} at step {h.step} from a median "
                f"of {np.median(past):.2g}.",
                {"metric": "kl", "kl": value, "median": float(np.median(past)), "z": z},
                CAUSES,
                lower(h, "base_lr", 5) | _more_kl(h),
                kind="jump",
            )


def _more_kl(h: History) -> dict[str, float | None]:
    coefficient = h.setting("kl_coef")
    if coefficient is not None and coefficient < 1e-3:
        return {"kl_coef": 1e-3}
    return higher(h, "kl_coef", 10)


def check_strangled(h: History) -> Iterator[Symptom]:
    """KL never above 1e-4 in 20 steps, though it is measured: the policy does not move."""
    values = h.tail("kl", 40)
    if len(values) < 20 or not values.any() or float(values.max()) > FLAT or solved(h):
        return
    if h.setting("kl_coef") == 0:
        return
    yield Symptom(
        "warning",
        h.last_steps("kl", 40)[0],
        f"KL to the starting policy never exceeded {values.max():.1g} in {len(values)} steps: the "
        "policy is held where it began.",
        {"metric": "kl", "largest": float(values.max()), "steps": len(values)},
        (
            "a KL coefficient that outweighs the reward",
            "a learning rate that is too small to move the weights",
        ),
        lower(h, "kl_coef", 10) | higher(h, "base_lr", 5),
    )


BLOWUP = Detector(
    "kl_blowup",
    (("kl",),),
    check_blowup,
    "rldoctor kl_drift: 0.5 high, 2.0 extreme; jump [ours]",
    at_once=True,
)
STRANGLED = Detector("kl_strangled", (("kl",),), check_strangled, "rldoctor kl_drift: 1e-4")

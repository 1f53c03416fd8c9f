"""What is BRIDGE's own: SFT against RL, a coordinator that harms, idles or blows up, θ̂'s drift."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.diagnosis.detector import Detector, Symptom, higher, lower, rounded
from workbench.diagnosis.history import History
from workbench.diagnosis.statistics import binomial_error

CONFLICT_WINDOW, CONFLICT_SHARE = 8, 0.75
HARM_Z, HARM_LEAST = -3.0, 0.05
HARM_ESS = 0.8
"""Effective sample size over G below which the shared gain is not even noted. [ours]"""
HARM_CAUSES = (
    "demonstrations that are flawed or of another task: see the suspects",
    "a coordinator that learns too fast",
    "SFT has given all it can, and now holds RL back",
)
INERT = 1e-4
BLOWN, BLOWN_CRITICAL = 0.3, 1.0
"""‖ΔW‖/‖W‖ over all adapted matrices. [ours]"""
ESS_NOTE, ESS_WARNING = 0.5, 0.3
"""Effective sample size over G; 0.5 good, 0.3 warning: [verl rollout_is guide]"""


def check_conflict(h: History) -> Iterator[Symptom]:
    """In 6 of the last 8 steps cos(g^S, g^R) lies below its noise band."""
    cosine = h.tail("alignment/cosine", CONFLICT_WINDOW)
    noise = h.tail("alignment/noise", CONFLICT_WINDOW)
    if len(cosine) < CONFLICT_WINDOW or len(noise) < CONFLICT_WINDOW:
        return
    against = float((cosine < -noise).mean())
    if against < CONFLICT_SHARE:
        return
    since = h.since("alignment/cosine", lambda v: v < 0)
    yield Symptom(
        "warning",
        since,
        f"SFT and RL gradients oppose each other beyond noise in {against:.0%} of the last "
        f"{CONFLICT_WINDOW} steps (cosine {np.median(cosine):.2f}), below 0 since step {since}.",
        {"metric": "alignment/cosine", "share": against, "cosine": float(np.median(cosine))},
        (
            "demonstrations that teach what the reward punishes: see the suspects",
            "an SFT weight that is too high this late in the run",
        ),
        {"set_aside": None} | _more_rl(h),
    )


def check_harm(h: History) -> Iterator[Symptom]:
    """The joint policy does worse than the RL-only one, by z < −3 and 0.05.

    A warning where both policies wrote for themselves: in the last two paired gains, or the last
    three evaluations. The shared gain is a note at most: its rollouts are the joint policy's alone,
    so it says nothing of what the RL-only one writes where those never go. It has been −0.2 where
    the paired gain was +0.5.
    """
    gain, error = h.tail("gain/paired", 2), h.tail("gain/paired_se", 2)
    if len(gain) == len(error) == 2 and _harms(gain, error):
        since = h.since("gain/paired", lambda v: v < 0)
        yield Symptom(
            "warning",
            since,
            f"The paired cooperative gain is {gain.mean():.2f} in the last two measurements "
            f"(z = {_z(gain, error):.1f}), below 0 since step {since}: SFT and coordinator do "
            "harm.",
            {"metric": "gain/paired", "gain": float(gain.mean()), "z": _z(gain, error)},
            HARM_CAUSES,
            _less_sft(h),
            kind="gain",
        )
    joint, alone = h.tail("eval/accuracy", 3), h.tail("eval/baseline_accuracy", 3)
    if len(joint) == len(alone) == 3:
        n = h.setting("evaluation_prompts") or 100  # the same ones each time
        mean = float((joint - alone).mean())
        sigma = float(np.hypot(binomial_error(joint.mean(), n), binomial_error(alone.mean(), n)))
        if mean <= -2 * HARM_LEAST and mean <= HARM_Z * sigma:
            yield Symptom(
                "warning",
                h.last_steps("eval/accuracy", 3)[0],
                f"The joint policy's held-out accuracy is {-mean:.0%} below the RL-only one's in "
                "the last three evaluations: SFT and coordinator do harm.",
                {"metric": "eval/accuracy", "difference": mean, "standard_error": sigma},
                HARM_CAUSES,
                _less_sft(h),
                kind="accuracy",
            )
    gain, error = h.tail("gain/shared", 10), h.tail("gain/shared_se", 10)
    if len(gain) == len(error) == 10 and h.level("gain/ess", 10) >= HARM_ESS:
        every = h.setting("paired_gain_every") or 0
        ahead = len(joint) == len(alone) == 3 and joint[-1] > alone[-1]
        if _harms(gain, error) and not ahead:
            since = h.since("gain/shared", lambda v: v < 0)
            yield Symptom(
                "note",
                since,
                f"The shared gain is {gain.mean():.2f} over the last 10 measurements "
                f"(z = {_z(gain, error):.1f}), below 0 since step {since}. It sees the joint "
                "policy's rollouts alone: the paired gain tells whether it is so.",
                {"metric": "gain/shared", "gain": float(gain.mean()), "z": _z(gain, error)},
                HARM_CAUSES,
                {"paired_gain_every": None if 0 < every <= 5 else 5},
                kind="shared",
            )


def _z(gain: np.ndarray, error: np.ndarray) -> float:
    """Of the sum of independent measurements; 0 where none has an error to compare with."""
    sigma = float(np.sqrt((error**2).sum()))
    return float(gain.sum()) / sigma if sigma else 0.0


def _harms(gain: np.ndarray, error: np.ndarray) -> bool:
    return gain.mean() <= -HARM_LEAST and _z(gain, error) <= HARM_Z


def _less_sft(h: History) -> dict[str, float | None]:
    return _more_rl(h) | lower(h, "coordinator_lr", 5)


def _more_rl(h: History) -> dict[str, float | None]:
    """λ up to 0.8, or half of the rest of the way to 1."""
    weight = h.setting("rl_weight")
    return {"rl_weight": 0.8 if weight is None or weight < 0.8 else rounded((1 + weight) / 2)}


def check_inert(h: History) -> Iterator[Symptom]:
    """After 20 rows the coordinator changes no weight matrix by more than 1e-4 of its norm."""
    name = "coordinator/ratio"
    ratio = h.level(name, 3)
    if h.count(name) < 3 or h.n_rows < 20 or ratio >= INERT:
        return
    if h.setting("train_coordinator") is False or h.setting("coordinator_lr") == 0:
        return
    yield Symptom(
        "warning",
        h.since(name, lambda v: v < INERT),
        f"The coordinator is {ratio:.1g} of the weights' norm after {h.n_rows} steps: it does "
        "nothing.",
        {"metric": name, "ratio": ratio},
        ("a coordinator learning rate that is too small",),
        higher(h, "coordinator_lr", 10),
    )


def check_blowup(h: History) -> Iterator[Symptom]:
    """‖ΔW‖ at 0.3 of ‖W‖ and more: the coordinator outweighs what it should adjust."""
    name = "coordinator/ratio"
    ratio = float(h.tail(name, 1)[-1])
    if ratio < BLOWN:
        return
    since = h.since(name, lambda v: v >= BLOWN)
    yield Symptom(
        "critical" if ratio >= BLOWN_CRITICAL else "warning",
        since,
        f"The coordinator's change is {ratio:.2f} of the weights' norm since step {since}: it "
        "outweighs the model.",
        {"metric": name, "ratio": ratio},
        ("a coordinator learning rate that is too high",),
        lower(h, "coordinator_lr", 10),
    )


def check_drift(h: History) -> Iterator[Symptom]:
    """Few of a group's rollouts still count for θ̂, or θ̂ is left as it is though ĝ is taken."""
    moved, taken = h.last_steps("baseline/grad_norm", 1), h.last_steps("loss/baseline_rl", 3)
    if moved and len(taken) == 3 and moved[0] < taken[0]:
        yield Symptom(
            "warning",
            moved[0] + 1,
            f"θ̂ was last updated at step {moved[0]}, though its gradient is taken at each step: "
            "what is compared with it is out of date.",
            {"metric": "baseline/grad_norm", "last_update": moved[0]},
            ("the baseline's update is switched off or fails",),
            {"stale_baseline_from": 0, "baseline_mode": "reset"},
            kind="stale",
        )
    name = "gain/ess"
    ess = h.level(name, 8)
    if h.count(name) < 8 or ess >= ESS_NOTE:
        return
    limit = ESS_WARNING if ess < ESS_WARNING else ESS_NOTE
    since = h.since(name, lambda v: v < limit)
    yield Symptom(
        "warning" if ess < ESS_WARNING else "note",
        since,
        f"θ̂ has drifted so far that {ess:.0%} of a group's rollouts count for it since step "
        f"{since}: the shared gain and θ̂'s gradient rest on few samples.",
        {"metric": name, "ess": ess, "blanked": h.level("gain/blanked", 8)},
        (
            "θ learns much from demonstrations that θ̂ never sees",
            "θ̂ is not updated any more",
            "a learning rate that is too high",
        ),
        {"baseline_mode": "reset"} | lower(h, "base_lr", 2),
    )


CONFLICT = Detector(
    "sft_rl_conflict",
    (("alignment/cosine",), ("alignment/noise",)),
    check_conflict,
    "[ours]: 6 of 8 steps outside the noise band",
)
HARM = Detector(
    "coordinator_harm",
    (("gain/shared", "gain/paired", "eval/baseline_accuracy"),),
    check_harm,
    "[ours]: z < −3 and at least 0.05 in paired gains, or 0.1 in evaluations",
)
COORDINATOR_INERT = Detector(
    "coordinator_inert", (("coordinator/ratio",),), check_inert, "[ours]: 1e-4 after 20 steps"
)
COORDINATOR_BLOWUP = Detector(
    "coordinator_blowup",
    (("coordinator/ratio",),),
    check_blowup,
    "[ours]: 0.3 and 1 of the weights' norm",
    at_once=True,
)
DRIFT = Detector(
    "baseline_drift",
    (("gain/ess",),),
    check_drift,
    "verl rollout importance sampling guide: effective sample size 0.5 good, 0.3 warning",
)

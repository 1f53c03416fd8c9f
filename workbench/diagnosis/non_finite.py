"""A loss, gradient or score that is NaN or infinite: nothing after it can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from workbench.diagnosis.detector import Detector, Symptom, rounded
from workbench.diagnosis.history import History

WATCHED = ("loss", "grad_norm", "reward", "kl", "entropy", "baseline/", "coordinator/", "gain/ess")
"""Beginnings of the names that count; a blank gain, say, is NaN by design."""

CAUSES = (
    "numbers beyond the range of a half-precision format",
    "a step so large that the weights ran away",
    "a logarithm of 0 or a division by 0 in a reward or loss",
)


def not_finite(setting: Callable[[str], Any]) -> dict[str, Any]:
    """What to change; `setting` gives the value in force."""
    lr, scale = setting("base_lr"), setting("float16_scale")
    overflow: dict[str, Any] = {"float16_scale": 0.0} if scale else {}
    return overflow | {"base_lr": rounded(lr / 5) if lr else None, "max_grad_norm": 1.0}


def check(h: History) -> Iterator[Symptom]:
    """One such value is enough. [ours, as rlwatch's loss_nan]"""
    bad = [entry for entry in h.non_finite if entry[1].removeprefix("eval_").startswith(WATCHED)]
    if not bad:
        return
    step, name, value = bad[0]
    yield Symptom(
        "critical",
        step,
        f"{name} is {value:g} at step {step}: what was learned since then is lost.",
        {"metric": name, "value": str(value), "n_values": len(bad)},
        CAUSES,
        not_finite(h.setting),
    )


DETECTOR = Detector("non_finite", (), check, "[ours]; rlwatch loss_nan: one value", at_once=True)

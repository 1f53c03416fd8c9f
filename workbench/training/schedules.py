"""How a setting goes from one value to another over a run: functions of the step alone."""

from __future__ import annotations

from math import cos, pi
from typing import Literal

from workbench.config import RunConfig

Schedule = Literal["constant", "linear", "cosine"]


def scheduled(schedule: Schedule, start: float, end: float, step: int, steps: int) -> float:
    """`start` at step 1, `end` from step `steps` + 1 on, in between by the schedule's shape.

    linear: start + (end − start)·x;  cosine: end + (start − end)·(1 + cos πx)/2;  x = (step − 1)/
    steps, at most 1. constant: `start`, always.
    """
    if schedule == "constant":
        return start
    x = min(1.0, (step - 1) / steps) if steps else 1.0
    if schedule == "linear":
        return start + (end - start) * x
    return end + (start - end) * (1 + cos(pi * x)) / 2


def rl_weight(c: RunConfig, step: int) -> float:
    """λ at a step. [paper: constant; the schedules are ours]"""
    t = c.training
    return scheduled(t.rl_weight_schedule, t.rl_weight, t.rl_weight_end, step, t.rl_weight_steps)

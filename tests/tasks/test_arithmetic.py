"""The pocket task's data against a checker that reads each line by itself."""

from __future__ import annotations

from collections import Counter

import pytest

from workbench.config import ArithmeticTaskConfig
from workbench.tasks.arithmetic import ArithmeticTask
from workbench.tasks.problem import Demonstration


def faults(demo: Demonstration) -> set[str]:
    """What is wrong with a solution, found by evaluating each of its lines."""
    *steps, answer = demo.solution.replace(" ", "").split("\n")
    found = set()
    if any(eval(left) != int(right) for left, right in (s.split("=") for s in steps)):
        found.add("a line is wrong")
    if steps[-1].split("=")[1] != answer.lstrip("#"):
        found.add("the answer is not the last line's")
    if int(answer.lstrip("#")) != eval(demo.prompt.removesuffix("=?")):
        found.add("the answer is wrong")
    if len(steps) != len(demo.prompt.removesuffix("=?").replace("-", "+").split("+")) - 1:
        found.add("the number of steps")
    return found


EXPECTED = {
    "clean": set(),
    "wrong_step": {"a line is wrong", "the answer is wrong"},
    "wrong_answer": {"the answer is not the last line's", "the answer is wrong"},
    "detour": {"the number of steps"},
    "other_task": {"the answer is wrong"},
}


def test_each_demonstration_has_its_flaw_and_no_other() -> None:
    demos = ArithmeticTask(ArithmeticTaskConfig(task_seed=3)).demonstrations()
    assert Counter(d.quality for d in demos) == {
        "clean": 192,
        **dict.fromkeys(list(EXPECTED)[1:], 16),
    }
    for demo in demos:
        assert faults(demo) == EXPECTED[demo.quality], demo


def test_no_prompt_is_in_two_splits_and_none_held_out_is_shown() -> None:
    task = ArithmeticTask(ArithmeticTaskConfig())
    splits = {s: {p.prompt for p in task.problems(s)} for s in ("train", "validation", "hard")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 512 + 128 + 128
    shown = {d.prompt for d in task.demonstrations()}
    assert not shown & (splits["validation"] | splits["hard"])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_an_unfamiliar_style_changes_the_text_of_clean_ones_alone(share: float) -> None:
    plain = ArithmeticTask(ArithmeticTaskConfig()).demonstrations()
    restyled = ArithmeticTask(ArithmeticTaskConfig(unfamiliar_share=share)).demonstrations()
    changed = [b for a, b in zip(plain, restyled, strict=True) if a != b]
    assert len(changed) == share * 192
    assert all(d.quality == "clean" and " = " in d.solution for d in changed)
    assert all(faults(d) == set() for d in changed)

import builtins
import random
import re
from typing import Any

import pytest

from workbench.config import ConfigError, GymTaskConfig
from workbench.tasks import Problem, make_task
from workbench.tasks.gym import GymTask, work_out

pytest.importorskip("reasoning_gym", reason="extra `gym` is not installed")

SMALL: dict[str, Any] = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}


def chain_sum(**changes: Any) -> GymTask:
    values: dict[str, Any] = {
        "gym_settings": SMALL,
        "gym_train": 60,
        "gym_validation": 20,
        "gym_demonstrations": 40,
        "prompt_suffix": " Go on.",
    }
    return GymTask(GymTaskConfig(**{**values, **changes}))


def expression(prompt: str) -> str:
    found = re.fullmatch(r".*problem: (.*) = Go on\.", prompt)
    assert found
    return found.group(1)


def test_splits_are_right_and_apart() -> None:
    task = chain_sum()
    prompts: list[str] = []
    for split, count, terms in (
        ("train", 60, {2, 3}),
        ("validation", 20, {2, 3}),
        ("hard", 20, {4, 5}),
    ):
        problems = task.problems(split)  # type: ignore[arg-type]
        assert len(problems) == count
        assert {len(expression(p.prompt).split()[::2]) for p in problems} == terms
        for problem in problems:
            assert int(problem.answer) == eval(expression(problem.prompt))
        prompts += [p.prompt for p in problems]
    assert len(set(prompts)) == len(prompts)


def test_demonstrations_are_right_at_every_line_and_held_out_prompts_have_none() -> None:
    task = chain_sum()
    held_out = {p.prompt for split in ("validation", "hard") for p in task.problems(split)}  # type: ignore[arg-type]
    assert len(task.demonstrations()) == 40
    for demonstration in task.demonstrations():
        *steps, last = demonstration.solution.split("\n")
        for step in steps:
            left, right = step.split(" = ")
            assert eval(left) == int(right)
        assert last == f"The final answer is {demonstration.answer}."
        assert int(demonstration.answer) == eval(expression(demonstration.prompt))
        own = Problem("x", demonstration.prompt, demonstration.answer)
        assert task.reward(demonstration.solution, own) == 1.0
        assert demonstration.prompt not in held_out


def test_work_out() -> None:
    assert work_out("0 - 4 - 8") == "0 - 4 = -4\n-4 - 8 = -12\nThe final answer is -12."


def test_data_follows_the_seed_alone() -> None:
    before = random.getstate()
    first, again, other = chain_sum(), chain_sum(), chain_sum(gym_seed=1)
    assert first.demonstrations() == again.demonstrations()
    assert first.problems("train") == again.problems("train") != other.problems("train")
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("5 - 9 = -4. The final answer is -4.", 1.0),
        ("# -4", 1.0),
        ("#-4.0 and nothing else", 1.0),
        ("7 # maybe 3 # -4", 1.0),
        ("-4 # 3", 0.0),
        ("-4 #", 0.0),
        ("The answer is 4.", 0.0),
        ("-4 or 5?", 0.0),
        ("", 0.0),
    ],
)
def test_chain_sum_reads_the_number_at_the_end(completion: str, reward: float) -> None:
    assert chain_sum().reward(completion, Problem("train-0000", "5 - 9 =", "-4")) == reward


def test_other_tasks_are_scored_by_reasoning_gym() -> None:
    task = make_task(GymTaskConfig(gym_name="leg_counting", gym_train=5, gym_validation=2))
    problem = task.problems("train")[3]
    for right in (
        problem.answer,
        f"It has\n{problem.answer}",
        f"so # {problem.answer}",
        f"<answer>1</answer> no, <answer>{problem.answer}</answer>.",
    ):
        assert task.reward(right, problem) == 1.0
    assert task.reward(f"{problem.answer}1", problem) == 0.0
    assert task.reward("", problem) == 0.0
    assert task.problems("hard") == []


def test_a_scorer_that_stumbles_means_wrong() -> None:
    task = make_task(GymTaskConfig(gym_name="prime_factorization", gym_train=2, gym_validation=0))
    problem = task.problems("train")[0]
    assert task.reward("it is 2 x many", problem) == 0.0
    assert task.reward(problem.answer, problem) == 1.0


def test_solutions_that_reasoning_gym_has_are_used_and_others_named_when_asked_for() -> None:
    few = {"gym_train": 4, "gym_validation": 0, "gym_demonstrations": 3}
    task = make_task(GymTaskConfig(gym_name="count_bits", **few))
    for demonstration in task.demonstrations():
        assert task.extract(demonstration.solution) == demonstration.answer
    without = make_task(GymTaskConfig(gym_name="leg_counting", **few))
    assert len(without.problems("train")) == 4
    with pytest.raises(ConfigError, match="task.gym_name: leg_counting comes without solutions"):
        without.demonstrations()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gym_name": "chain_sums"}, "no 'chain_sums'; did you mean 'chain_sum'"),
        ({"gym_settings": {"terms": 3}}, "chain_sum has no setting 'terms'; there are .*max_terms"),
        ({"gym_settings": {"seed": 3}}, "chain_sum has no setting 'seed'"),
        ({"gym_settings": {"min_terms": 9}}, "task.gym_settings: chain_sum refuses them: .*"),
        ({"gym_settings": {"min_terms": "x"}}, "task.gym_settings: chain_sum refuses them: .*"),
    ],
)
def test_bad_settings_are_said_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        chain_sum(**changes)
    assert "\n" not in str(error.value)


def test_settings_that_no_problem_can_be_made_with() -> None:
    task = chain_sum(gym_name="knights_knaves", gym_settings={"depth_constraint": 1})
    with pytest.raises(ConfigError, match="task.gym_settings: knights_knaves cannot make") as error:
        task.problems("train")
    assert "\n" not in str(error.value)


def test_too_few_different_problems() -> None:
    task = chain_sum(gym_settings={**SMALL, "max_terms": 2}, gym_train=300)
    with pytest.raises(ConfigError, match=r"task.gym_train: .* has only 1\d\d more problems"):
        task.problems("train")


def test_missing_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_gym(name: str, *rest: Any) -> Any:
        if name == "reasoning_gym":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_gym)
    with pytest.raises(ConfigError, match=r"pip install 'bridge-workbench\[gym\]'"):
        chain_sum()


def test_a_demonstrations_own_prompt_is_scored_by_what_is_known_of_it() -> None:
    """Methods that learn by RL on demonstrations' prompts score against the whole entry."""
    gym = chain_sum(
        gym_name="knights_knaves",
        gym_settings={},
        gym_train=4,
        gym_validation=2,
        gym_demonstrations=4,
    )
    for demo in gym.demonstrations():
        problem = Problem(demo.id, demo.prompt, demo.answer)
        assert gym.reward(demo.solution, problem) == 1.0
        assert gym.reward("<answer>nobody</answer>", problem) == 0.0

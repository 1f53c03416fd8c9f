"""Rewards in parts: what each says, how they count, and what a failing one does."""

from pathlib import Path
from typing import Any

import pytest

from workbench.config import ArithmeticTaskConfig, ConfigError, GymTaskConfig, RunConfig
from workbench.tasks import PreparedTask, Problem, make_task, score
from workbench.tasks.rewards_text import chosen_letter

PROBLEM = Problem("p", "12+7-30=?", "-11")


def arithmetic(*rewards: dict[str, Any], **changes: Any) -> PreparedTask:
    config = RunConfig().with_changes(rewards=list(rewards), **changes).task
    task = make_task(config)
    assert isinstance(task, PreparedTask)
    return task


def test_a_task_without_settings_of_its_own_is_itself() -> None:
    task = make_task(ArithmeticTaskConfig())
    assert not isinstance(task, PreparedTask)
    found = score(task, "12+7=19\n#-11", PROBLEM)
    assert (found.reward, found.extracted, found.parts, found.error) == (1.0, "-11", {}, "")


def test_the_reward_is_the_weighted_mean_of_its_parts() -> None:
    task = arithmetic(
        {"kind": "task", "weight": 3},
        {"kind": "pattern", "pattern": r"(?m)^#", "weight": 1},
        {"kind": "exact", "pattern": r"#(.*)", "weight": 0},
    )
    right = task.score("#-11", PROBLEM)
    assert right.parts == {"task": 1.0, "pattern": 1.0, "exact": 1.0}
    assert right.reward == 1.0
    marked = task.score("#-12", PROBLEM)
    assert marked.parts == {"task": 0.0, "pattern": 1.0, "exact": 0.0}
    assert marked.reward == pytest.approx(0.25)
    assert task.reward("#-12", PROBLEM) == marked.reward
    assert marked.extracted == "-12"


def test_a_function_of_the_users_and_its_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def short(completion, problem):\n"
        "    if not completion:\n"
        "        raise LookupError('nothing\\nwritten')\n"
        "    return float('nan') if completion == 'odd' else len(completion) < 6\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = arithmetic({"kind": "task"}, {"kind": "function", "function": "my_rewards:short"})
    assert task.score("#-11", PROBLEM).parts == {"task": 1.0, "short": 1.0}
    failed = task.score("", PROBLEM)
    assert (failed.reward, failed.error) == (0.0, "short: LookupError: nothing written")
    odd = task.score("odd", PROBLEM)
    assert (odd.parts["short"], odd.error[:17]) == (0.0, "short: ValueError")
    with pytest.raises(ConfigError, match="cannot import 'my_rewards:long'"):
        arithmetic({"kind": "function", "function": "my_rewards:long"})


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"so \boxed{C}", "C"),
        (r"\boxed{\text{(B)}} beats \boxed{D}", "D"),
        ("The answer is (B).", "B"),
        ("**Answer:** E", "E"),
        ("<answer>A</answer>", "A"),
        ("I thought of B\n\n**C.**\n", "C"),
        ("A dog has four legs", None),
        ("the answer is Apple", None),
        ("F", None),
    ],
)
def test_the_letter_chosen(text: str, letter: str | None) -> None:
    assert chosen_letter(text, "ABCDE") == letter


def test_choice_rewards() -> None:
    task = arithmetic({"kind": "choice"})
    assert task.reward("The answer is (B)", Problem("q", "?", "B")) == 1.0
    assert task.reward("The answer is (B)", Problem("q", "?", "(C)")) == 0.0
    assert "none of the letters" in task.score("B", Problem("q", "?", "12")).error


def test_the_gyms_scorer_with_and_without_partial_credit() -> None:
    pytest.importorskip("reasoning_gym")
    sizes = {"gym_train": 4, "gym_validation": 0, "gym_demonstrations": 1}
    rewards = ({"kind": "gym", "threshold": 0, "name": "credit"}, {"kind": "gym"})
    task = make_task(
        GymTaskConfig.model_validate({"gym_name": "knights_knaves", "rewards": rewards, **sizes})
    )
    problem = task.problems("train")[0]
    first, second = problem.answer.rstrip(".").split(", and ")
    roles = problem.prompt.split("inhabited only by ")[1].split("s. ")[0].split("s and ")
    wrong = next(role for role in roles if not second.endswith(role))
    half = f"{first}, and {second.split(' is ')[0]} is a {wrong}."
    found = score(task, f"<answer>{half}</answer>", problem)
    assert 0 < found.parts["credit"] < 1
    assert found.parts["gym"] == 0.0
    assert score(task, f"<answer>{problem.answer}</answer>", problem).parts["gym"] == 1.0


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([{"kind": "pattern"}], "rewards.pattern: kind = 'pattern' needs one"),
        ([{"kind": "exact", "pattern": "("}], "rewards.pattern: not a regular"),
        ([{"kind": "exact", "pattern": "a"}], "rewards.pattern: needs a group"),
        ([{"kind": "task", "pattern": "a"}], "rewards.pattern: goes with"),
        ([{"kind": "function"}], "rewards.function: goes with"),
        ([{"kind": "function", "function": "x"}], "rewards.function: 'x' is not"),
        ([{"kind": "task"}, {"kind": "task"}], "rewards: two are called 'task'"),
        ([{"kind": "task", "weight": 0}], "rewards: every weight is 0"),
        ([{"kind": "choice", "letters": "ab"}], "rewards.letters: capital letters"),
        ([{"kind": "gym"}], "'gym' scores tasks of kind 'gym' only"),
    ],
)
def test_bad_rewards_are_said_in_one_line(rewards: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        arithmetic(*rewards)
    assert "\n" not in str(error.value)


def test_demonstrations_of_another_task() -> None:
    source = {"kind": "arithmetic", "task_seed": 5, "terms": [2], "n_demonstrations": 20}
    config = RunConfig().with_changes(demonstrations_from=source, n_prompts=50).task
    task = make_task(config)
    assert all(d.prompt.count("+") + d.prompt.count("-") >= 1 for d in task.demonstrations())
    assert len(task.demonstrations()) == 20
    assert len(task.problems("train")) == 50
    for bad in ({"kind": "none"}, {"kind": "arithmetic", "term": [2]}):
        with pytest.raises(ConfigError, match="demonstrations_from") as error:
            RunConfig().with_changes(demonstrations_from=bad)
        assert "\n" not in str(error.value)


def test_demonstrations_of_held_out_prompts_are_left_out() -> None:
    rows = [{"prompt": f"{n}+1=?", "solution": f"#{n + 1}", "answer": n + 1} for n in range(20)]
    settings = {"data": rows, "answer_pattern": r"#(\d+)", "validation_share": 0.5}
    source = {"kind": "dataset", **settings, "validation_share": 0.0}
    task = make_task(
        RunConfig(
            task={"kind": "dataset", **settings, "demonstrations_from": source}  # type: ignore[arg-type]
        ).task
    )
    held_out = {p.prompt for p in task.problems("validation")}
    assert len(held_out) == 10
    assert {d.prompt for d in task.demonstrations()} == {r["prompt"] for r in rows} - held_out


def test_what_is_too_long_is_left_out_and_counted() -> None:
    task = arithmetic(max_prompt_tokens=10, max_solution_tokens=16, terms=[2, 3, 4])
    everything = make_task(ArithmeticTaskConfig(terms=(2, 3, 4)))

    def encode(text: str) -> list[int]:
        return [0] * len(text)

    assert len(task.problems("train")) == len(everything.problems("train"))
    task.limit(encode, encode)
    kept = task.problems("train")
    assert kept == [p for p in everything.problems("train") if len(p.prompt) <= 10]
    assert task.dropped["train"] == len(everything.problems("train")) - len(kept) > 0
    shown = [
        d for d in everything.demonstrations() if len(d.prompt) <= 10 and len(d.solution) <= 16
    ]
    assert task.demonstrations() == shown
    assert task.dropped["demonstrations"] == len(everything.demonstrations()) - len(shown)
    with pytest.raises(ConfigError, match="all 512 training prompts are longer than 1 tokens"):
        arithmetic(max_prompt_tokens=1).limit(encode, encode)

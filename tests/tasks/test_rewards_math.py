"""math-verify in a process of its own: right answers, hostile ones, and threads."""

import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("math_verify")

from workbench.tasks import Problem  # noqa: E402
from workbench.tasks.rewards_math import MathError, MathReward  # noqa: E402


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    reward = MathReward(seconds=30.0, characters=4000)
    yield reward
    assert reward._worker is not None
    reward._worker.stop()


def says(reward: MathReward, completion: str, answer: str) -> float:
    return reward(completion, Problem("p", "?", answer)).value


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        (r"so it is $\boxed{\frac{1}{2}}$", "0.5", 1.0),
        (r"\boxed{\dfrac{3}{6}}", r"\frac12", 1.0),
        (r"first \boxed{3}, no: \boxed{4}", "4", 1.0),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", 1.0),
        (r"\boxed{(1, 2)}", "(1,2)", 1.0),
        (r"\boxed{x = 5}", "5", 1.0),
        ("The final answer is 1,000.", "1000", 1.0),
        (r"\boxed{0.51}", "0.5", 0.0),
        (r"\boxed{}", "3", 0.0),
        ("no answer at all", "3", 0.0),
        ("", "3", 0.0),
    ],
)
def test_answers_are_compared_as_mathematics(
    reward: MathReward, completion: str, answer: str, value: float
) -> None:
    assert says(reward, completion, answer) == value


def test_the_answer_found_is_kept(reward: MathReward) -> None:
    assert reward(r"\boxed{\frac{1}{2}}", Problem("p", "?", "0.5")).extracted == r"\frac{1}{2}"


def test_only_the_end_of_a_long_text_is_read(reward: MathReward) -> None:
    short = MathReward(seconds=30.0, characters=12)
    short._worker = reward._worker  # a process is slow to start
    assert says(short, r"\boxed{3}" + "." * 100 + r"\boxed{4}", "4") == 1.0
    assert says(short, r"\boxed{4}" + "." * 100, "4") == 0.0


def test_it_works_in_another_thread(reward: MathReward) -> None:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(says(reward, r"\boxed{7}", "7.0")))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_what_takes_too_long_is_an_error_and_the_next_is_scored() -> None:
    reward = MathReward(seconds=3.0, characters=4000)
    with pytest.raises(MathError, match="took longer than 3 s|MemoryError|ended"):
        says(reward, r"\boxed{9^{9^{9^{9}}} - 9^{9^{9^{8}}}}", "3")
    reward.seconds = 30.0
    assert says(reward, r"\boxed{3}", "3") == 1.0
    assert reward._worker is not None
    reward._worker.stop()

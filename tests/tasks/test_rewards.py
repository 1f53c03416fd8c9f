import random

import pytest

from workbench.tasks.rewards import flip, last_number, same_answer


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ("1,000", "1000"),
        ("1000.0", "1,000"),
        ("19.", "19"),
        ("+5", "5"),
        ("−4", "-4"),
        ("007", "7"),
        (".5", "0.50"),
        (" Paris ", "Paris"),
        ("1/2", "1/2"),
    ],
)
def test_answers_that_mean_the_same(found: str, right: str) -> None:
    assert same_answer(found, right)


@pytest.mark.parametrize(
    ("found", "right"),
    [(None, "0"), ("", "0"), ("5", "-5"), ("5.1", "5"), ("paris", "Paris"), ("nan", "NaN")],
)
def test_answers_that_differ(found: str | None, right: str) -> None:
    assert not same_answer(found, right)


def test_big_numbers_are_compared_digit_by_digit() -> None:
    assert not same_answer(str(10**40), str(10**40 + 1))
    assert same_answer(f"{10**40:,}", str(10**40))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 5 - 9 = -4.", "-4"),
        ("0-4-8=-12", "-12"),
        ("the answer is 7-2", "2"),
        ("it is 1,234,567.5, I think", "1,234,567.5"),
        ("either 3, 4", "4"),
        ("x = −8", "-8"),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number_of_a_text(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize("p", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_expected_flipped_reward(p: float, reward: float) -> None:
    n = 20_000
    mean = sum(flip(reward, p, seed=3, step=i // 100, sequence=i % 100) for i in range(n)) / n
    expected = (1 - 2 * p) * reward + p
    assert abs(mean - expected) <= 5 * (p * (1 - p) / n) ** 0.5


def test_flips_depend_on_nothing_but_their_key() -> None:
    keys = [(seed, step, i) for seed in range(2) for step in range(4) for i in range(32)]
    before = random.getstate()
    first = {key: flip(1.0, 0.3, *key) for key in keys}
    again = {key: flip(1.0, 0.3, *key) for key in reversed(keys)}
    assert first == again
    assert random.getstate() == before
    rows = [
        tuple(first[seed, step, i] for i in range(32)) for seed in range(2) for step in range(4)
    ]
    assert len(set(rows)) == 8  # seeds and steps flip different sequences


def test_a_larger_p_flips_more_of_the_same() -> None:
    few = {i for i in range(1000) if flip(1.0, 0.1, 0, 1, i) == 0.0}
    many = {i for i in range(1000) if flip(1.0, 0.4, 0, 1, i) == 0.0}
    assert few < many

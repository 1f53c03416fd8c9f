import itertools
import random
from typing import Any

import pytest

from workbench.config import GymTaskConfig
from workbench.tasks import make_task
from workbench.tasks.knights import Puzzle, solve, value, work_out

reasoning_gym = pytest.importorskip("reasoning_gym")


def instances(n_people: int, count: int, depth: int = 2) -> list[dict[str, Any]]:
    dataset = reasoning_gym.create_dataset(
        "knights_knaves", seed=7, size=count, n_people=n_people, depth_constraint=depth
    )
    return [dict(dataset[i], dataset=dataset) for i in range(count)]


def puzzle_of(entry: dict[str, Any]) -> Puzzle:
    m = entry["metadata"]
    return Puzzle(m["names"], m["statements"], m["knight_knave_terms"])


@pytest.mark.parametrize(("n_people", "depth"), [(2, 2), (3, 2), (3, 3), (4, 2)])
def test_every_worked_solution_earns_the_full_score(n_people: int, depth: int) -> None:
    for entry in instances(n_people, 25, depth):
        metadata = {k: v for k, v in entry["metadata"].items() if k != "solution"}
        text = work_out(metadata)
        answer = text.rpartition("<answer>")[2].removesuffix("</answer>")
        assert entry["dataset"].score_answer(answer, entry) == 1.0, text


def test_statements_are_written_as_the_question_has_them() -> None:
    for entry in instances(3, 25, depth=3):
        puzzle = puzzle_of(entry)
        for statement in puzzle.statements:
            assert puzzle.write(statement) in entry["question"]


def test_partial_values_agree_with_all_their_completions() -> None:
    rng = random.Random(0)
    for entry in instances(3, 20, depth=3):
        for statement in puzzle_of(entry).statements:
            known = {i: rng.random() < 0.5 for i in range(3) if rng.random() < 0.5}
            completions = {
                value(statement, dict(enumerate(roles)))
                for roles in itertools.product((True, False), repeat=3)
                if all(roles[i] == r for i, r in known.items())
            }
            found = value(statement, known)
            assert found is None or completions == {found}


def test_a_supposition_is_taken_back_where_it_contradicts() -> None:
    # A says "B lies"; B says "A and B are the same": A truthful → B lies → they differ, as said.
    names = ["Ann", "Bob"]
    terms = {"a_knight": "a sage", "a_knave": "a fool"}
    statements = [("not", ("telling-truth", 1)), ("<=>", ("telling-truth", 0), ("lying", 1))]
    with pytest.raises(ValueError, match="no roles fit"):
        solve(Puzzle(names, [("lying", 0), ("telling-truth", 1)], terms))
    lines, roles = solve(Puzzle(names, statements, terms))
    fits = [
        r
        for r in itertools.product((True, False), repeat=2)
        if (not r[1]) == r[0] and (r[0] == (not r[1])) == r[1]
    ]
    assert [tuple(roles[i] for i in range(2))] == fits
    assert any("contradiction" in line for line in lines)


@pytest.mark.parametrize("name", ["knights_knaves", "gsm_symbolic"])
def test_demonstrations_earn_the_tasks_own_reward(name: str) -> None:
    config = GymTaskConfig(gym_name=name, gym_train=8, gym_validation=4, gym_demonstrations=12)
    task = make_task(config)
    held_out = {p.prompt for p in task.problems("validation")}
    from workbench.tasks.problem import Problem

    for shown in task.demonstrations():
        assert shown.prompt not in held_out
        assert len(shown.solution.splitlines()) > 1
        assert task.reward(shown.solution, Problem("typed", shown.prompt, shown.answer)) == 1.0

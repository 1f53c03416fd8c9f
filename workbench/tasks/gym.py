"""Tasks of reasoning-gym (extra `gym`): any of its generators, with verifiable answers.

`chain_sum` is read and taught by us: an answer is the number behind the last '#', or where there
is no '#' the last number, and demonstrations are worked out from the problem's own expression:

    State the final answer to the following arithmetic problem: 6 + 2 - 3 =     prompt
    6 + 2 = 8                                                                   worked solution
    8 - 3 = 5
    The final answer is 5.

Every other task, worked out by knights.py (knights_knaves), by reasoning-gym (gsm_symbolic), or by
nobody, is scored by reasoning-gym itself (1.0 where its score is full, else 0.0), on the
text in the last <answer> tag, or behind the last '#', or else on the last line. [ours]
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any

from workbench.config import ConfigError, GymTaskConfig
from workbench.tasks import knights
from workbench.tasks.problem import Demonstration, Problem, Split
from workbench.tasks.rewards import last_number, same_answer

if TYPE_CHECKING:
    from reasoning_gym.factory import ProceduralDataset

TRIES = 20  # draws for each problem wanted, before the task counts as exhausted

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def create_gym_dataset(
    name: str, seed: int, size: int, settings: dict[str, Any]
) -> ProceduralDataset:
    """A reasoning-gym dataset.

    Raises ConfigError where reasoning-gym is not installed, has no such dataset or refuses a
    setting.
    """
    try:
        import reasoning_gym
    except ImportError:
        raise ConfigError(
            "task.kind: 'gym' needs reasoning-gym; pip install 'bridge-workbench[gym]'"
        ) from None
    known = reasoning_gym.factory.DATASETS
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"task.gym_name: reasoning-gym has no {name!r}{hint}")
    allowed = {field.name for field in dataclasses.fields(known[name][1])} - {"seed", "size"}
    for setting in settings:
        if setting not in allowed:
            raise ConfigError(
                f"task.gym_settings: {name} has no setting {setting!r}; "
                f"there are {', '.join(sorted(allowed)) or 'none'}"
            )
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"task.gym_settings: {name} refuses them: {error}") from None


def work_out(expression: str) -> str:
    """'6 + 2 - 3' → '6 + 2 = 8\\n8 - 3 = 5\\nThe final answer is 5.' (integers, + and - only)."""
    first, *rest = expression.split()
    total, lines = int(first), []
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(operand) if operator == "+" else total - int(operand)
        lines.append(f"{total} {operator} {operand} = {result}")
        total = result
    return "\n".join([*lines, f"The final answer is {total}."])


class GymTask:
    """Prompts, answers and rewards of one reasoning-gym dataset."""

    def __init__(self, config: GymTaskConfig) -> None:
        """Raises ConfigError at once where reasoning-gym cannot make this dataset."""
        self.config = config
        self._is_chain_sum = config.gym_name == "chain_sum"
        self._dataset = self._create("train", 1, config.gym_settings)

    def _create(self, split: str, count: int, settings: dict[str, Any]) -> ProceduralDataset:
        seed = random.Random(f"gym/{self.config.gym_seed}/{split}").getrandbits(31)
        return create_gym_dataset(self.config.gym_name, seed, count * TRIES, settings)

    def _draw(
        self, split: str, count: int, field: str, taken: set[str], **changes: Any
    ) -> dict[str, dict[str, Any]]:
        """`count` entries by id; no prompt is in `taken`, nor comes twice; adds them to `taken`."""
        entries: dict[str, dict[str, Any]] = {}
        dataset = self._create(split, max(count, 1), {**self.config.gym_settings, **changes})
        for index in range(count * TRIES):
            if len(entries) == count:
                break
            try:
                entry = dataset[index]
            except Exception as error:  # settings that its own check lets pass, e.g. knights_knaves
                raise ConfigError(
                    f"task.gym_settings: {self.config.gym_name} cannot make a problem with them "
                    f"({type(error).__name__}: {error})"
                ) from None
            if entry["question"] not in taken:
                taken.add(entry["question"])
                entries[f"{split}-{len(entries):04d}"] = entry
        if len(entries) < count:
            raise ConfigError(
                f"task.{field}: {self.config.gym_name} with these settings has only "
                f"{len(entries)} more problems, not {count}"
            )
        return entries

    @cached_property
    def _entries(self) -> dict[Split, dict[str, dict[str, Any]]]:
        c, taken = self.config, set[str]()
        validation = self._draw("validation", c.gym_validation, "gym_validation", taken)
        hard: dict[str, dict[str, Any]] = {}
        if self._is_chain_sum:
            most = self._dataset.config.max_terms
            longer = {"min_terms": most + 1, "max_terms": most + 2}
            hard = self._draw("hard", c.gym_validation, "gym_validation", taken, **longer)
        train = self._draw("train", c.gym_train, "gym_train", taken)
        return {"train": train, "validation": validation, "hard": hard}

    @cached_property
    def _problems(self) -> dict[Split, list[Problem]]:
        return {
            split: [
                Problem(name, self._prompt(entry), str(entry["answer"]))
                for name, entry in entries.items()
            ]
            for split, entries in self._entries.items()
        }

    def _prompt(self, entry: dict[str, Any]) -> str:
        return entry["question"] + self.config.prompt_suffix

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, all different; `hard` (chain_sum only) has 1 or 2 terms more.

        Raises ConfigError where the settings allow too few different problems.
        """
        return self._problems[split]

    @cached_property
    def _demonstration_entries(self) -> dict[str, dict[str, Any]]:
        taken = {
            entry["question"]
            for split in ("validation", "hard")
            for entry in self._entries[split].values()
        }
        return self._draw("demo", self.config.gym_demonstrations, "gym_demonstrations", taken)

    @cached_property
    def _demonstrations(self) -> list[Demonstration]:
        return [
            Demonstration(name, self._prompt(entry), self._solution(entry), str(entry["answer"]))
            for name, entry in self._demonstration_entries.items()
        ]

    def _solution(self, entry: dict[str, Any]) -> str:
        if self._is_chain_sum:
            return work_out(entry["metadata"]["expression"])
        if self.config.gym_name == "knights_knaves":
            return knights.work_out(entry["metadata"])
        if "answer_cot" in entry["metadata"]:  # gsm_symbolic; it ends with '#### answer'
            return str(entry["metadata"]["answer_cot"])
        if "solution" not in entry["metadata"]:
            raise ConfigError(
                f"task.gym_name: {self.config.gym_name} comes without solutions to learn from; "
                "use method 'grpo', or a dataset task with a solution column"
            )
        solution, answer = entry["metadata"]["solution"], str(entry["answer"])
        working = f"{solution}\n" if str(solution) != answer else ""
        return f"{working}<answer>{answer}</answer>"

    def demonstrations(self) -> Sequence[Demonstration]:
        """Worked solutions of problems outside `validation` and `hard`.

        Raises ConfigError where the task has none: chain_sum and knights_knaves are worked out by
        us, and only some others carry a solution.
        """
        return self._demonstrations

    def extract(self, completion: str) -> str | None:
        """The final answer, as the module's docstring says."""
        marked = completion.rpartition("#")[2]  # all of it, where there is no '#'
        if self._is_chain_sum:
            return last_number(marked)
        tagged = _TAGGED.findall(completion)
        if tagged:
            return tagged[-1].strip()
        if "#" in completion:
            return marked.strip() or None
        return completion.strip().rpartition("\n")[2].strip() or None

    def _entry(self, problem: Problem) -> dict[str, Any]:
        """What reasoning-gym knows of a problem; of one that is not its own, the answer alone."""
        for entries in self._entries.values():
            if problem.id in entries:
                return entries[problem.id]
        if problem.id.startswith("demo-"):  # a method that learns by RL on demonstrations' prompts
            shown = self._demonstration_entries.get(problem.id)
            if shown is not None and self._prompt(shown) == problem.prompt:
                return shown
        return {"question": problem.prompt, "answer": problem.answer, "metadata": {}}

    def partial_credit(self, found: str, problem: Problem) -> float:
        """reasoning-gym's own score of an answer, 0 to 1. Raises what its scorer raises."""
        return float(self._dataset.score_answer(found, self._entry(problem)))

    def reward(self, completion: str, problem: Problem) -> float:
        """1.0 where the final answer is right, else 0.0."""
        found = self.extract(completion)
        if self._is_chain_sum:
            return float(same_answer(found, problem.answer))
        if found is None:
            return 0.0
        try:
            return float(self.partial_credit(found, problem) >= 1.0)
        except Exception:  # some scorers raise on odd text, prime_factorization for one
            return 0.0

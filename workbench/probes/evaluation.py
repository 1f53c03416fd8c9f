"""Greedy accuracy of a policy on held-out problems."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.config import RunConfig
from workbench.policy import Policy, PolicyName
from workbench.sampling import sample
from workbench.tasks import environments
from workbench.tasks.problem import Problem, Task
from workbench.tasks.sets import RIGHT, ScheduledSet


def greedy_accuracy(
    policy: Policy, which: PolicyName, task: Task, problems: Sequence[Problem], config: RunConfig
) -> float:
    """Share of `problems` whose greedy completion earns the task's reward."""
    longest = config.probes.evaluation_max_new_tokens
    texts = _greedy(policy, which, task, problems, longest, config)
    rewards = [task.reward(text, p) for text, p in zip(texts, problems, strict=True)]
    return sum(rewards) / len(rewards)


def set_accuracy(policy: Policy, chosen: ScheduledSet, config: RunConfig) -> float:
    """pass@1 of the joint policy on a set, as `python -m workbench eval` measures it."""
    longest = chosen.config.max_new_tokens or config.probes.evaluation_max_new_tokens
    problems = chosen.found.problems
    texts = _greedy(policy, "joint", chosen.found.task, problems, longest, config)
    scores = [chosen.found.score(text, p) for text, p in zip(texts, problems, strict=True)]
    return sum(score.reward >= RIGHT for score in scores) / len(scores)


def _greedy(
    policy: Policy,
    which: PolicyName,
    task: Task | None,
    problems: Sequence[Problem],
    max_new_tokens: int,
    config: RunConfig,
) -> list[str]:
    return sample(
        policy.of(which),
        policy.tokenizer,
        [policy.encode_prompt(p.prompt) for p in problems],
        noise=None,
        sequences=range(len(problems)),
        end_ids=policy.end_ids,
        max_new_tokens=max_new_tokens,
        batch=config.sampling.sampling_batch,
        environments=environments(task, [p.prompt for p in problems]),
    ).texts

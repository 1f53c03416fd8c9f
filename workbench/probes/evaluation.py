"""Greedy accuracy of a policy on held-out problems."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.config import RunConfig
from workbench.policy import Policy, PolicyName
from workbench.sampling import sample
from workbench.tasks.problem import Problem, Task


def greedy_accuracy(
    policy: Policy, which: PolicyName, task: Task, problems: Sequence[Problem], config: RunConfig
) -> float:
    """Share of `problems` whose greedy completion earns the task's reward."""
    done = sample(
        policy.of(which),
        policy.tokenizer,
        [policy.encode_prompt(p.prompt) for p in problems],
        noise=None,
        sequences=range(len(problems)),
        end_ids=policy.end_ids,
        max_new_tokens=config.probes.evaluation_max_new_tokens,
        batch=config.sampling.sampling_batch,
    )
    rewards = [task.reward(text, p) for text, p in zip(done.texts, problems, strict=True)]
    return sum(rewards) / len(rewards)

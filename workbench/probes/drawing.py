"""K completions of each of some prompts, under one policy."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.policy import Policy, PolicyName
from workbench.sampling import Completions, Noise, sample
from workbench.tasks import environments
from workbench.tasks.problem import Task


def complete_each(
    policy: Policy,
    name: PolicyName,
    task: Task,
    prompts: Sequence[str],
    *,
    rollouts: int,
    noise: Noise,
    max_new_tokens: int,
    temperature: float,
    batch: int = 256,
) -> Completions:
    """Complete each of P prompts K = `rollouts` times, prompt i at rows i·K … i·K + K − 1.

    A row is its own noise stream: equal noise, equal random numbers under any policy.
    """
    repeated = [prompt for prompt in prompts for _ in range(rollouts)]
    return sample(
        policy.of(name),
        policy.tokenizer,
        [policy.encode_prompt(prompt) for prompt in repeated],
        noise=noise,
        sequences=range(len(repeated)),
        end_ids=policy.end_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch=batch,
        environments=environments(task, repeated),
    )

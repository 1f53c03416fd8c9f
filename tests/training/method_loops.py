"""A made-up batch, what a method makes of it, and the same by plain loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from tests.training.tiny import small_config
from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions, batch_logprobs, pack
from workbench.tasks.problem import Demonstration, Problem
from workbench.training.batches import RolloutBatch, Rollouts
from workbench.training.gradients import RLPass, SFTPass, rl_pass, sft_pass
from workbench.training.methods import make_method
from workbench.training.objectives import group_advantages

REWARDS = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
TOKENS = [
    [5, 6, 2],
    [7, 9],
    [8, 2],
    [8, 9, 10, 11, 2],
    [12],
    [12, 13, 2],
    [14, 15, 16, 17],
    [19],
    [3, 4, 2],
]
SOLUTIONS = ["ab\nc", "d\nef\ng", "hi\nj"]
LONGEST = 7
N = sum(len(tokens) for tokens in TOKENS)


def config(folder: Path, method: str, **changes: object) -> RunConfig:
    return small_config(
        folder, method=method, kl_coef=0.1, max_new_tokens=LONGEST, temperature=1.0, **changes
    )


def shown() -> list[Demonstration]:
    return [Demonstration(f"d{i}", "xyz"[i] * 2, s, "even") for i, s in enumerate(SOLUTIONS)]


def batch_of(policy: Policy, rollouts: Rollouts | None = None) -> RolloutBatch:
    """Three prompts × three made-up rollouts, scored; prompt 1 is unsolved."""
    demos = shown()
    prompts = [policy.encode_prompt(d.prompt) for d in demos for _ in range(3)]
    if rollouts is not None and rollouts.given_ids:
        prompts = [[*p, *g] for p, g in zip(prompts, rollouts.given_ids, strict=True)]
    tokens = pack(prompts, TOKENS, pad_id=0)
    rewards = torch.tensor(REWARDS)
    return RolloutBatch(
        [Problem(d.id, d.prompt, d.answer) for d in demos],
        Completions(prompts, TOKENS, [], [], []),
        rewards,
        rewards,
        group_advantages(rewards),
        tokens,
        batch_logprobs(policy.reference, tokens, 1.0, 2048),
        rollouts or Rollouts(),
        demos,
        torch.tensor([1.0, 0.0, 1.0]),
    )


class Found:
    """What a method makes of a batch."""

    def __init__(
        self, policy: Policy, c: RunConfig, step: int = 1, rollouts: Rollouts | None = None
    ) -> None:
        self.policy, self.c, self.method = policy, c, make_method(c)
        self.batch = self.method.judge(batch_of(policy, rollouts), c)
        self.demos = self.method.learn_from(policy, shown(), self.batch, step, c)

    def rl(self) -> RLPass:
        return rl_pass(
            "rl", self.policy.model, self.policy.base, {}, self.batch, self.c.training, 1.0, None,
            objective_of=partial(self.method.rl_terms, c=self.c),
        )  # fmt: skip

    def sft(self) -> SFTPass:
        assert self.demos is not None
        return sft_pass(
            self.policy, {}, self.demos.tokens, None, 2048,
            partial(self.method.sft_terms, c=self.c), self.demos.advantages_D, self.demos.divisor,
        )[0]  # fmt: skip


class Loop:
    """The same texts, one sequence at a time, without padding."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def distributions(
        self, prompt: list[int], completion: list[int], model: object = None
    ) -> Tensor:
        ids = torch.tensor([prompt + completion])
        logits = (model or self.policy.model)(ids).logits[0]
        return logits[len(prompt) - 1 : -1].log_softmax(-1)

    def logps(self, prompt: list[int], completion: list[int], model: object = None) -> list[float]:
        rows = self.distributions(prompt, completion, model)
        return [float(rows[t, token].detach()) for t, token in enumerate(completion)]

    def entropies(self, prompt: list[int], completion: list[int]) -> list[float]:
        rows = self.distributions(prompt, completion)
        return [-sum(math.exp(v) * v for v in row.tolist()) for row in rows]

    def rollout(self, i: int) -> tuple[list[int], list[int]]:
        return self.policy.encode_prompt(shown()[i // 3].prompt), TOKENS[i]

    def demonstration(self, j: int) -> tuple[list[int], list[int]]:
        demo = shown()[j]
        return self.policy.encode_prompt(demo.prompt), self.policy.encode_completion(demo.solution)

    def k3(self, i: int) -> list[float]:
        text = self.rollout(i)
        pairs = zip(self.logps(*text), self.logps(*text, self.policy.reference), strict=True)
        return [math.exp(ref - now) - (ref - now) - 1 for now, ref in pairs]

    def nll(self, j: int) -> float:
        return -sum(self.logps(*self.demonstration(j)))


def standard(p: int, g: int) -> float:
    return (REWARDS[p][g] - fmean(REWARDS[p])) / (stdev(REWARDS[p]) + 1e-4)


def centred(p: int, g: int) -> float:
    return REWARDS[p][g] - fmean(REWARDS[p])


def grpo_value(
    loop: Loop, advantage: Callable[[int, int], float], prompts: list[int], kl: float
) -> float:
    """Σ_t A − kl·k3 (ρ = 1) over some prompts' rollouts."""
    return sum(
        advantage(p, g) - kl * k3 for p in prompts for g in range(3) for k3 in loop.k3(3 * p + g)
    )

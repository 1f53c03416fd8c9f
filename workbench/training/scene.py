"""What a step's rollouts are drawn with, and how they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions, Noise, batch_logprobs, pack, sample
from workbench.tasks import score
from workbench.tasks.problem import Demonstration, Problem, Task
from workbench.tasks.rewards import flip
from workbench.training.batches import RolloutBatch, Rollouts
from workbench.training.objectives import group_advantages


@dataclass(frozen=True)
class Scene:
    """A step's prompts, and the policy that answers them."""

    policy: Policy
    task: Task
    config: RunConfig
    step: int
    problems_P: list[Problem]
    shown_P: list[Demonstration]
    """Each prompt's own demonstration; empty where the method does not pair them."""
    generated: list[int] = field(default_factory=list)
    """Tokens of each rollout drawn so far, those of searches included."""

    def prompt_ids(self, p: int) -> list[int]:
        """What the model sees of prompt p."""
        return self.policy.encode_prompt(self.problems_P[p].prompt)

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sequences: Sequence[int],
        purpose: str = "rollouts",
        max_new_tokens: int | None = None,
    ) -> Completions:
        """Complete each prompt once with π, on the noise streams `sequences` of the purpose."""
        sampling = self.config.sampling
        done = sample(
            self.policy.model,
            self.policy.tokenizer,
            prompt_ids,
            noise=Noise(self.config.seed, self.step, purpose),
            sequences=sequences,
            end_ids=self.policy.end_ids,
            max_new_tokens=max_new_tokens or sampling.max_new_tokens,
            temperature=sampling.temperature,
            batch=sampling.sampling_batch,
        )
        self.generated.extend(len(ids) for ids in done.token_ids)
        return done

    def plain(self, group_size: int) -> Completions:
        """`group_size` rollouts of each prompt as it stands."""
        prompts = [self.prompt_ids(p) for p in range(len(self.problems_P))]
        return self.sample(
            [ids for ids in prompts for _ in range(group_size)],
            range(len(prompts) * group_size),
        )

    def given(
        self, given_ids: Sequence[Sequence[int]], given_by: str
    ) -> tuple[Completions, Rollouts]:
        """One rollout for each entry of `given_ids`, whole groups in the prompts' order.

        Each begins behind those tokens, which another wrote; its text is the whole answer.
        """
        size = len(given_ids) // len(self.problems_P)
        prompts = [[*self.prompt_ids(i // size), *given] for i, given in enumerate(given_ids)]
        done = self.sample(prompts, range(len(prompts)))
        texts = [
            self.text([*given, *own]) if given else text
            for given, own, text in zip(given_ids, done.token_ids, done.texts, strict=True)
        ]
        return replace(done, texts=texts), Rollouts(given_ids=given_ids, given_by=given_by)

    def text(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, without the end-of-text token."""
        ids = [t for t in token_ids if t not in self.policy.end_ids]
        return str(self.policy.tokenizer.decode(ids, skip_special_tokens=True))

    def score(self, completions: Completions, rollouts: Rollouts) -> RolloutBatch:
        """The rollouts with rewards and standard advantages, as tensors."""
        c, device = self.config, self.policy.device
        shape = (len(self.problems_P), len(completions.texts) // len(self.problems_P))
        owners = [p for p in self.problems_P for _ in range(shape[1])]
        scores = [
            score(self.task, text, p) for text, p in zip(completions.texts, owners, strict=True)
        ]
        correct = [found.reward for found in scores]
        shown = (
            [
                self.task.reward(d.solution, p)
                for d, p in zip(self.shown_P, self.problems_P, strict=True)
            ]
            if self.shown_P
            else []
        )
        rewards = [
            flip(r, c.training.reward_flip, c.seed, self.step, i)
            for i, r in enumerate([*correct, *shown])
        ]
        rewards_PG = torch.tensor(rewards[: len(correct)], device=device).view(shape)
        tokens = pack(
            completions.prompt_ids, completions.token_ids, self.policy.pad_id, self.policy.device
        )
        reference = None
        if self.policy.reference is not None:
            reference = batch_logprobs(
                self.policy.of("reference"),
                tokens,
                c.sampling.temperature,
                c.training.micro_batch_tokens,
            )
        drawn = {"completions/generated_tokens": float(sum(self.generated))}
        rollouts = replace(rollouts, metrics={**rollouts.metrics, **drawn})
        return RolloutBatch(
            self.problems_P,
            completions,
            torch.tensor(correct, device=device).view(shape),
            rewards_PG,
            group_advantages(rewards_PG),
            tokens,
            reference,
            rollouts,
            self.shown_P,
            torch.tensor(rewards[len(correct) :], device=device) if shown else None,
            scores_N=scores,
        )

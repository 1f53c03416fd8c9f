"""What a step's rollouts are drawn with, and how they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions, Noise, batch_logprobs, pack, sample
from workbench.tasks import environments, score
from workbench.tasks.environment import ENVIRONMENT, POLICY, Environment, continued
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
        owners: Sequence[int],
        sequences: Sequence[int],
        purpose: str = "rollouts",
        *,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        given_ids: Sequence[Sequence[int]] | None = None,
        environments: Sequence[Environment] | None = None,
    ) -> Completions:
        """A completion of prompt owners[i] on noise stream sequences[i] of the purpose, for each i.

        prompt_ids: what the model sees instead of the prompts. given_ids: what stands behind each
        prompt already. environments: who takes part; None: the task's own environment, if any.
        """
        sampling = self.config.sampling
        if prompt_ids is None:
            prompt_ids = [self.prompt_ids(p) for p in owners]
        given_ids = given_ids or [[] for _ in owners]
        if environments is None:
            environments = self.environments(owners)
        if environments is not None:
            environments = [
                continued(environment, self.text(given)) if given else environment
                for environment, given in zip(environments, given_ids, strict=True)
            ]
        done = sample(
            self.policy.of("joint"),
            self.policy.tokenizer,
            [[*seen, *given] for seen, given in zip(prompt_ids, given_ids, strict=True)],
            noise=Noise(self.config.seed, self.step, purpose),
            sequences=sequences,
            end_ids=self.policy.end_ids,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            batch=sampling.sampling_batch,
            environments=environments,
        )
        self.generated.extend(
            sum(who == POLICY for who in done.writers[i]) if done.writers else len(ids)
            for i, ids in enumerate(done.token_ids)
        )
        return done

    def environments(self, owners: Sequence[int]) -> list[Environment] | None:
        """The environment of each prompt of `owners`; None: the task has none."""
        return environments(self.task, [self.problems_P[p].prompt for p in owners])

    def plain(self, group_size: int) -> Completions:
        """`group_size` rollouts of each prompt as it stands."""
        n = len(self.problems_P) * group_size
        return self.sample([i // group_size for i in range(n)], range(n))

    def given(
        self, given: Sequence[tuple[Sequence[int], Sequence[str]]]
    ) -> tuple[Completions, Rollouts]:
        """One rollout for each entry of `given`, whole groups in the prompts' order.

        Each begins behind those tokens, with their writers; its text is the whole answer.
        """
        size = len(given) // len(self.problems_P)
        given_ids = [ids for ids, _ in given]
        done = self.sample(
            [i // size for i in range(len(given))], range(len(given)), given_ids=given_ids
        )
        texts = [
            self.text([*ids, *own]) if ids else text
            for ids, own, text in zip(given_ids, done.token_ids, done.texts, strict=True)
        ]
        return replace(done, texts=texts), Rollouts(
            given_ids=given_ids, given_writers=[writers for _, writers in given]
        )

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
        rollouts = replace(rollouts, writers=rollouts.writers or completions.writers)
        tokens = pack(
            completions.prompt_ids,
            completions.token_ids,
            self.policy.pad_id,
            self.policy.device,
            rollouts.writers,
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
        if self.environments([0]) is not None:
            replies = sum(_replies(writers) for writers in rollouts.writers)
            drawn["environment/replies"] = replies / len(owners)
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


def _replies(writers: Sequence[str]) -> int:
    """How often the environment spoke."""
    before = [POLICY, *writers]
    return sum(
        who == ENVIRONMENT and last != ENVIRONMENT
        for last, who in zip(before, writers, strict=False)
    )

"""What another policy makes of a text: its log-probs on it, and what it would have written instead.

The other policy may be the coordinator off or at another scale, the RL-only baseline, the policy
the run started from, or any of these with the weights of a snapshot. Its completion is drawn on the
noise of the text: the text's own where it is a recorded rollout, since that is a function of (seed,
step, purpose, sequence, position), or noise drawn in hindsight where none was recorded. [ours]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from workbench.policy import Policy, PolicyName
from workbench.probes.coordinator import Environments, Reward, first_parting
from workbench.probes.hindsight import HindsightNoise, hindsight_noise
from workbench.records import Counterfactual, RolloutRow, Sample
from workbench.sampling import (
    Noise,
    NoiseSource,
    completion_logits,
    pack,
    sample,
    token_logprobs,
)
from workbench.tasks.environment import POLICY, Span, others, spans

PURPOSES = {"train": "rollouts", "paired": "paired"}
"""By the purpose of a recorded rollout: that of its noise."""


@dataclass(frozen=True)
class Writer:
    """One of a policy's three, at a scale of the coordinator."""

    policy: Policy
    """The run's, or a copy of it with a snapshot's weights."""
    name: PolicyName = "joint"
    coordinator: float = 1.0
    snapshot_step: int | None = None
    """Step of that snapshot; None: the run's present weights."""

    @torch.no_grad()
    def logprobs(
        self, prompt: str, token_ids: list[int], temperature: float, writers: list[str]
    ) -> list[float]:
        """log π of each token of a completion of `prompt`, nats; writers: empty, all one's own."""
        policy = self.policy
        tokens = pack(
            [policy.encode_prompt(prompt)],
            [token_ids],
            policy.pad_id,
            policy.device,
            [writers] if writers else (),
        )
        with policy.coordinator_scale(self.coordinator):
            logits = completion_logits(policy.of(self.name), tokens, temperature)
        return token_logprobs(logits, tokens)[0].tolist()

    def hindsight(
        self, factual: Sample, prior: Noise, rollouts: int, temperature: float
    ) -> HindsightNoise:
        """`rollouts` draws of noise under which this policy writes the text."""
        with self.policy.coordinator_scale(self.coordinator):
            return hindsight_noise(
                self.policy.of(self.name),
                [self.policy.encode_prompt(factual.prompt)],
                [factual.token_ids],
                prior=prior,
                rollouts=rollouts,
                temperature=temperature,
                writers=[factual.written_by] if factual.written_by else (),
            )


def own_noise(row: RolloutRow, seed: int) -> Noise:
    """The noise of a recorded rollout; `seed`: that of its run. Its stream is `row.sequence`."""
    return Noise(seed, row.step, PURPOSES[row.purpose])


def recorded(row: RolloutRow) -> Sample:
    """A recorded rollout as the sample it was."""
    return Sample(
        prompt=row.prompt,
        completion=row.completion,
        policy=row.policy,
        coordinator=1.0,
        sequence=row.sequence,
        reward=row.correct,
        finished=row.finished,
        token_ids=row.token_ids,
        tokens=row.tokens,
        logprob=row.sampling_logprob,
        written_by=list(row.written_by),
    )


def pasted(
    writer: Writer,
    prompt: str,
    text: str,
    *,
    finished: bool,
    temperature: float,
    reward: Reward,
    environments: Environments = lambda prompts: None,
) -> Sample:
    """A text as a sample of `writer`; unless `finished` it was cut off by a length limit.

    What the prompt's environment would have put in where it stands in the text, it is taken to
    have put in.
    """
    told = environments([prompt])
    parts = spans(told[0], text) if told else [Span(POLICY, text)]
    token_ids: list[int] = []
    writers: list[str] = []
    for who, part in parts:
        token_ids += writer.policy.encode_completion(part)[:-1]
        writers += [who] * (len(token_ids) - len(writers))
    if finished:
        token_ids.append(writer.policy.encode_completion("")[-1])
        writers.append(POLICY)
    writers = others(writers)
    return Sample(
        prompt=prompt,
        completion=text,
        policy=writer.name,
        coordinator=writer.coordinator,
        sequence=0,
        reward=reward(prompt, text),
        finished=finished,
        token_ids=token_ids,
        tokens=writer.policy.pieces(token_ids),
        logprob=writer.logprobs(prompt, token_ids, temperature, writers),
        written_by=writers,
    )


def counterfactuals(
    factual: Sample,
    other: Writer,
    noise: NoiseSource,
    kind: Literal["own", "hindsight"],
    *,
    sequences: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    reward: Reward,
    environments: Environments = lambda prompts: None,
) -> list[Counterfactual]:
    """What `other` says of a text, and writes on its noise; one entry for each noise stream."""
    policy = other.policy
    with policy.coordinator_scale(other.coordinator):
        done = sample(
            policy.of(other.name),
            policy.tokenizer,
            [policy.encode_prompt(factual.prompt)] * len(sequences),
            noise=noise,
            sequences=sequences,
            end_ids=policy.end_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            environments=environments([factual.prompt] * len(sequences)),
        )
    logprob = other.logprobs(factual.prompt, factual.token_ids, temperature, factual.written_by)
    return [
        Counterfactual(
            factual=factual,
            other=Sample(
                prompt=factual.prompt,
                completion=done.texts[i],
                policy=other.name,
                coordinator=other.coordinator,
                sequence=sequence,
                reward=reward(factual.prompt, done.texts[i]),
                finished=done.finished[i],
                token_ids=done.token_ids[i],
                tokens=policy.pieces(done.token_ids[i]),
                logprob=done.logprob[i],
                written_by=others(done.writers[i]) if done.writers else [],
            ),
            first_parting=first_parting(factual.token_ids, done.token_ids[i]),
            logprob=logprob,
            noise=kind,
            snapshot_step=other.snapshot_step,
        )
        for i, sequence in enumerate(sequences)
    ]

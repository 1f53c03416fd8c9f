"""What the coordinator does: the size of its weights' change, and its effect on what is written.

ΔW = (alpha/r)·B·A is never formed: with B = Q_B R_B and Aᵀ = Q_A R_A (QR of two thin matrices),
B·A = Q_B (R_B R_Aᵀ) Q_Aᵀ has the norm and the singular values of the r × r core R_B R_Aᵀ. The
effect on a prompt compares rollouts at two scales of the coordinator on the same noise. [ours]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from typing import Literal

import torch
from torch import Tensor

from workbench.policy import Policy, PolicyName, layer_of
from workbench.records import CoordinatorEffect, CoordinatorRow, Sample
from workbench.sampling import Noise, completion_logits, pack, sample
from workbench.tasks.environment import Environment, others

Reward = Callable[[str, str], float]
"""(prompt, completion) → reward; NaN where the right answer is not known."""
Against = float | Literal["start"]
"""Another scale of the coordinator, or the policy that the run started from."""
Environments = Callable[[Sequence[str]], list[Environment] | None]
"""Prompts → who takes part in each one's completion (`tasks.environments` of the run's task)."""


def delta_singular_values(lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """Singular values of scale·B·A, descending, float64, at most r many.

    lora_a: A (r, d_in). lora_b: B (d_out, r). Their Euclidean norm is ‖scale·B·A‖, Frobenius.
    """
    core_b = torch.linalg.qr(lora_b.double(), mode="r").R
    core_a = torch.linalg.qr(lora_a.double().T, mode="r").R
    return abs(scale) * torch.linalg.svdvals(core_b @ core_a.T)


def effective_rank(singular_values: Tensor) -> float:
    """exp(−Σ p log p) with p = σ²/Σσ²: how many directions carry the change; NaN where all σ = 0.

    1 for a matrix of rank one, r for r equal singular values; between them it need not be whole.
    Roy and Vetterli ("The effective rank", EUSIPCO 2007) take p = σ/Σσ; the squares weigh each
    direction by its share of ‖ΔW‖², so tiny directions count for less. [squares: ours]
    """
    energy = singular_values.double().square()
    if not bool(energy.any()):
        return nan
    share = energy / energy.sum()
    return torch.special.entr(share).sum().exp().item()


@torch.no_grad()
def coordinator_rows(step: int, policy: Policy) -> list[CoordinatorRow]:
    """Size of ΔW of every adapted module, beside that of the weight it changes."""
    rows = []
    for name, layer in policy.lora_layers():
        values = delta_singular_values(
            policy.coordinator[f"{name}.lora_A"],
            policy.coordinator[f"{name}.lora_B"],
            layer.scaling["default"],
        )
        delta = values.norm().item()
        weight = policy.base[f"{name}.weight"].double().norm().item()
        rows.append(
            CoordinatorRow(
                step=step,
                layer=layer_of(name),
                module=name.removeprefix("model.").removeprefix("transformer."),
                delta_norm=delta,
                weight_norm=weight,
                ratio=delta / weight,
                singular_values=values.tolist(),
                effective_rank=effective_rank(values),
            )
        )
    return rows


def draw_samples(
    policy: Policy,
    prompts: Sequence[str],
    *,
    coordinator: float = 1.0,
    policy_name: PolicyName = "joint",
    rollouts: int = 1,
    greedy: bool = False,
    seed: int = 0,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    reward: Reward,
    environments: Environments = lambda prompts: None,
) -> list[Sample]:
    """Complete each prompt `rollouts` times, the coordinator scaled by `coordinator`.

    Rollout k of prompt i is noise stream i·rollouts + k of `seed`, whatever the policy and scale:
    two calls with the same prompts and seed are coupled. `reference` has no coordinator to scale.
    """
    repeated = [prompt for prompt in prompts for _ in range(rollouts)]
    with policy.coordinator_scale(coordinator):
        done = sample(
            policy.of(policy_name),
            policy.tokenizer,
            [policy.encode_prompt(prompt) for prompt in repeated],
            noise=None if greedy else Noise(seed, 0, "sample"),
            sequences=range(len(repeated)),
            end_ids=policy.end_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            environments=environments(repeated),
        )
    return [
        Sample(
            prompt=prompt,
            completion=done.texts[i],
            policy=policy_name,
            coordinator=coordinator,
            sequence=i,
            reward=reward(prompt, done.texts[i]),
            finished=done.finished[i],
            token_ids=done.token_ids[i],
            tokens=policy.pieces(done.token_ids[i]),
            logprob=done.logprob[i],
            written_by=others(done.writers[i]) if done.writers else [],
        )
        for i, prompt in enumerate(repeated)
    ]


def first_parting(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first token where two completions differ; None if they are equal.

    Where one is the other's beginning they part at the shorter one's end.
    """
    for i, (token_a, token_b) in enumerate(zip(a, b, strict=False)):
        if token_a != token_b:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def effect(
    policy: Policy,
    prompt: str,
    *,
    scales: Sequence[float] = (1.0,),
    against: Against = 0.0,
    rollouts: int = 1,
    greedy: bool = False,
    seed: int = 0,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    reward: Reward,
    environments: Environments = lambda prompts: None,
) -> list[CoordinatorEffect]:
    """Compare the joint policy at each of `scales` with `against`, on the same noise.

    One entry a scale and rollout, in that order. Log-probs and KL are at the sampling temperature.
    """

    def draw(scale: float, name: PolicyName = "joint") -> list[Sample]:
        return draw_samples(
            policy,
            [prompt],
            coordinator=scale,
            policy_name=name,
            rollouts=rollouts,
            greedy=greedy,
            seed=seed,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            reward=reward,
            environments=environments,
        )

    base = draw(1.0, "reference") if against == "start" else draw(against)
    return [
        _compare(policy, a, b, temperature)
        for scale in scales
        for a, b in zip(base, draw(scale), strict=True)
    ]


@torch.no_grad()
def _compare(policy: Policy, base: Sample, other: Sample, temperature: float) -> CoordinatorEffect:
    tokens = pack(
        [policy.encode_prompt(other.prompt)],
        [other.token_ids],
        policy.pad_id,
        policy.device,
        [other.written_by] if other.written_by else (),
    )
    own = tokens.completion_mask[0]

    def logprobs(side: Sample) -> Tensor:  # (C, V)
        with policy.coordinator_scale(side.coordinator):
            logits = completion_logits(policy.of(side.policy), tokens, temperature)
        return logits[0].double().log_softmax(-1)

    at_other, at_base = logprobs(other), logprobs(base)
    difference = at_other - at_base
    chosen = difference.gather(1, tokens.completion_ids[0, :, None])[:, 0]
    kl = (at_other.exp() * difference).sum(-1).clamp(min=0)  # below 0 by rounding only
    return CoordinatorEffect(
        base=base,
        other=other,
        first_parting=first_parting(base.token_ids, other.token_ids),
        logprob_difference=(chosen * own).tolist(),
        kl=(kl * own).tolist(),
    )

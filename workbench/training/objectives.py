"""Advantages and objectives, as pure functions of tensors. All objectives are to be MAXIMISED.

Suffixes: _P prompts, _G rollouts of a group, _N = P·G sequences, _C completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ADVANTAGE_EPSILON = 1e-4  # as TRL's GRPOTrainer


def group_advantages(rewards_PG: Tensor) -> Tensor:
    """(R − group mean) / (group std + ε), (P, G); the sample standard deviation, as in TRL.

    Source: GRPO, arXiv 2402.03300. A group with equal rewards gets zeros.
    """
    mean = rewards_PG.mean(1, keepdim=True)
    std = rewards_PG.std(1, keepdim=True)
    return (rewards_PG - mean) / (std + ADVANTAGE_EPSILON)


def kl_k3(logprobs_NC: Tensor, reference_logprobs_NC: Tensor) -> Tensor:
    """The k3 estimate of KL(π‖π_ref) at each token: exp(Δ) − Δ − 1, Δ = log π_ref − log π.

    Source: Schulman, "Approximating KL divergence" (2020). Never negative.
    """
    delta = reference_logprobs_NC - logprobs_NC
    return delta.exp() - delta - 1


@dataclass(frozen=True)
class RLTerms:
    """The RL objective of some sequences, as sums over their tokens."""

    objective_sum: Tensor
    """Σ over tokens of the clipped surrogate minus kl_coef · k3; scalar with gradient."""
    kl_sum: float
    clipped_sum: float
    """Tokens whose gradient the clip removed."""


def grpo_terms(
    logprobs_NC: Tensor,
    old_logprobs_NC: Tensor,
    advantages_N: Tensor,
    mask_NC: Tensor,
    clip_range: float,
    reference_logprobs_NC: Tensor | None,
    kl_coef: float,
) -> RLTerms:
    """Clipped policy-gradient objective with the KL to the reference in the loss.

    Σ_tokens min(ρ A, clip(ρ, 1−ε, 1+ε) A) − kl_coef · k3,  ρ = exp(log π − log π_old).
    Sources: PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300. Divide by the batch's token count
    (token mean over the whole batch, as DAPO, arXiv 2503.14476). [infer for BRIDGE]
    """
    ratio = (logprobs_NC - old_logprobs_NC).exp()
    advantages = advantages_N[:, None]
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    per_token = torch.minimum(unclipped, clipped)
    kl_sum = 0.0
    if reference_logprobs_NC is not None:
        kl = kl_k3(logprobs_NC, reference_logprobs_NC)
        kl_sum = float((kl.detach() * mask_NC).sum())
        if kl_coef > 0:
            per_token = per_token - kl_coef * kl
    removed = ((clipped < unclipped) & (mask_NC > 0)).sum()
    return RLTerms((per_token * mask_NC).sum(), kl_sum, float(removed))

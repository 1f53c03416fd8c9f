"""Advantages and objectives, as pure functions of tensors. All objectives are to be MAXIMISED.

Suffixes: _P prompts, _G rollouts of a group, _N = P·G sequences, _C completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.config import TrainingConfig
from workbench.sampling import token_entropy

ADVANTAGE_EPSILON = 1e-4  # as TRL's GRPOTrainer


def group_advantages(rewards_PG: Tensor, by_std: bool = True) -> Tensor:
    """(R − group mean) / (group std + ε), (P, G); the sample standard deviation, as in TRL.

    by_std=False leaves the division out (Dr.GRPO, arXiv 2503.20783). Source: GRPO, arXiv
    2402.03300. A group with equal rewards gets zeros.
    """
    mean = rewards_PG.mean(1, keepdim=True)
    if not by_std:
        return rewards_PG - mean
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


@dataclass(frozen=True)
class RolloutTokens:
    """Some rollouts of a step as an objective sees them; arrays are 0 at padding."""

    logprobs_NC: Tensor
    """log π, with gradient."""
    old_logprobs_NC: Tensor
    """log-probs of who wrote the text; π's own, without gradient, where that was π itself."""
    reference_logprobs_NC: Tensor | None
    advantages_N: Tensor
    rewards_N: Tensor
    mask_NC: Tensor
    """1 where a token counts: not at padding, nor in rollouts that the method dropped."""
    given_NC: Tensor | None
    """1 where somebody else than the policy wrote the token; None: nowhere."""
    logits_NCV: Tensor

    def entropy(self) -> Tensor:
        """Entropy of each next-token distribution, nats, with gradient: (N, C)."""
        return token_entropy(self.logits_NCV)


@dataclass(frozen=True)
class DemonstrationTokens:
    """Some demonstrations of a step as an objective sees them; arrays are 0 at padding."""

    logprobs_DC: Tensor
    """log π, with gradient."""
    mask_DC: Tensor
    advantages_D: Tensor
    """The demonstration's advantage in its prompt's group; 0 where the method has none."""
    logits_DCV: Tensor

    def entropy(self) -> Tensor:
        """Entropy of each next-token distribution, nats, with gradient: (D, C)."""
        return token_entropy(self.logits_DCV)


def grpo_terms(
    logprobs_NC: Tensor,
    old_logprobs_NC: Tensor,
    advantages_N: Tensor,
    mask_NC: Tensor,
    clip_range: float,
    reference_logprobs_NC: Tensor | None,
    kl_coef: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> RLTerms:
    """Clipped policy-gradient objective with the KL to the reference in the loss.

    Σ_tokens min(ρ A, clip(ρ, 1−ε, 1+ε) A) − kl_coef · k3,  ρ = exp(log π − log π_old).
    Sources: PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300. Divide by the batch's token count
    (token mean over the whole batch, as DAPO, arXiv 2503.14476). [infer for BRIDGE]
    clip_high: ε above 1, where it is another (DAPO). dual_clip: c of max(…, c·A) where A < 0
    (arXiv 1912.09729).
    """
    high = 1 + (clip_range if clip_high is None else clip_high)
    ratio = (logprobs_NC - old_logprobs_NC).exp()
    advantages = advantages_N[:, None]
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_range, high) * advantages
    per_token = torch.minimum(unclipped, clipped)
    removed = (clipped < unclipped) & (mask_NC > 0)
    if dual_clip is not None:
        bounded = (advantages < 0) & (per_token < dual_clip * advantages)
        per_token = torch.where(bounded, dual_clip * advantages, per_token)
        removed = removed | (bounded & (mask_NC > 0))
    kl_sum = 0.0
    if reference_logprobs_NC is not None:
        kl = kl_k3(logprobs_NC, reference_logprobs_NC)
        kl_sum = float((kl.detach() * mask_NC).sum())
        if kl_coef > 0:
            per_token = per_token - kl_coef * kl
    return RLTerms((per_token * mask_NC).sum(), kl_sum, float(removed.sum()))


def gspo_terms(
    logprobs_NC: Tensor,
    old_logprobs_NC: Tensor,
    advantages_N: Tensor,
    mask_NC: Tensor,
    clip_low: float,
    clip_high: float,
    reference_logprobs_NC: Tensor | None,
    kl_coef: float,
) -> RLTerms:
    """Sequence-level ratios: Σ_i min(s_i A_i, clip(s_i, 1−ε_low, 1+ε_high) A_i) − kl_coef · k3.

    s_i = exp( mean over its tokens of (log π − log π_old) ), and k3 is such a mean too. Divide by
    the number of sequences.
    Source: GSPO, arXiv 2507.18071.
    """
    lengths = mask_NC.sum(1).clamp(min=1)
    ratio = (((logprobs_NC - old_logprobs_NC) * mask_NC).sum(1) / lengths).exp()
    unclipped = ratio * advantages_N
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    per_sequence = torch.minimum(unclipped, clipped) * (mask_NC.sum(1) > 0)
    kl_sum = 0.0
    if reference_logprobs_NC is not None:
        kl = kl_k3(logprobs_NC, reference_logprobs_NC) * mask_NC
        kl_sum = float(kl.detach().sum())
        if kl_coef > 0:
            per_sequence = per_sequence - kl_coef * kl.sum(1) / lengths
    removed = (clipped < unclipped)[:, None] & (mask_NC > 0)
    return RLTerms(per_sequence.sum(), kl_sum, float(removed.sum()))


def rl_terms(t: RolloutTokens, c: TrainingConfig) -> RLTerms:
    """The policy-gradient objective that `rl_loss` names; `rl_divisor` is what to divide it by."""
    if c.rl_loss == "gspo":
        return gspo_terms(
            t.logprobs_NC,
            t.old_logprobs_NC,
            t.advantages_N,
            t.mask_NC,
            c.gspo_clip_low,
            c.gspo_clip_high,
            t.reference_logprobs_NC,
            c.kl_coef,
        )
    dapo = c.rl_loss == "dapo"
    return grpo_terms(
        t.logprobs_NC,
        t.old_logprobs_NC,
        t.advantages_N,
        t.mask_NC,
        c.clip_range,
        t.reference_logprobs_NC,
        0.0 if dapo else c.kl_coef,
        clip_high=c.dapo_clip_high if dapo else None,
    )


def rl_divisor(mask_NC: Tensor, advantages_N: Tensor, c: TrainingConfig, longest: int) -> float:
    """What the summed objective of `rl_loss` is divided by, of the rollouts that count in the mask.

    grpo: their tokens. dr_grpo: rollouts × `longest`, the length limit, so that a long wrong answer
    is punished as much a token as a short one. dapo: the tokens of groups that teach something;
    others are left out, while the paper draws more prompts in their place [ours]. gspo: rollouts.
    """
    rows = int((mask_NC.sum(1) > 0).sum())
    if c.rl_loss == "dr_grpo":
        return float(max(rows, 1) * longest)
    if c.rl_loss == "gspo":
        return float(max(rows, 1))
    if c.rl_loss == "dapo":
        mask_NC = mask_NC * (advantages_N != 0)[:, None]
    return max(float(mask_NC.sum()), 1.0)

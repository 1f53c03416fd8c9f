"""Which layers' coordinators matter: the policy with one of them switched off at a time.

Two answers for each layer: what it does to the reward, on rollouts of the same noise with and
without it; and how far it moves the next-token distributions, as the exact
KL(π_(θ+w) ‖ π_(θ+w without the layer)) at every token of the whole policy's own rollouts. [ours]

The parts do not add up to the whole: layers feed each other, so two that can stand in for one
another both look idle when only one is switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from workbench.policy import Policy
from workbench.probes.dose import Drawn, draw
from workbench.probes.paired import paired_difference
from workbench.records import AblationRow
from workbench.sampling import Noise, TokenBatch, completion_logits, pack
from workbench.tasks.problem import Problem, Task


def coordinator_ablation(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    *,
    rollouts: int,
    noise: Noise,
    max_new_tokens: int,
    temperature: float,
    max_tokens: int,
    batch: int = 256,
) -> list[AblationRow]:
    """One row for the whole coordinator off ('all'), then one a layer, in the network's order.

    Rewards in [0, 1], at least two rollouts a problem. max_tokens: of one forward pass, padding
    included.
    """

    def drawn() -> Drawn:
        return draw(
            policy,
            "joint",
            task,
            problems,
            rollouts=rollouts,
            noise=noise,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch=batch,
        )

    parts = {"all": policy.coordinator_layers}
    parts |= {layer: [layer] for layer in policy.coordinator_layers}
    whole = drawn()
    done = whole.completions_N
    tokens = pack(done.prompt_ids, done.token_ids, policy.pad_id, policy.device, done.writers)
    kl_sums = _kl_sums(policy, tokens, list(parts.values()), temperature, max_tokens)
    lengths_N = tokens.completion_mask.sum(1).double().cpu()
    rows = []
    for (layer, off), kl_N in zip(parts.items(), kl_sums, strict=True):
        with policy.coordinator_scale(0.0, off):
            without = drawn()
        found = paired_difference(whole.rewards_PK, without.rewards_PK)
        kl = float(kl_N.sum() / lengths_N.sum())
        rows.append(
            AblationRow(
                layer=layer,
                reward=float(without.rewards_PK.mean()),
                difference=found.difference,
                standard_error=found.standard_error,
                low=found.low,
                high=found.high,
                kl=kl,
                kl_standard_error=_ratio_error(kl_N, lengths_N, kl),
                changed=without.changed_from(whole),
                n_problems=len(problems),
                n_rollouts=rollouts,
            )
        )
    return rows


@torch.no_grad()
def _kl_sums(
    policy: Policy,
    tokens: TokenBatch,
    parts: Sequence[Sequence[str]],
    temperature: float,
    max_tokens: int,
) -> Tensor:
    """Σ over a rollout's tokens of KL(whole ‖ without a part), nats: float64 (len(parts), N)."""
    n = len(tokens.input_ids)
    sums = torch.zeros(len(parts), n, dtype=torch.float64)
    for rows in tokens.micro_batches(0, n, max_tokens):
        part = tokens.select(rows)
        whole = _log_softmax(policy, part, temperature)
        for i, off in enumerate(parts):
            with policy.coordinator_scale(0.0, off):
                without = _log_softmax(policy, part, temperature)
            kl = (whole.exp() * (whole - without)).sum(-1).clamp(min=0)  # < 0 by rounding only
            sums[i, rows] = (kl * part.completion_mask).sum(1).cpu()
    return sums


def _log_softmax(policy: Policy, tokens: TokenBatch, temperature: float) -> Tensor:
    return completion_logits(policy.of("joint"), tokens, temperature).double().log_softmax(-1)


def _ratio_error(sums_N: Tensor, lengths_N: Tensor, mean: float) -> float:
    """Standard error of Σ sums / Σ lengths over independent rollouts, by the delta method."""
    n = len(sums_N)
    moved = sums_N - mean * lengths_N
    return sqrt(n / (n - 1) * float(moved.square().sum())) / float(lengths_N.sum())

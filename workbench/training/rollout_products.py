"""What each rollout's gradient does: its inner products with g^R and g^S, and its size. [ours]

g_i is rollout i's share of g^R = ∇_θ J_RL, so Σ_i g_i = g^R. Like a demonstration's, its products
come from layer inputs and output gradients (probes/ghost.py), all of them in one backward pass. But
the directions must be known before that pass, and g^R is what the step's own pass only ends with.
So this is a pass of its own, on a schedule (`rollout_alignment_every`, off by default). Keeping
every layer's inputs and output gradients from the first pass instead would need no second one, but
holds, for each token and each linear layer, d_in + d_out numbers: 0.4 GB for the pocket model's
128 rollouts, 100 times its weights. No weight's gradient is formed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from time import perf_counter

import torch
from torch import Tensor, nn

from workbench.config import TrainingConfig
from workbench.policy import Policy, layer_of
from workbench.probes.ghost import PerSample
from workbench.sampling import completion_logits, token_logprobs
from workbench.training.batches import RolloutBatch
from workbench.training.gradients import RLObjective, rollout_tokens
from workbench.training.vectors import ParamVector


@dataclass
class PerRollout:
    """Products over θ, float64."""

    rl_inner_N: Tensor
    """⟨g_i, g^R⟩."""
    sft_inner: dict[str, Tensor]
    """⟨g_i, g^S⟩ by layer, (N,); empty where the method has no demonstrations."""
    norm_N: Tensor
    """‖g_i‖."""
    skipped: float
    """Share of ‖g^R‖² in weights that these products could not follow."""
    seconds: float
    """What it took."""

    @property
    def sft_inner_N(self) -> Tensor:
        """⟨g_i, g^S⟩ over all layers; NaN where the method has no demonstrations."""
        if not self.sft_inner:
            return torch.full_like(self.norm_N, nan)
        return torch.stack(list(self.sft_inner.values())).sum(0)


def rollout_products(
    policy: Policy,
    batch: RolloutBatch,
    rl: ParamVector,
    sft: ParamVector | None,
    config: TrainingConfig,
    temperature: float,
    objective_of: RLObjective,
) -> PerRollout:
    """Products of every rollout's share of g^R with g^R (`rl`) and g^S (`sft`).

    objective_of: what g^R is the gradient of.
    """
    started = perf_counter()
    tokens, n_rows = batch.tokens, len(batch.tokens.input_ids)
    zero = torch.zeros(n_rows, dtype=torch.float64)
    found = PerRollout(zero.clone(), {}, zero.clone(), 0.0, 0.0)
    # a gradient as far back as the embeddings passes every layer's output, and that is enough
    model = policy.of("joint")
    starts = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    for rows in tokens.micro_batches(0, n_rows, config.micro_batch_tokens):
        part = tokens.select(rows)
        with PerSample(
            model,
            rl,
            len(rows),
            groups={name: layer_of(name) for name in rl},
            parameters=policy.base,
            also={} if sft is None else {"sft": sft},
        ) as ghost:
            logits = completion_logits(model, part, temperature)
            logprobs = token_logprobs(logits, part)
            terms = objective_of(rollout_tokens(batch, rows, logprobs, logits))
            torch.autograd.grad(terms.objective_sum / (batch.divisor or tokens.n_tokens), starts)
        found.rl_inner_N[rows] = _over_layers(ghost.inner)
        found.norm_N[rows] = _over_layers(ghost.squared_norm).sqrt()
        for layer, values in ghost.inner_also.get("sft", {}).items():
            found.sft_inner.setdefault(layer, zero.clone())[rows] = values.cpu()
        found.skipped = max(found.skipped, sum(ghost.skipped.values()))
    found.seconds = perf_counter() - started
    return found


def _over_layers(values: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(values.values())).sum(0).cpu()

"""The three backward passes of a step. Gradients are returned, never left in `.grad`.

Every pass goes through the batch in two halves, whose gradients add up to the whole: the
difference between the halves is what the alignment probe's noise band is made of.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from workbench.config import TrainingConfig
from workbench.policy import Policy
from workbench.probes.ghost import PerSample
from workbench.sampling import TokenBatch, completion_logits, token_entropy, token_logprobs
from workbench.training.batches import RolloutBatch
from workbench.training.methods import Sides
from workbench.training.objectives import grpo_terms
from workbench.training.vectors import ParamVector


class NonFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite; the step was not applied."""

    def __init__(self, phase: str, tensor: str) -> None:
        super().__init__(f"{tensor} is not finite in phase '{phase}'")
        self.phase, self.tensor = phase, tensor


@dataclass(frozen=True)
class Halves:
    """A batch's gradient and its first half's contribution to it; the second is what is left."""

    first: Sides
    total: Sides
    n_first: int
    """Completion tokens of the first half."""
    n_second: int

    @property
    def second(self) -> Sides:
        """The second half's contribution; made anew at each call, to save memory."""
        return self.total - self.first


@dataclass(frozen=True)
class RLPass:
    """What one RL backward pass found."""

    halves: Halves | None
    """None unless they were asked for, or where the batch is a single group."""
    gradient: Sides
    objective: float
    """J_RL's surrogate on this batch, token mean."""
    kl: float
    """k3 to the reference, token mean; NaN without a reference."""
    clip_ratio: float
    """Share of tokens whose gradient the clip removed."""
    logprobs_NC: Tensor
    entropy_NC: Tensor


@dataclass(frozen=True)
class SFTPass:
    """What one SFT backward pass found."""

    halves: Halves | None
    gradient: Sides
    objective: float
    """Token-mean log-likelihood, nats."""
    logprobs_DC: Tensor


def split_rows(n_rows: int) -> list[tuple[int, int]]:
    """Two halves of n_rows rows; one 'half' where there is a single row."""
    middle = (n_rows + 1) // 2
    return [(0, middle), (middle, n_rows)] if n_rows > 1 else [(0, n_rows)]


def ascent(
    objective: Tensor, base: dict[str, Parameter], coordinator: dict[str, Parameter]
) -> Sides:
    """∇ objective over both parts."""
    parameters = [*base.values(), *coordinator.values()]
    values = torch.autograd.grad(objective, parameters, allow_unused=True, materialize_grads=True)
    n = len(base)
    return Sides(
        ParamVector(zip(base, values[:n], strict=True)),
        ParamVector(zip(coordinator, values[n:], strict=True)),
    )


def check_finite(gradient: Sides, name: str) -> None:
    """Raises NonFiniteError naming the first parameter whose gradient is not finite."""
    for part in (gradient.base, gradient.coordinator):
        for parameter, value in part.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError("gradients", f"{name} gradient of {parameter}")


class _Sum:
    """A gradient summed over micro-batches, in place, with a copy of what the first half gave."""

    def __init__(self) -> None:
        self.total: Sides | None = None
        self.first: Sides | None = None

    def add(self, part: Sides) -> None:
        if self.total is None:
            self.total = part
        else:
            self.total.add_(part)

    def end_of_half(self, keep: bool) -> None:
        """Call after each half; keeps a copy after the first, where wanted."""
        if keep and self.first is None:
            assert self.total is not None
            self.first = self.total.clone()

    def result(self, name: str, counts: list[int]) -> tuple[Sides, Halves | None]:
        """(gradient, halves); raises NonFiniteError."""
        assert self.total is not None
        check_finite(self.total, name)
        if self.first is None or len(counts) == 1:
            return self.total, None
        return self.total, Halves(self.first, self.total, *counts)


def rl_pass(
    name: str,
    module: nn.Module,
    base: dict[str, Parameter],
    coordinator: dict[str, Parameter],
    batch: RolloutBatch,
    config: TrainingConfig,
    temperature: float,
    old_logprobs_NC: Tensor | None,
    keep_halves: bool = False,
) -> RLPass:
    """∇ J_RL of `module` over (base, coordinator) on the step's rollouts.

    old_logprobs_NC: the behaviour policy's log-probs; None where `module` itself is the behaviour
    policy, whose ratio is then exactly 1. Raises NonFiniteError.
    """
    tokens, reference_NC = batch.tokens, batch.reference_logprobs_NC
    n_tokens = tokens.n_tokens
    advantages_N = batch.advantages_PG.flatten()
    logprobs_NC = torch.zeros_like(tokens.completion_mask)
    entropy_NC = torch.zeros_like(tokens.completion_mask)
    gradient_sum, counts = _Sum(), []
    objective = kl = clipped = 0.0
    for first, last in split_rows(len(batch.problems_P)):
        start, stop = first * batch.group_size, last * batch.group_size  # halves of whole groups
        for rows in tokens.micro_batches(start, stop, config.micro_batch_tokens):
            part = tokens.select(rows)
            width = part.completion_ids.shape[1]
            logits = completion_logits(module, part, temperature)
            logprobs = token_logprobs(logits, part)
            terms = grpo_terms(
                logprobs,
                logprobs.detach() if old_logprobs_NC is None else old_logprobs_NC[rows, :width],
                advantages_N[rows],
                part.completion_mask,
                config.clip_range,
                None if reference_NC is None else reference_NC[rows, :width],
                config.kl_coef,
            )
            share = terms.objective_sum / n_tokens
            if not bool(torch.isfinite(share)):
                raise NonFiniteError("gradients", f"{name} objective")
            gradient_sum.add(ascent(share, base, coordinator))
            with torch.no_grad():
                entropy_NC[rows, :width] = token_entropy(logits) * part.completion_mask
                logprobs_NC[rows, :width] = logprobs
            objective += share.item()
            kl += terms.kl_sum / n_tokens
            clipped += terms.clipped_sum / n_tokens
        gradient_sum.end_of_half(keep_halves)
        counts.append(int(tokens.completion_mask[start:stop].sum()))
    gradient, halves = gradient_sum.result(name, counts)
    return RLPass(
        halves,
        gradient,
        objective,
        kl if batch.reference_logprobs_NC is not None else float("nan"),
        clipped,
        logprobs_NC,
        entropy_NC,
    )


@dataclass
class PerDemonstration:
    """Inner products of each demonstration's share of g^S with g^R, from the same backward pass."""

    base_inner_D: Tensor
    coordinator_inner_D: Tensor
    """NaN where the method does not train w."""
    base_norm_D: Tensor
    skipped: float = 0.0
    """Share of ‖g^R‖² in weights that the per-sample products could not follow."""


def sft_pass(
    policy: Policy,
    coordinator: dict[str, Parameter],
    tokens: TokenBatch,
    direction: Sides | None,
    max_tokens: int,
) -> tuple[SFTPass, PerDemonstration | None]:
    """∇ J_SFT at (θ, w); with `direction` (g^R) also each demonstration's inner product with it.

    Raises NonFiniteError.
    """
    n_tokens, n_rows = tokens.n_tokens, len(tokens.input_ids)
    logprobs_DC = torch.zeros_like(tokens.completion_mask)
    blank = torch.full((n_rows,), nan, dtype=torch.float64)
    per = PerDemonstration(blank.clone(), blank.clone(), blank.clone())
    gradient_sum, counts = _Sum(), []
    objective = 0.0
    for start, stop in split_rows(n_rows):
        for rows in tokens.micro_batches(start, stop, max_tokens):
            part = tokens.select(rows)
            with ExitStack() as stack:
                ghost = None
                if direction is not None:
                    ghost = stack.enter_context(_per_sample(policy, direction, len(rows)))
                logprobs = token_logprobs(completion_logits(policy.model, part), part)
                share = logprobs.sum() / n_tokens
                if not bool(torch.isfinite(share)):
                    raise NonFiniteError("gradients", "sft objective")
                gradient_sum.add(ascent(share, policy.base, coordinator))
            if ghost is not None:
                per.base_inner_D[rows] = ghost.inner["base"].cpu()
                per.base_norm_D[rows] = ghost.norm["base"].cpu()
                per.skipped = max(per.skipped, sum(ghost.skipped.values()))
                if "coordinator" in ghost.inner:
                    per.coordinator_inner_D[rows] = ghost.inner["coordinator"].cpu()
            logprobs_DC[rows, : part.completion_ids.shape[1]] = logprobs.detach()
            objective += share.item()
        gradient_sum.end_of_half(keep=direction is not None)
        counts.append(int(tokens.completion_mask[start:stop].sum()))
    gradient, halves = gradient_sum.result("sft", counts)
    return SFTPass(halves, gradient, objective, logprobs_DC), per if direction else None


def _per_sample(policy: Policy, direction: Sides, n_samples: int) -> PerSample:
    named = {**direction.base, **direction.coordinator}
    return PerSample(
        policy.model,
        named,
        n_samples,
        groups={n: "base" if n in direction.base else "coordinator" for n in named},
        parameters={**policy.base, **policy.coordinator},
    )

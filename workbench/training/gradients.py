"""The three backward passes of a step. Gradients are returned, never left in `.grad`.

Every pass goes through the batch in a few blocks, whose gradients add up to the whole: how much the
blocks differ is what the alignment probe's standard error is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import nan
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from workbench.config import TrainingConfig
from workbench.policy import Policy, layer_of
from workbench.probes.ghost import PerSample
from workbench.sampling import TokenBatch, completion_logits, token_entropy, token_logprobs
from workbench.training.batches import RolloutBatch
from workbench.training.methods import Sides
from workbench.training.objectives import (
    DemonstrationTokens,
    RLTerms,
    RolloutTokens,
    rl_terms,
)
from workbench.training.vectors import ParamVector

RLObjective = Callable[[RolloutTokens], RLTerms]
SFTObjective = Callable[[DemonstrationTokens], Tensor]


class NonFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite; the step was not applied."""

    def __init__(self, phase: str, tensor: str) -> None:
        super().__init__(f"{tensor} is not finite in phase '{phase}'")
        self.phase, self.tensor = phase, tensor


RL_BLOCKS, SFT_BLOCKS = 5, 2
"""At most so many blocks. A block more is one tensor of half precision more for each weight; of
demonstrations each one's own share is known anyway (probes/ghost.py). [ours]"""


@dataclass(frozen=True)
class Blocks:
    """How a batch's gradient came together, block by block."""

    so_far: list[Sides]
    """The gradient's sum after each block but the last, in bfloat16: for inner products only."""
    tokens: list[int]
    """Completion tokens of each block."""
    seconds: float
    """What keeping them took."""


@dataclass(frozen=True)
class RLPass:
    """What one RL backward pass found."""

    blocks: Blocks | None
    """None unless they were asked for, or where the batch is a single group."""
    gradient: Sides
    objective: float
    """J_RL's surrogate on this batch; the token mean, unless the method divides otherwise."""
    kl: float
    """k3 to the reference, token mean; NaN without a reference."""
    clip_ratio: float
    """Share of tokens whose gradient the clip removed."""
    logprobs_NC: Tensor
    entropy_NC: Tensor


@dataclass(frozen=True)
class SFTPass:
    """What one SFT backward pass found."""

    blocks: Blocks | None
    gradient: Sides
    objective: float
    """Token-mean log-likelihood, nats, unless the method has another objective."""
    logprobs_DC: Tensor


def split_rows(n_rows: int, n_blocks: int) -> list[tuple[int, int]]:
    """n_rows rows in `n_blocks` blocks of like size, or one a row where there are fewer."""
    n_blocks = min(n_rows, n_blocks)
    edges = [round(n_rows * i / n_blocks) for i in range(n_blocks + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def check_finite(gradient: Sides, name: str) -> None:
    """Raises NonFiniteError naming the first parameter whose gradient is not finite."""
    for part in (gradient.base, gradient.coordinator):
        for parameter, value in part.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError("gradients", f"{name} gradient of {parameter}")


@dataclass(frozen=True)
class Keep:
    """Where a gradient is kept; None: where its parameter computes. `Policy.keep` says it."""

    sum: torch.device | None = None
    """While it is summed over micro-batches."""
    whole: torch.device | None = None
    """Once it is complete, with what it was after each block."""


class _Sum:
    """A gradient summed over micro-batches, in place, with a copy of what it was after a block.

    Each parameter's share is added as soon as autograd has it, so that beside the sum there is one
    tensor and never a second gradient.
    """

    def __init__(
        self,
        base: dict[str, Parameter],
        coordinator: dict[str, Parameter],
        blocks: bool,
        keep: Keep,
    ) -> None:
        """blocks: whether to copy what it is after each."""
        self.base, self.coordinator, self.keep = base, coordinator, keep
        self.total: dict[Parameter, Tensor] = {}
        self.blocks = blocks
        self.so_far: list[Sides] = []
        self.tokens: list[int] = []
        self.seconds = 0.0

    def add(self, objective: Tensor) -> None:
        """Add ∇ objective over both parts."""
        parameters = [*self.base.values(), *self.coordinator.values()]
        hooks = [p.register_post_accumulate_grad_hook(self._take) for p in parameters]
        try:
            torch.autograd.backward(objective, inputs=parameters)
            assert all(p.grad is None for p in parameters), "autograd left a gradient untaken"
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in parameters:  # where the pass was broken off
                parameter.grad = None

    def _take(self, parameter: Tensor) -> None:
        """Move what autograd left in `.grad` to the sum."""
        assert isinstance(parameter, Parameter) and parameter.grad is not None
        share, parameter.grad = parameter.grad, None
        if parameter in self.total:
            self.total[parameter].add_(share.to(self.total[parameter].device))
        else:
            self.total[parameter] = share.to(self.keep.sum or share.device)

    def _sides(self, convert: Callable[[Tensor], Tensor]) -> Sides:
        """The sum so far, tensor by tensor; zeros where a parameter had no part in it."""

        def side(parameters: dict[str, Parameter]) -> ParamVector:
            return ParamVector(
                (name, convert(self.total.get(p, torch.zeros_like(p, requires_grad=False))))
                for name, p in parameters.items()
            )

        return Sides(side(self.base), side(self.coordinator))

    def end_of_block(self, n_tokens: int, last: bool) -> None:
        """Call after each block."""
        self.tokens.append(n_tokens)
        if self.blocks and not last:
            started = perf_counter()
            self.so_far.append(self._sides(lambda v: self._whole(v.to(torch.bfloat16))))
            self.seconds += perf_counter() - started

    def _whole(self, value: Tensor) -> Tensor:
        return value.to(self.keep.whole or value.device)

    def result(self, name: str) -> tuple[Sides, Blocks | None]:
        """(gradient, blocks), to be asked for once; raises NonFiniteError."""
        total = self._sides(self._whole)
        self.total.clear()
        check_finite(total, name)
        if not self.so_far:
            return total, None
        return total, Blocks(self.so_far, self.tokens, self.seconds)


def rl_pass(
    name: str,
    module: nn.Module,
    base: dict[str, Parameter],
    coordinator: dict[str, Parameter],
    batch: RolloutBatch,
    config: TrainingConfig,
    temperature: float,
    old_logprobs_NC: Tensor | None,
    keep_blocks: bool = False,
    objective_of: RLObjective | None = None,
    keep: Keep = Keep(),
) -> RLPass:
    """∇ J_RL of `module` over (base, coordinator) on the step's rollouts.

    old_logprobs_NC: the behaviour policy's log-probs; None where `module` itself is the behaviour
    policy, whose ratio is then exactly 1 but where the batch says otherwise (`behaviour_NC`).
    objective_of: the objective; None: that of `rl_loss`. keep: where the gradient is kept. Raises
    NonFiniteError.
    """
    tokens, n_tokens = batch.tokens, batch.tokens.n_tokens
    divisor = batch.divisor or n_tokens
    if objective_of is None:
        objective_of = partial(rl_terms, c=config)
    logprobs_NC = torch.zeros_like(tokens.completion_mask)
    entropy_NC = torch.zeros_like(tokens.completion_mask)
    gradient_sum = _Sum(base, coordinator, keep_blocks, keep)
    n_groups = len(batch.problems_P)
    objective = kl = clipped = 0.0
    for first, last in split_rows(n_groups, RL_BLOCKS):
        start, stop = first * batch.group_size, last * batch.group_size  # blocks of whole groups
        for rows in tokens.micro_batches(start, stop, config.micro_batch_tokens):
            part = tokens.select(rows)
            width = part.completion_ids.shape[1]
            logits = completion_logits(module, part, temperature)
            logprobs = token_logprobs(logits, part)
            terms = objective_of(rollout_tokens(batch, rows, logprobs, logits, old_logprobs_NC))
            share = terms.objective_sum / divisor
            if not bool(torch.isfinite(share)):
                raise NonFiniteError("gradients", f"{name} objective")
            gradient_sum.add(share)
            with torch.no_grad():
                entropy_NC[rows, :width] = token_entropy(logits) * part.completion_mask
                logprobs_NC[rows, :width] = logprobs
            objective += share.item()
            kl += terms.kl_sum / n_tokens
            clipped += terms.clipped_sum / n_tokens
        n_block = int(tokens.completion_mask[start:stop].sum())
        gradient_sum.end_of_block(n_block, last == n_groups)
    gradient, blocks = gradient_sum.result(name)
    return RLPass(
        blocks,
        gradient,
        objective,
        kl if batch.reference_logprobs_NC is not None else float("nan"),
        clipped,
        logprobs_NC,
        entropy_NC,
    )


def rollout_tokens(
    batch: RolloutBatch,
    rows: list[int],
    logprobs_NC: Tensor,
    logits_NCV: Tensor,
    old_logprobs_NC: Tensor | None = None,
) -> RolloutTokens:
    """Some rollouts of a batch as an objective sees them, given what the model says of them.

    old_logprobs_NC: of all rollouts; None: the model's own, but where the batch says otherwise.
    """
    width = logprobs_NC.shape[1]
    old = logprobs_NC.detach()
    reference, given, behaviour = batch.reference_logprobs_NC, batch.given_NC, batch.behaviour_NC
    if old_logprobs_NC is not None:
        old = old_logprobs_NC[rows, :width]
    if behaviour is not None:
        then = behaviour[rows, :width]
        old = torch.where(then.isnan(), old, then)
    return RolloutTokens(
        logprobs_NC,
        old,
        None if reference is None else reference[rows, :width],
        batch.advantages_PG.flatten()[rows],
        batch.rewards_PG.flatten()[rows],
        batch.mask_NC[rows, :width],
        None if given is None else given[rows, :width],
        logits_NCV,
    )


@dataclass
class PerDemonstration:
    """Inner products of each demonstration's share of g^S with g^R, from the same backward pass."""

    inner: dict[str, dict[str, Tensor]]
    """⟨g_j, g^R⟩ by part ('base', 'coordinator'), then layer: float64 (D,)."""
    base_norm_D: Tensor
    skipped: float = 0.0
    """Share of ‖g^R‖² in weights that the per-sample products could not follow."""
    seconds: float = 0.0
    """What this added to the pass."""

    @property
    def base_inner_D(self) -> Tensor:
        """⟨g_j, g^R⟩ over θ."""
        return torch.stack(list(self.inner["base"].values())).sum(0)

    @property
    def coordinator_inner_D(self) -> Tensor:
        """⟨g_j, g^R⟩ over w; NaN where the method does not train it."""
        if not self.inner["coordinator"]:
            return torch.full_like(self.base_norm_D, nan)
        return torch.stack(list(self.inner["coordinator"].values())).sum(0)


def sft_pass(
    policy: Policy,
    coordinator: dict[str, Parameter],
    tokens: TokenBatch,
    direction: Sides | None,
    max_tokens: int,
    objective_of: SFTObjective | None = None,
    advantages_D: Tensor | None = None,
    divisor: float | None = None,
) -> tuple[SFTPass, PerDemonstration | None]:
    """∇ J_SFT at (θ, w); with `direction` (g^R) also each demonstration's inner product with it.

    objective_of: the objective at each token; None: log π. divisor: of its sum; None: the number
    of tokens. Raises NonFiniteError.
    """
    divisor, n_rows = divisor or tokens.n_tokens, len(tokens.input_ids)
    if advantages_D is None:
        advantages_D = torch.zeros(n_rows, device=tokens.input_ids.device)
    logprobs_DC = torch.zeros_like(tokens.completion_mask)
    per = PerDemonstration(
        {"base": {}, "coordinator": {}}, torch.zeros(n_rows, dtype=torch.float64)
    )
    gradient_sum = _Sum(policy.base, coordinator, direction is not None, Keep(*policy.keep))
    model = policy.of("joint")
    objective = 0.0
    for start, stop in split_rows(n_rows, SFT_BLOCKS):
        for rows in tokens.micro_batches(start, stop, max_tokens):
            part = tokens.select(rows)
            with ExitStack() as stack:
                ghost = None
                if direction is not None:
                    ghost = stack.enter_context(_per_sample(policy, direction, len(rows)))
                logits = completion_logits(model, part)
                values = logprobs = token_logprobs(logits, part)
                if objective_of is not None:
                    mask = part.completion_mask
                    values = mask * objective_of(
                        DemonstrationTokens(logprobs, mask, advantages_D[rows], logits)
                    )
                share = values.sum() / divisor
                if not bool(torch.isfinite(share)):
                    raise NonFiniteError("gradients", "sft objective")
                gradient_sum.add(share)
            if ghost is not None:
                _collect(per, ghost, rows)
            logprobs_DC[rows, : part.completion_ids.shape[1]] = logprobs.detach()
            objective += share.item()
        n_block = int(tokens.completion_mask[start:stop].sum())
        gradient_sum.end_of_block(n_block, stop == n_rows)
    gradient, blocks = gradient_sum.result("sft")
    return SFTPass(blocks, gradient, objective, logprobs_DC), per if direction else None


def _per_sample(policy: Policy, direction: Sides, n_samples: int) -> PerSample:
    sides = {"base": direction.base, "coordinator": direction.coordinator}
    groups = {name: f"{part}/{layer_of(name)}" for part, v in sides.items() for name in v}
    return PerSample(
        policy.model,
        {**direction.base, **direction.coordinator},
        n_samples,
        groups=groups,
        parameters={**policy.base, **policy.coordinator},
        norms={group for group in groups.values() if group.startswith("base/")},
    )


def _collect(per: PerDemonstration, ghost: PerSample, rows: list[int]) -> None:
    """Put a micro-batch's numbers where its rows are."""
    for group, values in ghost.inner.items():
        part, layer = group.split("/")
        found = per.inner[part].setdefault(layer, torch.zeros_like(per.base_norm_D))
        found[rows] = values.cpu()
    squares = torch.stack(list(ghost.squared_norm.values())).sum(0)
    per.base_norm_D[rows] = squares.sqrt().cpu()
    per.skipped = max(per.skipped, sum(ghost.skipped.values()))
    per.seconds += ghost.seconds

"""What a step does inside the network: activations and gradients by layer, updates, KL. [ours]

For one step that is executed again (`Session.replay`), not for every step: hooks on each layer
cost time, and copies of all weights memory. Nothing here changes a number of the step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import nan, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from workbench.policy import Policy, layer_of
from workbench.sampling import TokenBatch, completion_logits

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)$")


@dataclass(frozen=True)
class LayerRow:
    """What one module gave and got back in one pass of a step, over all real tokens."""

    passing: str
    """Which backward pass: 'rl', 'sft', 'baseline_rl', …"""
    policy: str
    """'joint' or 'baseline'."""
    layer: str
    """'embed', 'layers.N', 'norm', 'lm_head'."""
    module: str
    """The layer's name, or 'layers.N.<part>' for a part of a block."""
    activation_rms: float
    """Root mean square of the outputs' entries."""
    activation_max: float
    """The largest absolute entry."""
    gradient_norm: float
    """‖∂J/∂output‖ over all tokens of the batch; J is the objective, a token mean."""
    gradient_max: float
    nonfinite: int
    """Tokens whose output has a NaN or an infinity."""
    tokens: int
    """Tokens that passed, padding left out."""


@dataclass
class _Seen:
    layer: str
    size: int = 0
    tokens: int = 0
    nonfinite: int = 0
    squares: float = 0.0
    largest: float = 0.0
    gradient_squares: float = 0.0
    gradient_largest: float = 0.0
    gradients: int = 0


def traced_modules(policy: Policy, model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a policy's model that a trace follows, by name: layers and parts of blocks."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        parent, _, part = path.rpartition(".")
        layer = layer_of(f"{path}.weight")
        has_own = any(True for _ in module.parameters())
        if _BLOCK.search(path):
            found[layer] = module
        elif _BLOCK.search(parent) and has_own:
            found[f"{layer}.{part}"] = module
        elif not list(module.children()) and has_own and layer in ("embed", "norm", "lm_head"):
            found.setdefault(layer, module)
    return found


class LayerTrace:
    """Norms of each layer's outputs and of the gradients that reach them, pass by pass.

        trace = LayerTrace(policy)
        trainer.watch = trace.watch
        trainer.step(number)
        trace.rows()

    Outputs at padding are left out. Only forward passes of a whole model inside a watched pass
    count, summed over its micro-batches.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._seen: dict[tuple[str, str, str], _Seen] = {}
        self._mask: Tensor | None = None  # (N, T) of the forward pass under way

    @contextmanager
    def watch(self, passing: str) -> Iterator[None]:
        """Follow what happens inside the block under this name."""
        handles: list[RemovableHandle] = []
        for policy in ("joint", "baseline"):
            wrapped = self._policy.model if policy == "joint" else self._policy.baseline
            if wrapped is None:
                continue
            model = wrapped.get_base_model()
            handles.append(model.register_forward_pre_hook(self._begin, with_kwargs=True))
            handles.append(model.register_forward_hook(self._end))
            for name, module in traced_modules(self._policy, model).items():
                after = partial(self._after, (passing, policy, name))
                handles.append(module.register_forward_hook(after))
        try:
            yield
        finally:
            self._mask = None
            for handle in handles:
                handle.remove()

    def _begin(self, model: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        self._mask = named["attention_mask"].bool()

    def _end(self, model: nn.Module, inputs: Any, output: Any) -> None:
        self._mask = None  # what runs a layer alone, as per-sample products do, is no forward pass

    def _after(
        self, key: tuple[str, str, str], module: nn.Module, inputs: Any, output: Any
    ) -> None:
        if self._mask is None:
            return
        h = output if isinstance(output, Tensor) else output[0]
        mask = self._mask[:, -h.shape[1] :]
        name = key[2]
        seen = self._seen.setdefault(key, _Seen(".".join(name.split(".")[:2])))
        with torch.no_grad():
            real = h.detach()[mask].float()
            seen.size = real.shape[1]
            seen.tokens += len(real)
            seen.nonfinite += int((~torch.isfinite(real)).any(1).sum())
            seen.squares += float(real.square().sum(1).double().sum())
            seen.largest = _larger(seen.largest, real)
        if h.requires_grad:
            h.register_hook(partial(self._back, seen, mask))

    @torch.no_grad()
    def _back(self, seen: _Seen, mask: Tensor, gradient: Tensor) -> None:
        real = gradient[mask].float()
        seen.gradients += 1
        seen.gradient_squares += float(real.square().sum(1).double().sum())
        seen.gradient_largest = _larger(seen.gradient_largest, real)

    def rows(self) -> list[LayerRow]:
        """One row a pass and module, in the order they were reached."""
        return [
            LayerRow(
                passing,
                policy,
                seen.layer,
                name,
                sqrt(seen.squares / (seen.tokens * seen.size)),
                seen.largest,
                sqrt(seen.gradient_squares) if seen.gradients else nan,
                seen.gradient_largest if seen.gradients else nan,
                seen.nonfinite,
                seen.tokens,
            )
            for (passing, policy, name), seen in self._seen.items()
        ]


def _larger(known: float, values: Tensor) -> float:
    largest = float(values.abs().max())
    return largest if largest > known or largest != largest else known  # a NaN is kept


@dataclass(frozen=True)
class UpdateRow:
    """How far one update moved one layer."""

    part: str
    """'base' (θ), 'baseline' (θ̂) or 'coordinator' (w: the entries of A and B)."""
    layer: str
    """As in LayerRow, or 'all'."""
    update_norm: float
    """‖Δ‖."""
    weight_norm: float
    """‖W‖ before the update."""
    ratio: float
    """‖Δ‖/‖W‖; NaN where ‖W‖ is 0."""


def parts(policy: Policy) -> dict[str, dict[str, Parameter]]:
    """θ, θ̂ and w by the names that updates are reported under; empty ones left out."""
    named = {
        "base": policy.base,
        "baseline": policy.baseline_base,
        "coordinator": policy.coordinator,
    }
    return {part: parameters for part, parameters in named.items() if parameters}


Weights = dict[str, dict[str, Tensor]]
"""Copies of the parameters, by part and name."""


def copied(policy: Policy) -> Weights:
    """All weights as they are now."""
    return {
        part: {name: p.detach().clone() for name, p in parameters.items()}
        for part, parameters in parts(policy).items()
    }


@torch.no_grad()
def update_rows(before: Weights, policy: Policy) -> list[UpdateRow]:
    """What moved since `before`, by part and layer; 'all' comes first in each part."""
    rows = []
    for part, parameters in parts(policy).items():
        moved: dict[str, float] = {"all": 0.0}
        weight: dict[str, float] = {"all": 0.0}
        for name, parameter in parameters.items():
            old = before[part][name].to(parameter.device)
            for layer in ("all", layer_of(name)):
                change = (parameter.double() - old.double()).square().sum()
                moved[layer] = moved.get(layer, 0.0) + float(change)
                weight[layer] = weight.get(layer, 0.0) + float(old.double().square().sum())
        for layer, square in moved.items():
            size = sqrt(weight[layer])
            ratio = sqrt(square) / size if size else nan
            rows.append(UpdateRow(part, layer, sqrt(square), size, ratio))
    return rows


@dataclass(frozen=True)
class TokenShift:
    """What an update did to the joint policy on some texts; each (N, C), 0 at padding.

    KL is exact, over the whole vocabulary, nats; NaN where there is no reference.
    """

    logprob: Tensor
    """log π of each token before the update."""
    logprob_after: Tensor
    kl_update: Tensor
    """KL(π after ‖ π before)."""
    kl_reference: Tensor
    """KL(π before ‖ starting policy)."""
    kl_reference_after: Tensor
    """KL(π after ‖ starting policy)."""


@torch.no_grad()
def token_shift(
    policy: Policy, before: Weights, tokens: TokenBatch, temperature: float, max_tokens: int
) -> TokenShift:
    """Compare the policy as it is with what it was `before`, and both with the starting policy."""
    blank = torch.zeros_like(tokens.completion_mask, dtype=torch.float64)
    found = TokenShift(*(blank.clone() for _ in range(5)))
    for rows in tokens.micro_batches(0, len(tokens.input_ids), max_tokens):
        part = tokens.select(rows)
        width = part.completion_ids.shape[1]
        mask = part.completion_mask.double()

        def logp(model: nn.Module, part: TokenBatch = part) -> Tensor:
            return completion_logits(model, part, temperature).double().log_softmax(-1)

        after = logp(policy.of("joint"))
        with _put_back(policy, before):
            old = logp(policy.of("joint"))
        ids = part.completion_ids[:, :, None]
        found.logprob[rows, :width] = old.gather(2, ids)[:, :, 0] * mask
        found.logprob_after[rows, :width] = after.gather(2, ids)[:, :, 0] * mask
        found.kl_update[rows, :width] = _kl(after, old) * mask
        if policy.reference is None:
            found.kl_reference[rows] = found.kl_reference_after[rows] = nan
        else:
            reference = logp(policy.of("reference"))
            found.kl_reference[rows, :width] = _kl(old, reference) * mask
            found.kl_reference_after[rows, :width] = _kl(after, reference) * mask
    return found


def _kl(logp: Tensor, other: Tensor) -> Tensor:
    return (logp.exp() * (logp - other)).sum(-1)


@contextmanager
def _put_back(policy: Policy, before: Weights) -> Iterator[None]:
    """Have θ and w as they were, inside the block."""
    now: dict[Parameter, Tensor] = {}
    kept: Mapping[str, dict[str, Parameter]] = parts(policy)
    try:
        for part in ("base", "coordinator"):
            for name, parameter in kept[part].items():
                now[parameter] = parameter.data
                parameter.data = before[part][name].to(parameter.device)
        yield
    finally:
        for parameter, data in now.items():
            parameter.data = data

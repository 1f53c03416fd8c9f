"""Per-sample inner products with a direction, and per-sample norms, from one backward pass.

A batch loss is one scalar, its gradient a sum over the samples of the batch: g = Σ_j g_j. For each
sample j this gives ⟨g_j, v⟩ with a direction v, and ‖g_j‖², without ever running a second backward
pass: both follow from what each layer saw going forward and received going backward.

For a linear layer y_t = W x_t with b_t = ∂loss/∂y_t, sample j's share is g_j = Σ_t b_t x_tᵀ, so

    ⟨g_j, V⟩ = Σ_t b_tᵀ V x_t
    ‖g_j‖²   = Σ_t Σ_t' (b_t·b_t')(x_t·x_t')        for short texts
             = ‖Σ_t b_t x_tᵀ‖²                      otherwise

Which of the two is cheaper is decided for each layer by counting multiplications. The second forms
g_j, from which every inner product is then d_in·d_out more, instead of T·d_in·d_out. But it writes
d_in·d_out numbers a sample and reads them again, each worth some 50 multiplications: so with a norm
wanted it wins from T² (d_in + d_out) > 50 d_in·d_out on, about.

An embedding is the same with one-hot x_t. A weight used more than once (tied embedding and output
layer) adds the cross terms between its uses. Biases and norm weights have small per-sample
gradients, which are formed outright.

Source: the "ghost" inner product of in-run data attribution, Wang, Mittal, Song, Jia, "Data Shapley
in One Training Run", ICLR 2025 (arXiv 2406.11011). The cross terms of tied weights and the LoRA
coordinator are [ours].
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from time import perf_counter
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from workbench.sampling import TokenBatch, completion_logits, token_logprobs

FORMED = 1 << 23
"""Entries of per-sample gradients formed at once: 32 MB in float32. [ours]"""

ENTRY = 48
"""Multiplications that take as long as writing and reading one of these entries. [ours]

Measured on one CPU thread, widths 96 to 2,048, 32 to 256 tokens: there the two ways take equal time
from 20 (narrow layers) to 180 (wide ones)."""


class _Use(NamedTuple):
    """One use of a matrix: sample j's gradient share is Σ_t left_jt right_jtᵀ.

    left is (N, T, rows) or, where it is one-hot, the row numbers (N, T); right is (N, T, columns).
    """

    left: Tensor
    right: Tensor

    def inner(self, direction: Tensor) -> Tensor:
        """⟨Σ_t left_t right_tᵀ, direction⟩ of each sample, (N,)."""
        projected = (
            direction[self.left] if self.left.dim() == 2 else self.left @ direction
        )  # (N, T, columns)
        return (projected * self.right).flatten(1).sum(1)


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of a (N, T, d) with those of b (N, S, d), (N, T, S).

    Either may be one-hot, given as row numbers (N, T).
    """
    if a.dim() == 2 and b.dim() == 2:
        return a[:, :, None] == b[:, None, :]
    if a.dim() == 2:
        return _gram(b, a).transpose(1, 2)
    if b.dim() == 2:
        return a.gather(2, b[:, None, :].expand(-1, a.shape[1], -1))
    return a @ b.transpose(1, 2)


def _squared_norm(uses: list[_Use]) -> Tensor:
    """‖Σ over uses of Σ_t left_t right_tᵀ‖² of each sample, (N,)."""
    total = uses[0].right.new_zeros(uses[0].right.shape[0])
    for i, a in enumerate(uses):
        for b in uses[i:]:
            right = _gram(a.right, b.right)
            left = _gram(a.left, b.left).to(right.dtype)
            total += (1 if a is b else 2) * (left * right).flatten(1).sum(1)
    return total


def _forming_is_cheaper(use: _Use, n_directions: int) -> bool:
    """Whether to form each sample's gradient, by the work for inner products and norm."""
    if use.left.dim() == 2:
        return False
    tokens, rows, columns = use.left.shape[1], use.left.shape[2], use.right.shape[2]
    size = rows * columns
    projected = n_directions * tokens * size + tokens**2 * (rows + columns)
    return size * (tokens + n_directions + ENTRY) < projected


def _formed(use: _Use, directions: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Inner products with each direction, and ‖·‖², from each sample's gradient itself: (N,)."""
    flat = torch.stack([v.flatten() for v in directions.values()], 1)  # (rows·columns, directions)
    inner, squares = [], []
    chunk = max(1, FORMED // len(flat))
    for left, right in zip(use.left.split(chunk), use.right.split(chunk), strict=True):
        gradients = (left.transpose(1, 2) @ right).flatten(1)
        inner.append(gradients @ flat)
        squares.append(torch.linalg.vector_norm(gradients, dim=1).square())
    columns = torch.cat(inner).unbind(1)
    return dict(zip(directions, columns, strict=True)), torch.cat(squares)


class PerSample:
    """Collects ⟨g_j, direction⟩ and ‖g_j‖² of each sample j while one loss is backpropagated.

        with PerSample(model, direction, n_samples) as ghost:
            loss = some_mean(model(input_ids=…, position_ids=…).logits)
            gradients = torch.autograd.grad(loss, parameters)      # or loss.backward()
        ghost.inner["all"]                                         # (n_samples,), float64

    One forward pass holds all samples, sample j at row j; each of several micro-batches needs its
    own PerSample. g_j is sample j's share of the gradient of the loss: Σ_j ⟨g_j, v⟩ = ⟨g, v⟩, and
    the signs are the loss's, not an objective's. Nothing in the model or its gradients is changed.

    Covered: nn.Linear (peft's LoRA layers are made of them), transformers' Conv1D, nn.Embedding,
    and every other module without children whose own parameters are vectors and that maps one
    tensor to one tensor, sample by sample (norms). Everything else is named in `skipped`, as is a
    parameter whose layer was not reached or saw no batch dimension (GPT-2's positions where
    `position_ids` was not given as (N, T)); it counts nothing in the results. A weight that the
    model also reads outside its module's forward escapes unseen: on a new architecture, compare
    Σ_j ⟨g_j, v⟩ with ⟨g, v⟩.

    Args:
        model: any transformers causal LM, with or without a peft LoRA adapter.
        direction: v, by parameter name. Only these parameters count; frozen ones never do. It may
            lie on the CPU: then each tensor is copied to where it is wanted, one at a time.
        n_samples: rows of the batch.
        groups: group of each name, e.g. 'base/layers.0'; all fall in 'all' without it.
        parameters: what the names in `direction` mean; `model.named_parameters()` without it.
        also: further directions, by a name of their own; parameters one lacks count 0 there.
        norms: groups whose norms are wanted; all of them without it.

    Attributes, complete once the block has ended, all on the CPU:
        inner: ⟨g_j, v⟩ summed over each group's parameters, group → (n_samples,) float64.
        inner_also: the same for each direction in `also`, by its name.
        squared_norm: ‖g_j‖² over each group's parameters, group → (n_samples,) float64.
        skipped: parameters that could not be followed, each with its share of ‖v‖² over all of v.
        seconds: what all this took, of the time of the pass it was part of. On an accelerator: to
            hand it out, not to compute it.
    """

    def __init__(
        self,
        model: nn.Module,
        direction: Mapping[str, Tensor],
        n_samples: int,
        groups: Mapping[str, str] | None = None,
        parameters: Mapping[str, nn.Parameter] | None = None,
        also: Mapping[str, Mapping[str, Tensor]] | None = None,
        norms: Collection[str] | None = None,
    ) -> None:
        self._began = perf_counter()
        known = dict(model.named_parameters()) if parameters is None else parameters
        trained = {name: known[name] for name in direction if known[name].requires_grad}
        self._n = n_samples
        self._direction = {name: direction[name].detach() for name in trained}
        self._directions: dict[str, dict[str, Tensor]] = {
            key: {name: v[name].detach() for name in trained if name in v}
            for key, v in ({"": direction} | dict(also or {})).items()
        }
        self._group = {name: groups[name] if groups else "all" for name in trained}
        self._wanted = {n for n, group in self._group.items() if norms is None or group in norms}
        self._name = {id(parameter): name for name, parameter in trained.items()}
        self.inner: dict[str, Tensor] = {}
        self.inner_also: dict[str, dict[str, Tensor]] = {key: {} for key in also or {}}
        self.squared_norm: dict[str, Tensor] = {}
        self.skipped: dict[str, float] = {}
        owned = ((module, self._own(module)) for module in model.modules())
        self._owned = {module: names for module, names in owned if names}
        self._lost = self._not_covered()
        self._calls: Counter[str] = Counter()
        self._uses: dict[str, list[_Use]] = defaultdict(list)
        self._vectors: dict[str, Tensor] = {}  # (N, d): per-sample gradients of vectors
        self._inner: dict[str, dict[str, Tensor]] = {key: {} for key in self._directions}
        self._squared_norm: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._replaying = False
        self.seconds = 0.0

    @property
    def norm(self) -> dict[str, Tensor]:
        """‖g_j‖ over each group's parameters, group → (n_samples,) float64."""
        return {group: squares.sqrt() for group, squares in self.squared_norm.items()}

    def _own(self, module: nn.Module) -> dict[str, str]:
        """Parameters of the module itself that count: attribute → name in `direction`."""
        return {
            attribute: self._name[id(parameter)]
            for attribute, parameter in module.named_parameters(recurse=False)
            if id(parameter) in self._name
        }

    def _not_covered(self) -> set[str]:
        found: set[str] = set()
        lost: set[str] = set()
        for module, names in self._owned.items():
            found |= set(names.values())
            if not _is_covered(module):
                lost |= set(names.values())
        return lost | (set(self._name.values()) - found)

    def __enter__(self) -> PerSample:
        for module in self._owned:
            if _is_covered(module):
                self._handles.append(module.register_forward_hook(self._after_forward))
        self.seconds = perf_counter() - self._began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        started = perf_counter()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind is None:
            self._finish()
        self.seconds += perf_counter() - started

    def _after_forward(self, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if self._replaying or not out.requires_grad:
            return
        names = self._owned[module]
        if len(inputs) != 1 or inputs[0].shape[0] != self._n or out.shape[0] != self._n:
            self._lost |= set(names.values())
            return
        self._calls.update(names.values())
        x = inputs[0].detach()

        def timed(gradient: Tensor) -> None:
            started = perf_counter()
            self._after_backward(module, names, x, gradient)
            self.seconds += perf_counter() - started

        out.register_hook(timed)

    @torch.no_grad()
    def _after_backward(
        self, module: nn.Module, names: dict[str, str], x: Tensor, gradient: Tensor
    ) -> None:
        if not isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            for attribute, share in self._replay(module, names, x, gradient).items():
                _add(self._vectors, names[attribute], share.to(gradient.dtype))
            return
        if "bias" in names:
            share = gradient.reshape(self._n, -1, gradient.shape[-1]).sum(1)
            _add(self._vectors, names["bias"], share)
        if "weight" in names:
            name = names["weight"]
            use = _as_use(module, x, gradient, self._n, self._direction[name].dtype)
            directions = {
                k: v[name].to(gradient.device) for k, v in self._directions.items() if name in v
            }
            wanted = name in self._wanted
            if wanted and self._calls[name] == 1 and _forming_is_cheaper(use, len(directions)):
                inner, squared_norm = _formed(use, directions)
                for key, value in inner.items():
                    self._inner[key][name] = value.double()
                self._squared_norm[name] = squared_norm.double()
                return
            for key, direction in directions.items():
                _add(self._inner[key], name, use.inner(direction).double())
            if not wanted:
                return
            self._uses[name].append(use)
            if len(self._uses[name]) == self._calls[name]:  # the last of its uses
                self._squared_norm[name] = _squared_norm(self._uses.pop(name)).double()

    def _replay(
        self, module: nn.Module, names: dict[str, str], x: Tensor, gradient: Tensor
    ) -> dict[str, Tensor]:
        """Per-sample gradients (N, d) of a module's vectors, by running the module alone again."""
        own = {attribute: module.get_parameter(attribute).detach() for attribute in names}

        def share(x_j: Tensor, gradient_j: Tensor) -> dict[str, Tensor]:
            def run(vectors: dict[str, Tensor]) -> Tensor:
                return torch.func.functional_call(module, vectors, (x_j,))

            return torch.func.vjp(run, own)[1](gradient_j)[0]

        self._replaying = True
        try:
            return torch.vmap(share)(x, gradient)
        finally:
            self._replaying = False

    def _finish(self) -> None:
        for name, uses in self._uses.items():
            self._squared_norm[name] = _squared_norm(uses).double()
        for name, share in self._vectors.items():
            for key, direction in self._directions.items():
                if name in direction:
                    v = direction[name]
                    self._inner[key][name] = (share.to(v.dtype) @ v.to(share.device)).double()
            if name in self._wanted:
                self._squared_norm[name] = share.double().square().sum(1)
        self._uses.clear()
        self._vectors.clear()
        squares = {
            name: v.square().sum(dtype=torch.float64).item() for name, v in self._direction.items()
        }
        total = sum(squares.values())
        for name, group in self._group.items():
            zero = torch.zeros(self._n, dtype=torch.float64)
            followed = name not in self._lost and name in self._inner[""]
            if not followed:
                self.skipped[name] = squares[name] / total if total else 0.0
            if name in self._wanted:
                _add(self.squared_norm, group, self._squared_norm[name].cpu() if followed else zero)
            for key, inner in self._inner.items():
                totals = self.inner_also[key] if key else self.inner
                _add(totals, group, inner.get(name, zero).cpu() if followed else zero)


def skipped_weights(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], tokens: TokenBatch
) -> dict[str, float]:
    """Weights that `PerSample` cannot follow in this model, each with its share of all weights.

    Found by one pass over a few texts: what a layer is says less than how the model calls it.
    """
    everywhere = {name: p.detach().new_ones(()).expand(p.shape) for name, p in parameters.items()}
    n_texts = len(tokens.input_ids)
    with PerSample(model, everywhere, n_texts, parameters=parameters, norms=()) as ghost:
        objective = token_logprobs(completion_logits(model, tokens), tokens).sum()
        torch.autograd.grad(objective, list(parameters.values()), allow_unused=True)
    return ghost.skipped


def _add(totals: dict[str, Tensor], name: str, value: Tensor) -> None:
    totals[name] = totals[name] + value if name in totals else value


def _is_covered(module: nn.Module) -> bool:
    """Subclasses of nn.Linear and nn.Embedding may compute something else: exact types only."""
    if type(module) in (nn.Linear, Conv1D, nn.Embedding):
        return True
    own = list(module.parameters(recurse=False))
    return not list(module.children()) and all(p.dim() == 1 for p in own)


def _as_use(module: nn.Module, x: Tensor, gradient: Tensor, n: int, dtype: torch.dtype) -> _Use:
    """How a Linear, Conv1D or Embedding used its weight, in the weight's own orientation."""
    b = gradient.reshape(n, -1, gradient.shape[-1]).to(dtype)
    if isinstance(module, nn.Embedding):
        ids = x.reshape(n, -1)
        if module.padding_idx is not None:  # torch gives that row no gradient
            b = b * (ids != module.padding_idx)[..., None]
        return _Use(ids, b)
    x = x.reshape(n, -1, x.shape[-1]).to(dtype)
    return _Use(x, b) if isinstance(module, Conv1D) else _Use(b, x)

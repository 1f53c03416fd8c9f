"""Two steps on a device that is strict about what it holds, run by test_placement in a process.

Its tensors keep their numbers in the CPU's memory, but say they are elsewhere, and an operation
that mixes them with the CPU's raises, as on a GPU. So offloading really moves things here: what is
not where it is wanted is an error, and the numbers must be those of a run without offloading, to
the last bit. It is made of torch's experimental device in Python, hence a process of its own.

    python -m tests.strict_device FOLDER_OF_A_TINY_MODEL bridge
    python -m tests.strict_device FOLDER_OF_A_TINY_MODEL bridge,reset,alternating
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

from tests.training.tiny import ChanceTask, copy_of, same_bits, small_config
from workbench import placement
from workbench import policy as policies
from workbench.capture import capture, load_optimizers, load_weights
from workbench.policy import Policy
from workbench.training.trainer import Trainer

EVERYTHING = ("reference", "baseline", "base", "gradients", "gradient_sum")
PROBES = (
    "alignment_every",
    "rollout_alignment_every",
    "shared_gain_every",
    "paired_gain_every",
    "token_views_every",
    "coordinator_every",
)
FEW = {
    "prompts_per_step": 2,
    "group_size": 2,
    "demonstrations_per_step": 2,
    "max_new_tokens": 3,
    "paired_prompts": 1,
    "paired_rollouts": 2,
}
SETTINGS: dict[str, dict[str, object]] = {
    "bridge": {},
    "reset": {"baseline_mode": "reset"},
    "alternating": {"method": "alternating", "track_baseline": True},
}
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)


class _Backend(_DummyBackendModule):
    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


_setup_privateuseone_for_python_backend("strict", _Backend())
STRICT = torch.device("strict:0")


class Away(Tensor):
    """A tensor on the strict device; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Away:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=STRICT,
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return execute(operation, args, kwargs or {})


class Strict(TorchDispatchMode):
    """Inside, the strict device exists."""

    def __torch_dispatch__(
        self, operation: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return execute(operation, args, kwargs or {})


def execute(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do an operation on the CPU; its results are where its tensors are, or where it says."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    away = [x for x in tensors if isinstance(x, Away)]
    here = [x for x in tensors if not isinstance(x, Away) and x.dim() > 0]
    allowed = operation in COPIES or (operation in INDEXING and isinstance(args[0], Away))
    if away and here and not allowed:
        shapes = ([tuple(x.shape) for x in away], [tuple(x.shape) for x in here])
        raise RuntimeError(f"{operation}: on the device {shapes[0]}, on the CPU {shapes[1]}")
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        goes_away = torch.device(asked).type == STRICT.type
    else:
        goes_away = isinstance(args[0], Away) if operation in COPIES else bool(away)
    outer = {id(x.inner): x for x in away} | {id(x): x for x in here}

    def wrap(found: Any) -> Any:
        if not isinstance(found, Tensor):
            return found
        return outer.get(id(found)) if id(found) in outer else Away(found) if goes_away else found

    def unwrap(x: Any) -> Any:
        return x.inner if isinstance(x, Away) else x

    return tree_map(wrap, operation(*tree_map(unwrap, args), **tree_map(unwrap, kwargs)))


def put(parameter: nn.Parameter, device: torch.device) -> None:
    """`placement.put`, for a device whose tensors are of another class than the CPU's."""
    if parameter.device == device:
        return
    hooks = parameter._post_accumulate_grad_hooks
    moved = parameter.detach().to(device)
    torch.utils.swap_tensors(parameter, nn.Parameter(moved, parameter.requires_grad))
    if hooks is not None:
        parameter._post_accumulate_grad_hooks = hooks


def two_steps(model: Path, **settings: object) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and metrics after a step, a snapshot taken over by another policy, and a step."""
    config = small_config(model, **{**dict.fromkeys(PROBES, 1), **FEW, **settings})
    task = ChanceTask()
    policy = Policy(config.model, 0, baseline=True, reference=True)
    trainer = Trainer(config, policy, task)
    first = trainer.step(1)
    saved = capture(policy, trainer, 1, config)
    other = policy.scratch()
    other.of("baseline")  # also from a state with a part in place
    again = Trainer(config, other, task)
    load_weights(other, saved)
    load_optimizers(again, saved)
    second = again.step(2)
    other.merged()
    where = "cpu" if config.model.offload else STRICT.type
    for part in ("base", "baseline"):
        moments = again.optimizers[part].state.values()
        assert {state["exp_avg"].device.type for state in moments} == {where}, part
    parts = (other.base, other.baseline_base, other.coordinator)
    weights = {
        f"{i}/{n}": p.detach().cpu() for i, part in enumerate(parts) for n, p in part.items()
    }
    metrics = {f"{r.step}/{n}": v for r in (first, second) for n, v in r.metrics.items()}
    return copy_of(weights), {n: v for n, v in metrics.items() if "/seconds/" not in n}


def main(model: Path, names: Sequence[str]) -> None:
    """Compare runs with and without offloading. Raises where devices mix or a bit differs."""
    placement.put = policies.put = put  # type: ignore[assignment, attr-defined]
    policies.resolve_device = lambda name: STRICT  # type: ignore[attr-defined, assignment]
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) goes by way of the CPU
    torch.__future__.set_swap_module_params_on_conversion(True)
    for settings in (SETTINGS[name] for name in names):
        with Strict():
            plain, measured = two_steps(model, **settings)
            waiting, also = two_steps(model, offload=EVERYTHING, **settings)
        assert same_bits(plain, waiting), settings
        assert repr(measured) == repr(also), settings
        assert measured["1/grad_norm"] > 0 and measured["2/grad_norm"] > 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))

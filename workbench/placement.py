"""How a forward pass is computed, and which part of a policy waits on the CPU.

`ForwardSettings` puts bf16 autocast and gradient checkpointing around a model's forward passes by
hooks, so whoever calls the model need not know. The weights stay float32: small updates vanish in
bf16. Checkpointed layers are told to train only where gradients are recorded: generation needs its
cache, and dropout stays off. [ours]
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from time import perf_counter
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from workbench.config import ConfigError, ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ForwardSettings:
    """Autocast and gradient checkpointing of one model, as its config says."""

    def __init__(self, model: PreTrainedModel, config: ModelConfig, device: torch.device) -> None:
        """Hook into `model`. Raises ConfigError where it cannot checkpoint."""
        self._dtype = DTYPES[config.compute_dtype]
        self._device_type = device.type
        self._entered: Any = None
        self._layers: list[nn.Module] = []
        if config.gradient_checkpointing:
            self._layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
            if not self._layers or not model.supports_gradient_checkpointing:
                raise ConfigError(
                    f"model.gradient_checkpointing: {config.path!r} has no layers that can do it"
                )
            # torch.autograd.grad, which all passes use, wants the kind that is not reentrant
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the newest transformers has another name for it
                model.gradient_checkpointing_enable({"use_reentrant": False})
        if self._layers or self._dtype != torch.float32:
            model.register_forward_pre_hook(self._before)
            model.register_forward_hook(self._after, always_call=True)

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for layer in self._layers:
            layer.training = torch.is_grad_enabled()  # of the layer alone: dropout stays off
        if self._dtype != torch.float32:
            self._entered = self.autocast()
            self._entered.__enter__()

    def autocast(self) -> AbstractContextManager[object]:
        """What a pass is computed under."""
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device_type, dtype=self._dtype)

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._entered is not None:
            self._entered.__exit__(None, None, None)
            self._entered = None


@contextmanager
def casts_kept(model: nn.Module) -> Iterator[None]:
    """Inside, autocast casts each weight once, not once a forward pass; weights must not change.

    For generation, where a pass is one token. Same numbers; the casts are what the memory plan
    calls weights in bf16. Inside, gradients must not be recorded: torch would not find them.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    hooks = [getattr(hook, "__self__", None) for hook in inner._forward_pre_hooks.values()]
    with ExitStack() as entered:
        for settings in hooks:
            if isinstance(settings, ForwardSettings):
                entered.enter_context(settings.autocast())
        yield


class Offloading:
    """Parts of a policy that wait on the CPU until they are asked for, one at a time."""

    def __init__(self, parts: dict[str, nn.Module], device: torch.device) -> None:
        """parts: those that may wait, by name; they are sent to wait."""
        self.parts, self.device = parts, device
        self.bring("")

    def bring(self, name: str) -> None:
        """Put the part of that name in place, if there is one; before that the others go to wait.

        The device never holds two of them.
        """
        for part, module in self.parts.items():
            if part != name:
                _move(module, torch.device("cpu"))
        if name in self.parts:
            _move(self.parts[name], self.device)


def time_when_done(device: torch.device) -> float:
    """`perf_counter` in seconds, once the device has done what it was given: a GPU works behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def put(parameter: nn.Parameter, device: torch.device) -> None:
    """Move a parameter's numbers; it stays the same object."""
    if parameter.device != device:
        parameter.data = parameter.data.to(device)


def _move(module: nn.Module, device: torch.device) -> None:
    """Move the weights, which stay the same Parameter objects; LoRA's, shared, stay in place."""
    for name, parameter in module.named_parameters():
        if ".lora_" not in name:
            put(parameter, device)
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            owner._buffers[name] = buffer.to(device)

"""The three sets of weights of a BRIDGE run, and the frozen reference.

θ   `base`            every weight of the language model, trained in full
w   `coordinator`     a LoRA on the linear layers, shared by the joint policy and the baseline
θ̂   `baseline_base`   a second copy of θ, trained by RL only, under the same w
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import Parameter
from transformers import GenerationConfig, PreTrainedModel

from workbench.config import ConfigError, ModelConfig
from workbench.models import (
    encode_completion,
    encode_prompt,
    end_tokens,
    load_model,
    resolve_device,
    token_pieces,
)
from workbench.placement import DTYPES, ForwardSettings, Offloading, put

PolicyName = Literal["joint", "baseline", "reference"]
_PART = {"joint": "base", "baseline": "baseline", "reference": "reference"}
"""What `offload` calls the weights of each policy."""

_LAYERS = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")


def layer_of(parameter: str) -> str:
    """The layer a parameter belongs to: 'embed', 'layers.N', 'norm', 'lm_head' or 'other'."""
    if match := _LAYERS.search(parameter):
        return f"layers.{match.group(1)}"
    if "lm_head" in parameter:
        return "lm_head"
    if "embed" in parameter or ".wte." in parameter or ".wpe." in parameter:
        return "embed"
    if "norm" in parameter or "ln_f" in parameter:
        return "norm"
    return "other"


def _plain_name(name: str) -> str:
    """A peft parameter's name as in the plain model; LoRA: '….q_proj.lora_A'."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return re.sub(r"\.(lora_[AB])\.default\.weight$", r".\1", name)


def _split(model: PeftModel) -> tuple[dict[str, Parameter], dict[str, Parameter]]:
    """(base, coordinator) parameters of a peft model, by plain name."""
    named = {_plain_name(name): p for name, p in model.named_parameters()}
    lora = {n: p for n, p in named.items() if n.endswith((".lora_A", ".lora_B"))}
    return {n: p for n, p in named.items() if n not in lora}, lora


class Policy:
    """The joint policy θ+w, the RL-only baseline θ̂+w and the frozen starting policy."""

    def __init__(self, config: ModelConfig, seed: int, *, baseline: bool, reference: bool) -> None:
        """Load the model; make θ̂ and the reference where asked for.

        Raises ConfigError where the model cannot be loaded.
        """
        self.config = config
        self.device = resolve_device(config.device)
        # made on the CPU, for what waits there must never have been on the device
        model, self.tokenizer = load_model(config.model_copy(update={"device": "cpu"}))
        model.eval()  # no dropout anywhere: a step is a function of its inputs
        self.end_ids = end_tokens(model, self.tokenizer)
        self._generation_config = model.generation_config
        model.generation_config = GenerationConfig()  # no penalties: rollouts follow the logits
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.model_config = model.config
        self.reference: PreTrainedModel | None = None
        if reference and config.reference == "start":
            self.reference = copy.deepcopy(model).requires_grad_(False)
            self._place("reference", self.reference.to(DTYPES[config.reference_dtype]))
            ForwardSettings(self.reference, config, self.device)
        twin = copy.deepcopy(model) if baseline else None
        for trained in (model, twin):
            if trained is not None:
                ForwardSettings(trained, config, self.device)
        self.model = self._wrap(model, seed)
        self._place("base", self.model)
        self.base, self.coordinator = _split(self.model)
        self.baseline: PeftModel | None = None
        self.baseline_base: dict[str, Parameter] = {}
        if twin is not None:
            self.baseline = self._wrap(twin, seed)
            self._place("baseline", self.baseline)
            self._share_coordinator()
            self.baseline_base, _ = _split(self.baseline)
        for w in self.coordinator.values():
            put(w, self.device)
        held = {"joint": self.model, "baseline": self.baseline, "reference": self.reference}
        self._offloading = Offloading(
            {n: m for n, m in held.items() if m is not None and _PART[n] in config.offload},
            self.device,
        )
        cpu = torch.device("cpu")
        self.keep: tuple[torch.device | None, torch.device | None] = (
            cpu if "gradient_sum" in config.offload else None,
            cpu if "gradients" in config.offload else None,
        )
        """Where gradients are kept, see training.gradients.Keep."""

    def _place(self, part: str, module: nn.Module) -> None:
        """Put a part that never waits on the device."""
        if part not in self.config.offload:
            module.to(self.device)

    def _wrap(self, model: PreTrainedModel, seed: int) -> PeftModel:
        lora = LoraConfig(
            r=self.config.lora_rank,
            lora_alpha=self.config.lora_alpha,
            lora_dropout=0.0,
            target_modules=list(self.config.lora_targets) or "all-linear",
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.config.path,
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fan_in_fan_out of GPT-2's Conv1D
            torch.manual_seed(seed)  # peft draws A from the global state only
            try:
                wrapped = get_peft_model(model, lora)
            except ValueError as error:
                if not self.config.lora_targets:
                    raise
                reason = " ".join(str(error).split())[:120]
                raise ConfigError(f"model.lora_targets: {reason}") from None
        wrapped.requires_grad_(True)  # get_peft_model freezes the base; θ is trained in full
        return wrapped.eval()  # type: ignore[return-value]

    def _share_coordinator(self) -> None:
        """Make the baseline's LoRA weights the joint policy's own Parameter objects."""
        assert self.baseline is not None
        twins = dict(self.baseline.named_modules())
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                twin = twins[name]
                assert isinstance(twin, LoraLayer)
                twin.lora_A["default"].weight = module.lora_A["default"].weight  # type: ignore[index]
                twin.lora_B["default"].weight = module.lora_B["default"].weight  # type: ignore[index]

    def of(self, name: PolicyName) -> nn.Module:
        """The module of a policy, brought to the device if it was offloaded, until the next one.

        Ask for it just before its forward passes: another one brought sends it back. Raises
        ValueError where this run does not hold it.
        """
        module = {"joint": self.model, "baseline": self.baseline, "reference": self.reference}[name]
        if module is None:
            raise ValueError(f"policy: this run keeps no {name} policy")
        self._offloading.bring(name)
        return module

    def wait(self) -> None:
        """Send all offloaded parts to wait, where they are updated, saved and restored."""
        self._offloading.bring("")

    def before_forward(self, check: Callable[[], None]) -> None:
        """Have `check` called before each forward pass of any policy, also a scratch's.

        It may raise to break off whatever the pass belongs to.
        """
        inner = [m.get_base_model() for m in (self.model, self.baseline) if m is not None]
        for module in (*inner, self.reference):
            if module is not None:
                module.register_forward_pre_hook(lambda module, inputs: check())

    def lora_layers(self) -> Iterator[tuple[str, LoraLayer]]:
        """Each adapted module of the joint policy, by plain name."""
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                yield name.removeprefix("base_model.model."), module

    @property
    def coordinator_layers(self) -> list[str]:
        """The layers (`layer_of`) that have a coordinator, in the network's order."""
        return list(dict.fromkeys(layer_of(name) for name, _ in self.lora_layers()))

    @property
    def coordinator_is_zero(self) -> bool:
        """Whether w changes nothing, as at its start: every B is 0."""
        return not any(
            bool(w.any()) for name, w in self.coordinator.items() if name.endswith("lora_B")
        )

    @contextmanager
    def coordinator_scale(
        self, scale: float, only: Collection[str] | None = None
    ) -> Iterator[None]:
        """Multiply the coordinator's effect by `scale` inside the block: 1 as trained, 0 off.

        only: the layers concerned, as in `coordinator_layers`; None: all. Blocks inside blocks
        multiply. Unlike peft's `disable_adapter` this leaves requires_grad alone.
        """
        layers = [
            module
            for model in (self.model, self.baseline)
            if model is not None
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer) and (only is None or layer_of(name) in only)
        ]
        before = [layer.scaling["default"] for layer in layers]
        for layer, value in zip(layers, before, strict=True):
            layer.scaling["default"] = value * scale
        try:
            yield
        finally:
            for layer, value in zip(layers, before, strict=True):
                layer.scaling["default"] = value

    def encode_prompt(self, text: str) -> list[int]:
        """What the model sees of a prompt: chat template or plain text, with BOS as usual."""
        return encode_prompt(self.tokenizer, text, self.config)

    def encode_completion(self, text: str) -> list[int]:
        """A completion's tokens, the end-of-text token last."""
        return encode_completion(self.tokenizer, text)

    def pieces(self, token_ids: list[int]) -> list[str]:
        """What to show for each token, so that characters made of several tokens survive.

        Same length as token_ids; such a character stands at its last token, '' at the others.
        """
        return token_pieces(self.tokenizer, token_ids)

    def merged(self) -> PreTrainedModel:
        """A plain model whose weights are θ + (alpha/r)·B·A; the policy itself is unchanged.

        It is where θ waits.
        """
        self.wait()
        copied = copy.deepcopy(self.model).to(next(iter(self.base.values())).device)
        plain: PreTrainedModel = copied.merge_and_unload()  # type: ignore[operator]
        plain.generation_config = self._generation_config
        return plain

    def adapter_files(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """The coordinator as a PEFT adapter folder: (adapter_model tensors, adapter_config)."""
        tensors = {
            f"base_model.model.{name}.weight": _numpy(p) for name, p in self.coordinator.items()
        }
        config = self.model.peft_config["default"].to_dict()
        config["target_modules"] = sorted(config["target_modules"])
        config["inference_mode"] = True
        return tensors, {
            k: sorted(v) if isinstance(v, set) else v for k, v in config.items() if v is not None
        }

    def base_arrays(self, which: Literal["base", "baseline"]) -> dict[str, np.ndarray]:
        """θ or θ̂ by plain parameter name, copied."""
        parameters = self.base if which == "base" else self.baseline_base
        return {name: _numpy(p) for name, p in parameters.items()}

    def scratch(self) -> Policy:
        """A copy with θ, θ̂ and w of its own, to load other weights into; the rest is shared."""
        self.wait()  # what is offloaded is copied on the CPU
        shared = (self.reference, self.tokenizer, self.config)
        return copy.deepcopy(self, {id(part): part for part in shared})

    @torch.no_grad()
    def load_arrays(
        self,
        base: dict[str, np.ndarray],
        baseline: dict[str, np.ndarray],
        coordinator: dict[str, np.ndarray],
    ) -> None:
        """Set θ, θ̂ and w, from `base_arrays` and `adapter_files`."""
        self.wait()
        w = {
            name.removeprefix("base_model.model.").removesuffix(".weight"): array
            for name, array in coordinator.items()
        }
        for parameters, arrays in (
            (self.base, base),
            (self.baseline_base, baseline),
            (self.coordinator, w),
        ):
            assert parameters.keys() == arrays.keys(), "the snapshot is of another model"
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(arrays[name]))


def _numpy(parameter: Parameter) -> np.ndarray:
    return parameter.detach().cpu().numpy().copy()

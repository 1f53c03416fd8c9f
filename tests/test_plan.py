"""The memory plan against what the pocket model and a tiny one really keep."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.training.tiny import ChanceTask, save_tiny_llama, small_config
from workbench.__main__ import main
from workbench.config import ConfigError, RunConfig
from workbench.engine import new_policy
from workbench.plan import SHAPES, _shape, count_parameters, kv_bytes, layer_bytes, memory_plan
from workbench.policy import Policy
from workbench.sampling import completion_logits, pack, token_logprobs
from workbench.training.trainer import Trainer


def sizes(config: RunConfig) -> dict[str, int]:
    return {item.name: item.bytes for item in memory_plan(config).items}


def in_memory(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("method", ["bridge", "grpo", "sft", "naive_mix"])
def test_weights_and_moments_are_counted_exactly(tmp_path: Path, method: str) -> None:
    config = small_config(save_tiny_llama(tmp_path), method=method)
    policy = new_policy(config)
    trainer = Trainer(config, policy, ChanceTask())
    trainer.step(1)
    planned = sizes(config)
    held = {
        "θ": policy.base.values(),
        "θ̂": policy.baseline_base.values(),
        "w": policy.coordinator.values(),
        "reference": policy.reference.parameters() if policy.reference else [],
    }
    for name, parameters in held.items():
        assert planned.get(name, 0) == in_memory(parameters), name
    names = {"base": "Adam of θ", "baseline": "Adam of θ̂", "coordinator": "Adam of w"}
    for part, name in names.items():
        optimizer = trainer.optimizers.get(part)
        moments = [
            state[key]
            for state in (optimizer.state.values() if optimizer else [])
            for key in ("exp_avg", "exp_avg_sq")
        ]
        assert planned.get(name, 0) == in_memory(moments), name


def kept_for_backward(config: RunConfig, n: int, length: int) -> int:
    """Bytes that a pass over n texts keeps, weights and one copy of the logits left out."""
    policy = Policy(config.model, 0, baseline=False, reference=False)
    half = length // 2
    batch = pack([[5] * (length - half)] * n, [[8] * half] * n, policy.pad_id)
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logprobs(completion_logits(policy.model, batch), batch)
    total = sum(t.untyped_storage().nbytes() for t in kept.values())
    n_base, n_lora = count_parameters(_shape(config.model.path), config)
    casts = 2 * (n_base + n_lora) if config.model.compute_dtype == "bfloat16" else 0
    return total - 4 * n * half * policy.model_config.vocab_size - casts


@pytest.mark.parametrize(
    "settings",
    [{}, {"compute_dtype": "bfloat16"}, {"gradient_checkpointing": True}, {"lora_rank": 64}],
)
def test_activations_are_within_a_fifth_of_what_is_kept(settings: dict[str, Any]) -> None:
    n, length = 8, 60
    config = RunConfig().with_changes(micro_batch_tokens=n * length, **settings)
    planned = sizes(config)["activations"]
    if config.model.gradient_checkpointing:  # the plan has room for one layer computed again
        planned -= n * length * layer_bytes(_shape("pocket"), config, 4)
    assert planned == pytest.approx(kept_for_backward(config, n, length), rel=0.2)


def test_the_cache_of_generation_is_counted_exactly(tmp_path: Path) -> None:
    for path in ("pocket", str(save_tiny_llama(tmp_path))):  # as many key heads; fewer
        policy = Policy(
            RunConfig().with_changes(path=path).model, 0, baseline=False, reference=False
        )
        with torch.no_grad():
            cache = policy.model(torch.tensor([[5, 6, 7, 8]] * 3), use_cache=True).past_key_values
        assert isinstance(cache, DynamicCache)
        held = in_memory(t for layer in cache.layers for t in (layer.keys, layer.values))
        assert kv_bytes(_shape(path), 3, 4, 4) == held


@pytest.mark.parametrize(
    ("path", "n_parameters"),
    [
        ("smollm2", 134_515_008),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
    ],
)
def test_known_shapes_have_the_published_number_of_parameters(path: str, n_parameters: int) -> None:
    assert path in SHAPES
    assert memory_plan(RunConfig().with_changes(path=path)).n_parameters == n_parameters


@pytest.mark.parametrize("name", ["qwen2.5-3b", "llama-3.2-3b-instruct", "qwen3-8b-base"])
def test_the_papers_presets(name: str) -> None:
    config = RunConfig.preset(name)
    t = config.training
    assert (t.prompts_per_step, t.group_size, t.rl_weight) == (64, 5, 0.5)
    assert t.base_lr == t.coordinator_lr == 5e-7
    assert (config.model.lora_rank, config.model.lora_alpha) == (16, 16.0)
    assert config.sampling.max_new_tokens == 3000
    plan = memory_plan(config)
    where = {item.name: item.where for item in plan.items}
    assert where["θ̂"] == where["Adam of θ̂"] == where["reference"] == "cpu"
    assert where["θ"] == "device"
    everywhere = memory_plan(config.with_changes(offload=[]))
    assert everywhere.cpu_bytes == 0
    assert everywhere.device_bytes > plan.device_bytes


def test_the_command_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "pocket", "--method", "sft"]) == 0
    said = capsys.readouterr().out
    assert "673,024 parameters" in said and "needed: fits" in said and "KV cache" not in said
    with pytest.raises(ConfigError, match="the shape of 'no/such-model' is not known here"):
        memory_plan(RunConfig().with_changes(path="no/such-model"))

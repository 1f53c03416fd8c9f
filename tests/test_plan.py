"""The memory plan against what the pocket model and a tiny one really keep."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.training.tiny import ChanceTask, save_tiny_llama, small_config
from workbench.__main__ import main
from workbench.config import ConfigError, RunConfig
from workbench.engine import new_policy
from workbench.plan import (
    PROMPT_TOKENS,
    SHAPES,
    Item,
    MemoryPlan,
    _shape,
    count_parameters,
    kv_bytes,
    layer_bytes,
    memory_plan,
)
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
    n_base, n_lora, _ = count_parameters(_shape(config.model.path), config)
    casts = 2 * (n_base + n_lora) if config.model.compute_dtype == "bfloat16" else 0
    return total - 4 * n * half * policy.model_config.vocab_size - casts


@pytest.mark.parametrize(
    "settings",
    [{}, {"compute_dtype": "bfloat16"}, {"gradient_checkpointing": True}, {"lora_rank": 64}],
)
def test_activations_are_within_a_fifth_of_what_is_kept(settings: dict[str, Any]) -> None:
    n, length = 8, 60
    config = RunConfig().with_changes(device="cpu", micro_batch_tokens=n * length, **settings)
    planned = sizes(config)["activations"]
    if config.model.gradient_checkpointing:  # the plan has room for one layer computed again
        planned -= n * length * layer_bytes(_shape("pocket"), config, 4)
    assert planned == pytest.approx(kept_for_backward(config, n, length), rel=0.2)


def test_the_cache_of_generation_is_counted_exactly(tmp_path: Path) -> None:
    for path in ("pocket", str(save_tiny_llama(tmp_path))):  # as many key heads; fewer
        policy = Policy(
            RunConfig().with_changes(path=path, device="cpu").model,
            0,
            baseline=False,
            reference=False,
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
    assert plan.device_bytes <= 0.9 * 80e9
    waiting = {item.name for item in plan.items if item.where == "cpu" and not item.phases}
    assert {"θ", "θ̂", "reference", "Adam of θ", "Adam of θ̂"} < waiting
    everywhere = memory_plan(config.with_changes(offload=[]))
    assert everywhere.device_bytes > 80e9
    assert {i.name for i in everywhere.items if i.where == "cpu"} == {"a snapshot being written"}


@pytest.mark.parametrize(
    "name", ["smollm2", "qwen2.5-3b", "llama-3.2-3b-instruct", "qwen3-8b-base"]
)
def test_the_docs_show_the_plan_of_each_preset_as_it_is(name: str) -> None:
    text = Path("docs/memory.md").read_text(encoding="utf-8")
    assert memory_plan(RunConfig.preset(name)).table() in text, f"plan --preset {name}"


def test_the_most_at_once_is_what_lasts_and_the_largest_phase() -> None:
    items = (
        Item("always", 10, "device", ""),
        Item("while sampling", 5, "device", "", ("sampling",)),
        Item("while learning", 3, "device", "", ("gradients",)),
        Item("and in the update", 4, "device", "", ("gradients", "update")),
        Item("elsewhere", 100, "cpu", "", ("update",)),
    )
    plan = MemoryPlan("x", 1, 1, items)
    assert (plan.device_bytes, plan.cpu_bytes) == (10 + 3 + 4, 100)


def test_each_part_that_waits_takes_less_of_the_device() -> None:
    config = RunConfig.preset("qwen2.5-3b", sampling_batch=1)
    parts = ("reference", "baseline", "base", "gradients", "gradient_sum")
    needed = [
        memory_plan(config.with_changes(offload=parts[:n])).device_bytes
        for n in range(len(parts) + 1)
    ]
    n = memory_plan(config).n_parameters
    # the first needs a place to be brought to; θ takes its optimizer along and needs no other place
    less = [before - after for before, after in zip(needed, needed[1:], strict=False)]
    assert less[0] == 0
    assert less[1] == pytest.approx(12 * n - 2 * n)
    assert less[2] == pytest.approx(12 * n)
    assert less[3] > 7 * n and less[4] == pytest.approx(4 * n, rel=0.02)


def test_sampling_has_room_for_the_longest_evaluation() -> None:
    chosen = {"set": "hard", "problems": 40, "max_new_tokens": 700}
    config = RunConfig().with_changes(evaluation_sets=[chosen], method="sft", evaluate_every=0)
    (cache,) = [i for i in memory_plan(config).items if i.name == "sampling: KV cache"]
    assert cache.how.endswith(f"S=40, T={PROMPT_TOKENS + 700}")


def test_the_command_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "pocket", "--method", "sft"]) == 0
    said = capsys.readouterr().out
    assert "673,024 parameters" in said and "needed: fits" in said and "gradients" in said
    assert main(["plan", "--preset", "qwen2.5-3b", "--gpu", "40"]) == 0
    assert "a GPU of 40 GB: 37.25 GiB" in capsys.readouterr().out
    for size in ("0", "-1", "nan", "inf", "80GB"):
        with pytest.raises(SystemExit):
            main(["plan", "--preset", "pocket", "--gpu", size])
        assert size in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the shape of 'no/such/model' is not known here"):
        memory_plan(RunConfig().with_changes(path="no/such/model"))


def test_the_doctor_holds_the_plan_against_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[model]\ndevice = "cpu"\n', encoding="utf-8")
    needed = sum(memory_plan(RunConfig.load(file)).most(where) for where in ("device", "cpu"))
    for there, code, said in (
        (2 * needed, 0, "needed: fits\n"),
        (int(1.05 * needed), 1, "does not fit with a tenth left"),
        (needed - 4096, 2, "needed: does not fit\n"),
    ):
        pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": there}
        monkeypatch.setattr("workbench.cli.plan.os.sysconf", pages.__getitem__)
        assert main(["doctor", str(file)]) == code
        out = capsys.readouterr().out
        assert said in out and ("change: " in out) == (code > 0)
    assert main(["doctor", str(file), "--json"]) == 2
    (memory,) = json.loads(capsys.readouterr().out)["memories"]
    assert memory["needed"] == needed
    assert main(["doctor", "--preset", "qwen3-8b-base", "--json"]) == 2
    capsys.readouterr()
    assert main(["doctor"]) == 2 and main(["doctor", "x", "--preset", "pocket"]) == 2
    assert capsys.readouterr().err.count("needs a PATH or a --preset") == 2

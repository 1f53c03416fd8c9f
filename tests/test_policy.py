"""The three sets of weights: which objects they are, and that each way to use them agrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.training.tiny import (
    copy_of,
    disturb,
    make_policy,
    same_bits,
    save_tiny_llama,
    small_config,
)
from workbench.pocket.make import make_tokenizer
from workbench.policy import Policy, layer_of

IDS = torch.tensor([[1, 40, 41, 50, 60, 7, 8], [1, 9, 100, 200, 30, 2, 5]])


def save_tiny_gpt2(folder: Path) -> Path:
    """GPT-2: Conv1D layers, learned positions, biases."""
    config = GPT2Config(vocab_size=259, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {
    "tied": lambda folder: save_tiny_llama(folder, tied=True),
    "untied": lambda folder: save_tiny_llama(folder, tied=False),
    "gpt2": save_tiny_gpt2,
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def policy(folder: Path) -> Policy:
    """Moved away from the start, so that θ, θ̂, the reference and w all differ."""
    policy = make_policy(small_config(folder))
    disturb(policy.base, 0.05, seed=1)
    disturb(policy.baseline_base, 0.05, seed=2)
    disturb(policy.coordinator, 0.2, seed=3)
    return policy


@torch.no_grad()
def logits(module: nn.Module) -> Tensor:
    return module(input_ids=IDS).logits


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_at_the_start_all_three_policies_are_the_checkpoint(folder: Path) -> None:
    policy = make_policy(small_config(folder))
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    for name in ("joint", "baseline", "reference"):
        assert torch.equal(logits(policy.of(name)), logits(plain)), name  # type: ignore[arg-type]
    assert same_bits(policy.base, dict(plain.named_parameters()))
    assert same_bits(policy.baseline_base, policy.base)
    for name, value in policy.coordinator.items():
        assert bool(value.any()) == name.endswith("lora_A"), name  # A random, B zero


def test_a_coordinator_is_zero_at_its_start_only(folder: Path, policy: Policy) -> None:
    assert make_policy(small_config(folder)).coordinator_is_zero
    assert not policy.coordinator_is_zero


def test_the_coordinators_start_depends_on_the_seed_alone(folder: Path) -> None:
    first, again, other = (make_policy(small_config(folder, seed=s)) for s in (0, 0, 1))
    assert same_bits(first.coordinator, again.coordinator)
    assert not same_bits(first.coordinator, other.coordinator)
    with_fewer_parts = make_policy(small_config(folder), baseline=False, reference=False)
    assert same_bits(first.coordinator, with_fewer_parts.coordinator)


def test_both_parts_train_and_the_reference_does_not(policy: Policy) -> None:
    for parameters in (policy.base, policy.baseline_base, policy.coordinator):
        assert parameters
        assert all(p.requires_grad and p.dtype == torch.float32 for p in parameters.values())
    assert policy.reference is not None
    assert not any(p.requires_grad for p in policy.reference.parameters())
    owned = {id(p) for p in policy.model.parameters()}
    assert owned == {id(p) for p in (*policy.base.values(), *policy.coordinator.values())}


def test_names_are_the_plain_models(folder: Path, policy: Policy) -> None:
    plain = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    assert policy.base.keys() == policy.baseline_base.keys() == plain.keys()
    for name in policy.coordinator:
        assert name.endswith((".lora_A", ".lora_B"))
        assert f"{name.rpartition('.')[0]}.weight" in plain


def test_every_linear_layer_but_the_output_has_a_coordinator(folder: Path, policy: Policy) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder)
    matrices = {
        name
        for name, module in plain.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head"
    }
    assert {name for name, _ in policy.lora_layers()} == matrices
    assert policy.coordinator.keys() == {f"{m}.lora_{x}" for m in matrices for x in "AB"}


def test_the_baseline_shares_the_coordinator_and_nothing_else(policy: Policy) -> None:
    assert policy.baseline is not None
    theirs = {id(p) for p in policy.baseline.parameters()}
    assert {id(p) for p in policy.coordinator.values()} <= theirs
    assert {id(p) for p in policy.baseline_base.values()} <= theirs
    assert not theirs & {id(p) for p in policy.base.values()}
    storages = {p.data_ptr() for p in policy.base.values()}
    assert not storages & {p.data_ptr() for p in policy.baseline_base.values()}
    before = logits(policy.baseline)
    disturb(policy.coordinator, 0.1, seed=9)
    assert not close(logits(policy.baseline), before)
    before = logits(policy.baseline)
    disturb(policy.base, 0.1, seed=9)
    assert torch.equal(logits(policy.baseline), before)


def test_a_loss_reaches_base_and_coordinator_together(policy: Policy) -> None:
    """In the reference, peft's usual freezing of the base would leave its gradient out."""
    for module, base in (
        (policy.of("joint"), policy.base),
        (policy.of("baseline"), policy.baseline_base),
    ):
        loss = module(input_ids=IDS, labels=IDS).loss
        parameters = [*base.values(), *policy.coordinator.values()]
        for gradient in torch.autograd.grad(loss, parameters):
            assert gradient.abs().sum() > 0


def without_coordinator(folder: Path, weights: dict[str, Tensor]) -> nn.Module:
    """The plain model with given base weights."""
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    plain.load_state_dict({n: p.detach() for n, p in weights.items()}, strict=False)
    plain.tie_weights()
    return plain


def test_scale_0_is_the_plain_model_and_scale_1_the_joint_policy(
    folder: Path, policy: Policy
) -> None:
    joint, baseline = logits(policy.of("joint")), logits(policy.of("baseline"))
    with policy.coordinator_scale(0.0):
        assert close(logits(policy.of("joint")), logits(without_coordinator(folder, policy.base)))
        expected = logits(without_coordinator(folder, policy.baseline_base))
        assert close(logits(policy.of("baseline")), expected)
        assert not close(logits(policy.of("joint")), joint)
        assert all(p.requires_grad for p in policy.coordinator.values())
    with policy.coordinator_scale(1.0):
        assert torch.equal(logits(policy.of("joint")), joint)
    assert torch.equal(logits(policy.of("joint")), joint)
    assert torch.equal(logits(policy.of("baseline")), baseline)


@pytest.mark.parametrize("scale", [-1.0, 0.3, 2.5])
def test_scale_multiplies_the_change_of_the_weights(policy: Policy, scale: float) -> None:
    with policy.coordinator_scale(scale):
        scaled = logits(policy.of("joint"))
    for name, parameter in policy.coordinator.items():
        if name.endswith("lora_B"):
            parameter.data *= scale  # ΔW = (alpha/r)·B·A is linear in B
    assert close(logits(policy.of("joint")), scaled)


def test_a_single_layer_is_scaled_in_both_policies(policy: Policy) -> None:
    assert policy.coordinator_layers == ["layers.0", "layers.1"]
    with policy.coordinator_scale(0.5, ["layers.1"]):
        scaled = [logits(policy.of(name)) for name in ("joint", "baseline")]  # type: ignore[arg-type]
    before = logits(policy.of("joint"))
    for name, parameter in policy.coordinator.items():
        if name.endswith("lora_B") and layer_of(name) == "layers.1":
            parameter.data *= 0.5
    assert close(logits(policy.of("joint")), scaled[0])
    assert close(logits(policy.of("baseline")), scaled[1])
    assert not close(before, scaled[0])


def test_scale_is_put_back_after_an_error_and_nests(policy: Policy) -> None:
    before = logits(policy.of("joint"))
    with pytest.raises(ZeroDivisionError), policy.coordinator_scale(0.5):
        raise ZeroDivisionError
    assert torch.equal(logits(policy.of("joint")), before)
    with policy.coordinator_scale(0.5), policy.coordinator_scale(2.0):
        assert torch.equal(logits(policy.of("joint")), before)


def test_merged_is_a_plain_model_with_the_joint_policys_logits(policy: Policy) -> None:
    joint = logits(policy.of("joint"))
    weights = copy_of(policy.base) | copy_of(policy.coordinator)
    merged = policy.merged()
    assert not isinstance(merged, PeftModel)
    assert close(logits(merged), joint)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    merged.get_input_embeddings().weight.data.zero_()
    assert same_bits(weights, copy_of(policy.base) | copy_of(policy.coordinator))
    assert torch.equal(logits(policy.of("joint")), joint)


def test_merged_weights_are_the_formulas(policy: Policy) -> None:
    merged = dict(policy.merged().named_parameters())
    scaling = policy.config.lora_alpha / policy.config.lora_rank
    for module, layer in policy.lora_layers():
        w = policy.coordinator
        delta = scaling * w[f"{module}.lora_B"] @ w[f"{module}.lora_A"]
        if type(layer.get_base_layer()).__name__ == "Conv1D":
            delta = delta.T
        expected = policy.base[f"{module}.weight"] + delta
        assert torch.allclose(merged[f"{module}.weight"], expected, atol=1e-6), module


def test_peft_loads_the_adapter_folder(folder: Path, policy: Policy, tmp_path: Path) -> None:
    arrays, config = policy.adapter_files()
    save_file(arrays, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "adapter_config.json").write_text(json.dumps(config, default=str))
    base = without_coordinator(folder, policy.base)
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()  # type: ignore[arg-type]
    assert close(logits(loaded), logits(policy.of("joint")))


def test_arrays_round_trip_into_another_policy(folder: Path, policy: Policy) -> None:
    other = make_policy(small_config(folder, seed=5))
    held = [id(p) for p in (*other.base.values(), *other.coordinator.values())]
    adapter, _ = policy.adapter_files()
    other.load_arrays(policy.base_arrays("base"), policy.base_arrays("baseline"), adapter)
    assert same_bits(other.base, policy.base)
    assert same_bits(other.baseline_base, policy.baseline_base)
    assert same_bits(other.coordinator, policy.coordinator)
    assert held == [id(p) for p in (*other.base.values(), *other.coordinator.values())]
    assert torch.equal(logits(other.of("joint")), logits(policy.of("joint")))
    assert torch.equal(logits(other.of("baseline")), logits(policy.of("baseline")))


def test_arrays_are_copies(policy: Policy) -> None:
    arrays = policy.base_arrays("base")
    name = next(iter(arrays))
    before = arrays[name].copy()
    disturb(policy.base, 1.0, seed=4)
    assert np.array_equal(arrays[name], before)


def test_a_policy_that_is_not_kept_is_refused(folder: Path) -> None:
    policy = make_policy(small_config(folder), baseline=False, reference=False)
    for name in ("baseline", "reference"):
        with pytest.raises(ValueError, match=f"keeps no {name} policy"):
            policy.of(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["12+7=19\n#19", "drei ³, 三 und 🙂", "🙂🙂", "a🙂", "é", "", "👩‍👩‍👧 – ‮x", "\x00\t\u00a0"],
)
def test_pieces_join_to_the_text_and_stand_at_a_characters_last_token(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    policy = make_policy(small_config(save_tiny_llama(tmp_path_factory.mktemp("t"))))
    ids = policy.encode_completion(text)[:-1]
    assert len(ids) == len(text.encode())  # a token a byte
    pieces = policy.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    at = 0
    for character in text:
        at += len(character.encode())
        assert pieces[at - 1] == character


def test_pieces_of_broken_utf8_have_one_entry_a_token(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    policy = make_policy(small_config(save_tiny_llama(tmp_path_factory.mktemp("t"))))
    smile = policy.encode_completion("🙂")[:-1]
    plain = policy.encode_completion("ok")[:-1]
    for ids in (smile[:2], smile[1:] * 5, [*smile[:3], *plain], [*plain, smile[0]]):
        pieces = policy.pieces(ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces).replace("\ufffd", "") == ("ok" if plain[0] in ids else "")


def test_completions_end_with_the_end_token_and_prompts_begin_with_bos(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    policy = make_policy(small_config(save_tiny_llama(tmp_path_factory.mktemp("t"))))
    tokenizer = make_tokenizer()
    assert policy.encode_prompt("1+2=?") == [1, *tokenizer.encode("1+2=?\n")[1:]]
    assert policy.encode_completion("3") == [*tokenizer.encode("3")[1:], 2]
    assert policy.end_ids == [2]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "layers.0"),
        ("model.layers.11.mlp.up_proj.lora_A", "layers.11"),
        ("transformer.h.3.attn.c_attn.weight", "layers.3"),
        ("gpt_neox.layers.2.attention.dense.bias", "layers.2"),
        ("model.embed_tokens.weight", "embed"),
        ("transformer.wpe.weight", "embed"),
        ("model.norm.weight", "norm"),
        ("transformer.ln_f.bias", "norm"),
        ("gpt_neox.final_layer_norm.weight", "norm"),
        ("lm_head.weight", "lm_head"),
        ("model.layers.0.input_layernorm.weight", "layers.0"),
    ],
)
def test_layer_of(name: str, layer: str) -> None:
    assert layer_of(name) == layer

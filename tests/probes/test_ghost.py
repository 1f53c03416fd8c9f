"""PerSample against one backward pass a sample, in float64, on random tiny models."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from workbench.policy import Policy
from workbench.probes import ghost as ghost_module
from workbench.probes.ghost import PerSample, skipped_weights
from workbench.sampling import completion_logits, pack, token_logprobs

VOCAB = 23
PAD = 0
SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    pad_token_id=PAD,
)


def llama(tied: bool) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


MODELS = {
    "llama-tied": lambda: llama(tied=True),
    "llama-untied": lambda: llama(tied=False),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=False, attention_bias=True)
    ),
    "gpt2": gpt2,
}


def build(name: str, lora: bool) -> nn.Module:
    """A float64 model whose every parameter is random and trained, LoRA's B included."""
    torch.manual_seed(0)
    model = MODELS[name]()
    if lora:
        model = get_peft_model(
            model, LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", lora_dropout=0.0)
        )
    model = model.double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data += 0.3 * noise
    return model


def batch(n: int, t: int, seed: int = 2) -> dict[str, Tensor]:
    """Left-padded random texts of different lengths, with the pad token inside some of them too."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (n, t), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(n):
        mask[row, : row % 3] = 0
    ids = ids.masked_fill(mask == 0, PAD)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def sample_losses(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Share of each sample in a token-mean loss over the second half of the texts, (N,)."""
    n, t = inputs["input_ids"].shape
    logprobs = model(**inputs, use_cache=False).logits.log_softmax(-1)[:, :-1]
    target = inputs["input_ids"][:, 1:]
    nll = -logprobs.gather(2, target[..., None])[..., 0][:, t // 2 :]
    return nll.sum(1) / nll.numel()


def naive(
    model: nn.Module, inputs: dict[str, Tensor], parameters: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """g_j by one backward pass a sample."""
    per_sample = []
    for j in range(len(inputs["input_ids"])):
        loss = sample_losses(model, inputs)[j]
        found = torch.autograd.grad(loss, list(parameters.values()))
        per_sample.append(dict(zip(parameters, found, strict=True)))
    return per_sample


def random_direction(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in parameters.items()
    }


def split(name: str) -> str:
    return "coordinator" if ".lora_" in name else "base"


@pytest.mark.parametrize("tokens", [6, 18])  # 18: contracts to d² for LoRA and heads, 6: to T²
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_equals_one_backward_pass_per_sample(name: str, lora: bool, tokens: int) -> None:
    model, inputs = build(name, lora), batch(5, tokens)
    parameters = dict(model.named_parameters())
    direction = random_direction(parameters)
    groups = {key: split(key) for key in parameters}
    with PerSample(model, direction, 5, groups) as ghost:
        gradient = torch.autograd.grad(sample_losses(model, inputs).sum(), parameters.values())
    expected = naive(model, inputs, parameters)
    assert ghost.skipped == {}
    assert set(ghost.inner) == set(groups.values())
    for group in ghost.inner:
        names = [key for key in parameters if groups[key] == group]
        inner = [sum((g[key] * direction[key]).sum() for key in names) for g in expected]
        norm = [sum(g[key].square().sum() for key in names).sqrt() for g in expected]
        torch.testing.assert_close(ghost.inner[group], torch.stack(inner), rtol=1e-7, atol=0)
        torch.testing.assert_close(ghost.norm[group], torch.stack(norm), rtol=1e-7, atol=0)
    whole = sum((g * direction[key]).sum() for key, g in zip(parameters, gradient, strict=True))
    together = sum(values.sum() for values in ghost.inner.values())
    torch.testing.assert_close(together, whole, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_each_parameter_alone_is_right(name: str) -> None:
    model, inputs = build(name, lora=True), batch(4, 10)
    parameters = dict(model.named_parameters())
    direction = random_direction(parameters)
    with PerSample(model, direction, 4, {key: key for key in parameters}) as ghost:
        sample_losses(model, inputs).sum().backward()
    expected = naive(model, inputs, parameters)
    for key in parameters:
        norm = torch.stack([g[key].norm() for g in expected])
        torch.testing.assert_close(ghost.norm[key], norm, rtol=1e-7, atol=1e-12, msg=key)


def test_the_cross_term_of_a_tied_weight_matters() -> None:
    model, inputs = build("llama-tied", lora=False), batch(4, 10)
    name = "model.embed_tokens.weight"
    weight = dict(model.named_parameters())[name]
    with PerSample(model, {name: torch.ones_like(weight)}, 4) as ghost:
        sample_losses(model, inputs).sum().backward()
    untied = build("llama-tied", lora=False)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    both = {"in": untied.model.embed_tokens.weight, "out": untied.lm_head.weight}
    apart = naive(untied, inputs, both)
    together = torch.stack([(g["in"] + g["out"]).square().sum() for g in apart])
    without = torch.stack([g["in"].square().sum() + g["out"].square().sum() for g in apart])
    torch.testing.assert_close(ghost.squared_norm["all"], together, rtol=1e-7, atol=0)
    assert ((without - together).abs() > 1e-3 * together).all()


def test_only_what_is_in_the_direction_and_trained_counts() -> None:
    model, inputs = build("llama-untied", lora=True), batch(4, 8)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in key)
    parameters = dict(model.named_parameters())
    direction = random_direction(parameters)
    with PerSample(model, direction, 4) as ghost:
        sample_losses(model, inputs).sum().backward()
    trained = {key: p for key, p in parameters.items() if ".lora_" in key}
    expected = naive(model, inputs, trained)
    inner = [sum((g[key] * direction[key]).sum() for key in trained) for g in expected]
    assert ghost.skipped == {}
    torch.testing.assert_close(ghost.inner["all"], torch.stack(inner), rtol=1e-7, atol=0)


def test_names_can_be_the_callers_own() -> None:
    model, inputs = build("qwen2", lora=True), batch(3, 8)
    weight = model.base_model.model.model.layers[1].mlp.up_proj.base_layer.weight
    direction = {"layers.1.up": torch.ones_like(weight)}
    with PerSample(model, direction, 3, parameters={"layers.1.up": weight}) as ghost:
        sample_losses(model, inputs).sum().backward()
    expected = naive(model, inputs, {"w": weight})
    inner = torch.stack([g["w"].sum() for g in expected])
    torch.testing.assert_close(ghost.inner["all"], inner, rtol=1e-7, atol=0)


def test_several_directions_in_one_pass_equal_one_pass_each() -> None:
    model, inputs = build("llama-tied", lora=True), batch(4, 10)
    parameters = dict(model.named_parameters())
    direction = random_direction(parameters)
    groups = {key: split(key) for key in parameters}
    other = {key: v.flip(0) for key, v in direction.items() if split(key) == "base"}
    with PerSample(model, direction, 4, groups, also={"other": other}) as both:
        sample_losses(model, inputs).sum().backward()
    with PerSample(model, direction, 4, groups) as first:
        sample_losses(model, inputs).sum().backward()
    with PerSample(model, other, 4) as second:
        sample_losses(model, inputs).sum().backward()
    torch.testing.assert_close(both.inner, first.inner)
    torch.testing.assert_close(both.squared_norm, first.squared_norm)
    torch.testing.assert_close(both.inner_also["other"]["base"], second.inner["all"])
    assert not both.inner_also["other"]["coordinator"].any()


class Odd(nn.Module):
    """A covered layer, a matrix used outside any layer, and a layer that is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)
        self.outside = nn.Parameter(torch.randn(4, 4))
        self.unused = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) @ self.outside


def test_an_uncovered_parameter_is_listed_with_its_share() -> None:
    torch.manual_seed(0)
    model = Odd().double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    direction = {key: torch.ones_like(p) for key, p in model.named_parameters()}
    with PerSample(model, direction, 3) as ghost:
        model(x).square().sum().backward()
    assert ghost.skipped == pytest.approx({"outside": 16 / 52, "unused.weight": 16 / 52})
    inside = {key: p for key, p in model.named_parameters() if key.startswith("inside")}
    expected = [
        sum(g.sum() for g in torch.autograd.grad(model(x)[j].square().sum(), inside.values()))
        for j in range(3)
    ]
    torch.testing.assert_close(ghost.inner["all"], torch.stack(expected), rtol=1e-9, atol=0)


def test_gpt2_without_position_ids_lists_its_positions() -> None:
    model, inputs = build("gpt2", lora=False), batch(4, 8)
    del inputs["position_ids"]
    direction = random_direction(dict(model.named_parameters()))
    with PerSample(model, direction, 4) as ghost:
        sample_losses(model, inputs).sum().backward()
    assert list(ghost.skipped) == ["transformer.wpe.weight"]


def test_experts_and_routers_are_listed_with_their_share_of_the_weights() -> None:
    """Their weights are no layers' own: 4 experts of two matrices in one tensor each, one gate."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2))
    parameters = dict(model.named_parameters())
    tokens = pack([[1, 4], [1, 5, 6]], [[7, 8, 2], [9, 2]], PAD)
    found = skipped_weights(model, parameters, tokens)
    experts = [name for name in parameters if ".experts." in name or ".gate.weight" in name]
    whole = sum(p.numel() for p in parameters.values())
    assert len(experts) == 6  # of two layers
    assert found == pytest.approx({name: parameters[name].numel() / whole for name in experts})


def test_a_layer_used_twice_adds_up_before_the_norm() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)

    def loss_of(x: Tensor) -> Tensor:
        return layer(layer(x)).pow(3).sum()

    direction = random_direction(dict(layer.named_parameters()))
    with PerSample(layer, direction, 3) as ghost:
        loss_of(x).backward()
    for j in range(3):
        found = torch.autograd.grad(loss_of(x[j : j + 1]), layer.parameters())
        inner = sum((g * v).sum() for g, v in zip(found, direction.values(), strict=True))
        norm = sum(g.square().sum() for g in found)
        assert ghost.inner["all"][j].item() == pytest.approx(inner.item(), rel=1e-9)
        assert ghost.squared_norm["all"][j].item() == pytest.approx(norm.item(), rel=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    model, inputs = build("llama-tied", lora=True), batch(4, 8)
    model.train()
    direction = random_direction(dict(model.named_parameters()))
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with PerSample(model, direction, 4) as ghost:
            sample_losses(model, inputs).sum().backward()
        assert ghost.skipped == {}
        results.append(ghost)
    torch.testing.assert_close(results[1].inner, results[0].inner)
    torch.testing.assert_close(results[1].squared_norm, results[0].squared_norm)


def test_works_through_the_trainers_own_passes(policy: Policy) -> None:
    """Padded completions, `logits_to_keep`, a tied output layer and the Policy's own names."""
    policy.model.double()
    prompts = [policy.encode_prompt(text) for text in ("1+2=?\n", "12+7-30=?\n", "5-4=?\n")]
    completions = [policy.encode_completion(text) for text in ("#3", "12+7=19\n#-11", "#1")]
    tokens = pack(prompts, completions, policy.pad_id)
    parameters = {**policy.base, **policy.coordinator}
    direction = random_direction(parameters)
    groups = {name: "base" if name in policy.base else "coordinator" for name in parameters}

    def shares() -> Tensor:
        logprobs = token_logprobs(completion_logits(policy.model, tokens), tokens)
        return logprobs.sum(1) / tokens.n_tokens

    with PerSample(policy.model, direction, 3, groups, parameters) as ghost:
        torch.autograd.grad(shares().sum(), list(parameters.values()))
    assert ghost.skipped == {}
    for j in range(3):
        found = torch.autograd.grad(shares()[j], list(parameters.values()))
        g = dict(zip(parameters, found, strict=True))
        for group in ("base", "coordinator"):
            names = [name for name in g if groups[name] == group]
            inner = sum((g[name] * direction[name]).sum().item() for name in names)
            norm = sum(g[name].square().sum().item() for name in names) ** 0.5
            assert ghost.inner[group][j].item() == pytest.approx(inner, rel=1e-6)
            assert ghost.norm[group][j].item() == pytest.approx(norm, rel=1e-6)


def test_the_gradient_and_the_model_stay_as_they_were() -> None:
    model, inputs = build("qwen3", lora=True), batch(4, 8)
    parameters = dict(model.named_parameters())
    plain = torch.autograd.grad(sample_losses(model, inputs).sum(), parameters.values())
    with PerSample(model, random_direction(parameters), 4):
        watched = torch.autograd.grad(sample_losses(model, inputs).sum(), parameters.values())
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert not any(module._forward_hooks for module in model.modules())


def test_norms_are_left_out_where_not_wanted_and_inner_products_stay() -> None:
    model, inputs = build("llama-tied", lora=True), batch(5, 18)
    parameters = dict(model.named_parameters())
    direction = random_direction(parameters)
    groups = {key: split(key) for key in parameters}
    found = []
    for norms in (None, {"base"}):
        with PerSample(model, direction, 5, groups, norms=norms) as ghost:
            torch.autograd.grad(sample_losses(model, inputs).sum(), parameters.values())
        found.append(ghost)
    whole, some = found
    assert set(some.squared_norm) == {"base"}
    torch.testing.assert_close(some.squared_norm["base"], whole.squared_norm["base"])
    for group, inner in whole.inner.items():
        torch.testing.assert_close(some.inner[group], inner, rtol=1e-9, atol=0)


def test_forming_gradients_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build("llama-untied", lora=False), batch(5, 18)
    parameters = dict(model.named_parameters())
    direction = random_direction(parameters)
    found = []
    for limit in (ghost_module.FORMED, 2 * 16 * 16):
        monkeypatch.setattr(ghost_module, "FORMED", limit)
        with PerSample(model, direction, 5) as ghost:
            torch.autograd.grad(sample_losses(model, inputs).sum(), parameters.values())
        found.append(ghost)
    torch.testing.assert_close(found[0].inner["all"], found[1].inner["all"])
    torch.testing.assert_close(found[0].norm["all"], found[1].norm["all"])

"""Products of each rollout and demonstration, as a step records them, against a pass each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.training.tiny import (
    ChanceTask,
    copy_of,
    disturb,
    float64_everywhere,
    make_policy,
    same_bits,
    save_tiny_llama,
    small_config,
    to_float64,
)
from workbench.config import RunConfig
from workbench.pocket.make import make_tokenizer
from workbench.policy import Policy
from workbench.records import StepRecord
from workbench.training.trainer import Trainer

KL = 0.3
TEMPERATURE = 0.8


def qwen2(vocab_size: int) -> PreTrainedModel:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            initializer_range=0.3,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def gpt2(vocab_size: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=128,
            n_embd=16,
            n_layer=2,
            n_head=2,
            initializer_range=0.3,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


@pytest.fixture(scope="module", params=["llama-tied", "llama-untied", "qwen2", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(where, tied=request.param != "llama-untied")
    if request.param in ("qwen2", "gpt2"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            make = {"qwen2": qwen2, "gpt2": gpt2}[request.param]
            make(len(make_tokenizer())).save_pretrained(where)
    return where


@pytest.fixture
def case(folder: Path) -> Iterator[tuple[RunConfig, Policy]]:
    with float64_everywhere():
        config = small_config(
            folder,
            kl_coef=KL,
            temperature=TEMPERATURE,
            alignment_every=1,
            rollout_alignment_every=1,
        )
        policy = make_policy(config)
        to_float64(policy)
        disturb(policy.coordinator, 0.2, seed=1)
        disturb(policy.base, 0.05, seed=2)
        yield config, policy


def logprobs(policy: Policy, prompt: str, ids: list[int], temperature: float) -> Tensor:
    """log π of a completion's tokens, without padding."""
    prompt_ids = policy.encode_prompt(prompt)
    logits = policy.model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]


Gradient = tuple[Tensor, Tensor]
"""Over θ and over w, each as one long vector."""


def gradient(value: Tensor, policy: Policy) -> Gradient:
    """∇ value."""
    sides = []
    for part in (policy.base, policy.coordinator):
        found = torch.autograd.grad(value, [*part.values()], retain_graph=True)
        sides.append(torch.cat([g.flatten() for g in found]))
    return sides[0], sides[1]


def summed(gradients: list[Gradient]) -> Gradient:
    theta, w = zip(*gradients, strict=True)
    return torch.stack(theta).sum(0), torch.stack(w).sum(0)


def naive(policy: Policy, record: StepRecord) -> tuple[list[Gradient], list[Gradient]]:
    """Shares (of each rollout in g^R, of each demonstration in g^S) by one backward pass each.

    At ratio 1 a token's slope is A ∇log π − KL ∇k3, and ∇k3 = (1 − π_ref/π) ∇log π.
    """
    n_tokens = sum(len(row.token_ids) for row in record.rollouts)
    shares = []
    for row in record.rollouts:
        found = logprobs(policy, row.prompt, row.token_ids, TEMPERATURE)
        k3_slope = 1 - (torch.tensor(row.reference_logprob) - found.detach()).exp()
        shares.append(gradient(((row.advantage - KL * k3_slope) * found).sum() / n_tokens, policy))
    n_shown = sum(d.n_tokens for d in record.demonstrations)
    shown = []
    for demo in record.demonstrations:
        ids = policy.encode_completion(demo.solution)
        shown.append(gradient(logprobs(policy, demo.prompt, ids, 1.0).sum() / n_shown, policy))
    return shares, shown


@pytest.mark.parametrize("micro_batch_tokens", [2048, 24])
def test_products_equal_one_backward_pass_each(
    case: tuple[RunConfig, Policy], micro_batch_tokens: int
) -> None:
    config, policy = case
    before = copy_of(policy.base), copy_of(policy.coordinator)
    record = Trainer(
        config.with_changes(micro_batch_tokens=micro_batch_tokens), policy, ChanceTask()
    ).step(1)
    with torch.no_grad():
        for old, parameters in zip(before, (policy.base, policy.coordinator), strict=True):
            for name, value in old.items():
                parameters[name].copy_(value)
    shares, shown = naive(policy, record)
    (rl, rl_w), (sft, _) = summed(shares), summed(shown)
    assert {row.reward for row in record.rollouts} == {0.0, 1.0}
    assert record.metrics["alignment/skipped_share"] == 0
    for row, (g, _) in zip(record.rollouts, shares, strict=True):
        assert row.rl_alignment == pytest.approx(float(g @ rl), rel=1e-7)
        assert row.sft_alignment == pytest.approx(float(g @ sft), rel=1e-7)
        assert row.grad_norm == pytest.approx(float(g.norm()), rel=1e-7)
        assert row.rl_cosine == pytest.approx(float(g @ rl / g.norm() / rl.norm()), rel=1e-7)
    for demo, (g, g_w) in zip(record.demonstrations, shown, strict=True):
        assert demo.rl_alignment == pytest.approx(float(g @ rl), rel=1e-7)
        assert demo.rl_alignment_coordinator == pytest.approx(float(g_w @ rl_w), rel=1e-7)
        assert demo.grad_norm == pytest.approx(float(g.norm()), rel=1e-7)
        assert demo.rl_cosine == pytest.approx(float(g @ rl / g.norm() / rl.norm()), rel=1e-7)


def test_measuring_changes_no_step_and_grpo_has_no_sft_product(
    case: tuple[RunConfig, Policy],
) -> None:
    config, policy = case
    grpo = config.with_changes(method="grpo", rollout_alignment_every=2)
    start = copy_of(policy.base)
    trainer = Trainer(grpo, policy, ChanceTask())
    measured = [trainer.step(n).rollouts[0] for n in (1, 2, 3)]
    assert [math.isnan(row.rl_alignment) for row in measured] == [False, False, True]
    assert [math.isnan(row.grad_norm) for row in measured] == [False, False, True]
    assert all(math.isnan(row.sft_alignment) for row in measured)
    after = copy_of(policy.base)
    with torch.no_grad():
        for name, value in start.items():
            policy.base[name].copy_(value)
    plain = Trainer(grpo.with_changes(rollout_alignment_every=0), policy, ChanceTask())
    assert all(math.isnan(plain.step(n).rollouts[0].rl_alignment) for n in (1, 2, 3))
    assert same_bits(policy.base, after)

"""Noise, rollouts and log-probs against what probability theory says of them."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.training.tiny import ChanceTask, disturb, make_policy, save_tiny_llama, small_config
from workbench.config import ConfigError
from workbench.pocket.make import make_tokenizer
from workbench.sampling import (
    Completions,
    Noise,
    batch_logprobs,
    completion_logits,
    gumbel,
    pack,
    sample,
    token_entropy,
    token_logprobs,
)
from workbench.training.trainer import Trainer

NOISE = Noise(seed=0, step=1, purpose="rollouts")
PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 64], [1, 50]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def streams(n: int, first: int = 0) -> Tensor:
    return torch.arange(first, first + n)


# --- the noise ----------------------------------------------------------------------------------


def ks_distance(values: np.ndarray) -> float:
    """Largest distance between the empirical and the Gumbel distribution, times √n."""
    ordered, n = np.sort(values), len(values)
    expected = np.exp(-np.exp(-ordered))
    above = np.arange(1, n + 1) / n - expected
    below = expected - np.arange(n) / n
    return float(max(above.max(), below.max()) * math.sqrt(n))


@pytest.mark.parametrize("noise", [NOISE, Noise(7, 123456, "paired"), Noise(-1, 0, "")])
def test_noise_is_standard_gumbel(noise: Noise) -> None:
    values = gumbel(noise, streams(200), 3, 500).double().numpy().ravel()
    assert ks_distance(values) < 1.95  # exceeded by chance once in a thousand
    assert values.mean() == pytest.approx(0.5772, abs=0.02)
    assert np.isfinite(values).all()


def _correlation(a: Tensor, b: Tensor) -> float:
    """Correlation of two equal-sized noises, in standard errors (√n · r)."""
    r = np.corrcoef(a.double().numpy().ravel(), b.double().numpy().ravel())[0, 1]
    return float(abs(r) * math.sqrt(a.numel()))


def test_noise_is_uncorrelated_along_every_axis() -> None:
    n, v = 300, 300
    here = gumbel(NOISE, streams(n), 5, v)
    neighbours = {
        "position": gumbel(NOISE, streams(n), 6, v),
        "sequence": gumbel(NOISE, streams(n, first=1), 5, v),
        "far sequence": gumbel(NOISE, streams(n, first=2**32), 5, v),
        "step": gumbel(Noise(0, 2, "rollouts"), streams(n), 5, v),
        "seed": gumbel(Noise(1, 1, "rollouts"), streams(n), 5, v),
        "purpose": gumbel(Noise(0, 1, "paired"), streams(n), 5, v),
        "token": here.roll(1, dims=1),
        "position and sequence": gumbel(NOISE, streams(n, first=1), 4, v),
        "sequence against token": here.T,
    }
    for axis, other in neighbours.items():
        assert _correlation(here, other) < 4, axis
        assert not torch.equal(here, other), axis


def test_ambiguous_keys_differ() -> None:
    """Parts of the key cannot run into each other."""
    keys = [Noise(1, 11, "a").key(), Noise(11, 1, "a").key(), Noise(1, 1, "1/a").key()]
    assert len(set(keys)) == 3
    assert all(0 <= key < 2**63 for key in keys)


def test_a_rows_noise_depends_on_its_stream_alone() -> None:
    whole = gumbel(NOISE, streams(8), 4, 50)
    assert torch.equal(gumbel(NOISE, torch.tensor([5]), 4, 50)[0], whole[5])
    assert torch.equal(gumbel(NOISE, torch.tensor([7, 2, 2]), 4, 50), whole[[7, 2, 2]])
    assert torch.equal(gumbel(NOISE, streams(8), 4, 20), whole[:, :20])  # a larger vocabulary: more


def _splitmix(x: int) -> int:
    """SplitMix64's finaliser with Python's own unbounded integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_noise_equals_a_scalar_computation_in_python() -> None:
    found = gumbel(NOISE, torch.tensor([0, 3, 2**40]), 6, 5)
    golden = 0x9E3779B97F4A7C15
    for row, sequence in enumerate((0, 3, 2**40)):
        inner = _splitmix((sequence + NOISE.key()) % 2**64)
        stream = _splitmix((inner + golden * 7) % 2**64)
        for token in range(5):
            bits = _splitmix((stream + golden * (token + 1)) % 2**64) >> 41
            expected = -math.log(-math.log((bits + 0.5) / 2**23))
            assert float(found[row, token]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_sampled_tokens_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 0.5, 1.0, -3.0, 0.1])
    n = 40_000
    chosen = torch.cat(
        [(logits + gumbel(NOISE, streams(n // 4), t, 7)).argmax(1) for t in range(4)]
    )
    expected = n * logits.double().softmax(0)
    counts = torch.bincount(chosen, minlength=7).double()
    assert float(((counts - expected) ** 2 / expected).sum()) < 22.46  # χ², 6 degrees, p = 0.001


def test_two_policies_agree_as_often_as_the_coupling_says() -> None:
    """P(same token) = Σ_i 1/Σ_j max(p_j/p_i, q_j/q_i) for a Gumbel-max coupling, exactly."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(20, generator=generator)
    n = 20_000
    noise = gumbel(NOISE, streams(n), 0, 20)
    for size in (0.001, 0.1, 1.0):
        second = first + size * torch.randn(20, generator=generator)
        p, q = first.double().softmax(0), second.double().softmax(0)
        ratios = torch.maximum(p[None, :] / p[:, None], q[None, :] / q[:, None])
        expected = float((1 / ratios.sum(1)).sum())
        found = ((first + noise).argmax(1) == (second + noise).argmax(1)).double().mean()
        error = math.sqrt(expected * (1 - expected) / n)
        assert float(found) == pytest.approx(expected, abs=4 * error)


# --- rollouts -----------------------------------------------------------------------------------


def draw(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[list[int]] = PROMPTS,
    noise: Noise | None = NOISE,
    sequences: list[int] | None = None,
    end_ids: list[int] | None = None,
    **settings: float,
) -> Completions:
    """Rollouts of at most 12 tokens."""
    return sample(
        model,
        tokenizer,
        prompts,
        noise=noise,
        sequences=range(len(prompts)) if sequences is None else sequences,
        end_ids=end_ids or [2],
        max_new_tokens=12,
        environments=None,
        **settings,
    )


def test_same_key_same_text_other_key_other_text(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    first = draw(model, tokenizer)
    assert draw(model, tokenizer) == first
    for other in (Noise(1, 1, "rollouts"), Noise(0, 2, "rollouts"), Noise(0, 1, "paired")):
        assert draw(model, tokenizer, noise=other).token_ids != first.token_ids
    assert first.token_ids[1] != first.token_ids[3]  # one prompt, two streams


def test_a_rollout_does_not_depend_on_its_batch(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    together = draw(model, tokenizer)
    assert draw(model, tokenizer, batch=1).token_ids == together.token_ids
    assert draw(model, tokenizer, batch=3).token_ids == together.token_ids
    alone = draw(model, tokenizer, prompts=[PROMPTS[2]], sequences=[2])
    assert alone.token_ids == [together.token_ids[2]]
    assert alone.logprob[0] == pytest.approx(together.logprob[2], abs=1e-4)


def teacher_forced(
    model: torch.nn.Module, prompt: list[int], completion: list[int], temperature: float = 1.0
) -> list[float]:
    """log π of each completion token, one sequence, no padding, no cache, all positions at once."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].double() / temperature
    logp = logits.log_softmax(-1)
    return [float(logp[len(prompt) - 1 + t, token]) for t, token in enumerate(completion)]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
def test_recorded_logprobs_are_the_policys_own(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, temperature: float
) -> None:
    done = draw(model, tokenizer, temperature=temperature)
    for prompt, ids, logprob in zip(PROMPTS, done.token_ids, done.logprob, strict=True):
        assert logprob == pytest.approx(teacher_forced(model, prompt, ids, temperature), abs=1e-4)


def test_a_checkpoints_generation_settings_do_not_bend_the_distribution(
    folder: Path, tmp_path: Path
) -> None:
    """Qwen2.5, for one, ships a repetition penalty; sampler and trainer must still agree."""
    bending = LlamaForCausalLM.from_pretrained(folder)
    bending.generation_config.repetition_penalty = 1.5
    bending.generation_config.no_repeat_ngram_size = 1
    bending.generation_config.suppress_tokens = list(range(30, 100))
    bending.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    plain, policy = make_policy(small_config(folder)), make_policy(small_config(tmp_path))
    for name in ("joint", "baseline", "reference"):
        expected = draw(plain.of(name), plain.tokenizer)  # type: ignore[arg-type]
        assert draw(policy.of(name), policy.tokenizer) == expected  # type: ignore[arg-type]
    assert policy.merged().generation_config.repetition_penalty == 1.5  # an export keeps them


def test_temperature_is_exact(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """T divides the logits before the noise is added: T = 1/2 is the same as doubled logits."""
    cold = draw(model, tokenizer, temperature=0.5)
    with torch.no_grad():
        model.model.norm.weight *= 2  # the logits are linear in it
    assert draw(model, tokenizer).token_ids == cold.token_ids


def test_without_noise_the_likeliest_token_is_taken(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    done = draw(model, tokenizer, noise=None)
    for prompt, ids in zip(PROMPTS, done.token_ids, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == ids


def test_first_tokens_follow_the_models_softmax(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = LlamaForCausalLM.from_pretrained(save_tiny_llama(tmp_path, vocab_size=8)).eval()
    n = 3000
    done = sample(
        model,
        tokenizer,
        [[1, 5, 6]] * n,
        noise=NOISE,
        sequences=range(n),
        end_ids=[2],
        max_new_tokens=1,
        batch=1000,
        environments=None,
    )
    with torch.no_grad():
        p = model(torch.tensor([[1, 5, 6]])).logits[0, -1].double().softmax(0)
    counts = torch.bincount(torch.tensor([ids[0] for ids in done.token_ids]), minlength=8)
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 24.32  # χ², 7 degrees, p = 0.001


def test_a_completion_ends_at_its_first_end_token(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    end_ids = [2, *range(60, 90)]  # many, so that an untrained model meets them
    prompts = PROMPTS * 8
    free = draw(model, tokenizer, prompts)  # the same noise, ending at token 2 only
    done = draw(model, tokenizer, prompts, end_ids=end_ids)
    assert len(set(map(len, done.token_ids))) > 3
    assert 0 < sum(done.finished) < len(prompts)
    for i, ids in enumerate(done.token_ids):
        expected = free.token_ids[i]
        stop = next((t for t, token in enumerate(expected) if token in end_ids), None)
        assert done.finished[i] == (stop is not None)
        assert ids == (expected if stop is None else expected[: stop + 1])
        assert len(done.logprob[i]) == len(ids) <= 12
        shown = ids if stop is None else ids[:-1]
        assert done.texts[i] == tokenizer.decode(shown, skip_special_tokens=True)
        assert "<pad>" not in done.texts[i]


def test_padding_with_the_end_token_is_no_text(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Many tokenizers pad with their end-of-text token."""
    end_ids = [2, *range(60, 90)]
    usual = draw(model, tokenizer, PROMPTS * 4, end_ids=end_ids)
    padded = make_tokenizer()
    padded.pad_token = padded.eos_token
    assert draw(model, padded, PROMPTS * 4, end_ids=end_ids) == usual


# --- log-probs ----------------------------------------------------------------------------------

COMPLETIONS = [[7, 8, 9, 2], [10], [11, 12, 13, 14, 15, 2], [16, 2]]


def test_padding_does_not_change_logprobs(model: LlamaForCausalLM) -> None:
    model.double()
    batch = pack(PROMPTS, COMPLETIONS, pad_id=0)
    assert batch.n_tokens == sum(map(len, COMPLETIONS))
    with torch.no_grad():
        found = token_logprobs(completion_logits(model, batch, 0.7), batch)
    for row, (prompt, ids) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected = teacher_forced(model, prompt, ids, 0.7)
        assert found[row, : len(ids)].tolist() == pytest.approx(expected, abs=1e-6)
        assert found[row, len(ids) :].tolist() == [0.0] * (found.shape[1] - len(ids))


@pytest.mark.parametrize("max_tokens", [1, 9, 20, 10_000])
def test_micro_batches_cover_every_row_once_within_the_limit(
    model: LlamaForCausalLM, max_tokens: int
) -> None:
    batch = pack(PROMPTS, COMPLETIONS, pad_id=0)
    groups = batch.micro_batches(0, 4, max_tokens)
    assert sorted(row for rows in groups for row in rows) == [0, 1, 2, 3]
    for rows in groups:
        part = batch.select(rows)
        assert len(rows) == 1 or part.input_ids.numel() <= max_tokens
        assert part.n_prompt == max(len(PROMPTS[r]) for r in rows)
        assert part.completion_ids.shape[1] == max(len(COMPLETIONS[r]) for r in rows)
        for i, r in enumerate(rows):
            real = part.input_ids[i][part.attention_mask[i].bool()].tolist()
            assert real == PROMPTS[r] + COMPLETIONS[r]
    whole = batch_logprobs(model, batch, 1.0, 10_000)
    assert torch.allclose(batch_logprobs(model, batch, 1.0, max_tokens), whole, atol=1e-5)
    assert batch.micro_batches(1, 3, 10_000) == [[2, 1]]


def test_entropy_is_that_of_the_softmax() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    found = token_entropy(logits)[0].tolist()
    assert found == pytest.approx([math.log(4), 0.0], abs=1e-12)


# --- the global random state --------------------------------------------------------------------


def test_nothing_touches_the_global_random_state(folder: Path) -> None:
    """Not loading a policy, not sampling, not a step with every probe."""
    config = small_config(
        folder,
        alignment_every=1,
        shared_gain_every=1,
        paired_gain_every=1,
        paired_rollouts=2,
        paired_prompts=2,
        token_views_every=1,
        coordinator_every=1,
        evaluate_every=1,
        reward_flip=0.3,
    )
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    policy = make_policy(config)
    Trainer(config, policy, ChanceTask()).step(1)
    draw(policy.model, policy.tokenizer)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert random.getstate() == before[2]


def test_the_global_random_state_changes_nothing(folder: Path) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        policy = make_policy(small_config(folder))
        disturb(policy.coordinator, 0.2, seed=1)
        found.append(draw(policy.model, policy.tokenizer))
    assert found[0] == found[1]


def test_equal_policies_write_the_same_and_nearly_equal_ones_part_rarely(folder: Path) -> None:
    policy = make_policy(small_config(folder))
    prompts = PROMPTS * 8
    joint = draw(policy.model, policy.tokenizer, prompts)
    assert policy.baseline is not None
    assert draw(policy.baseline, policy.tokenizer, prompts) == joint  # θ̂ = θ at the start
    disturb(policy.baseline_base, 1e-3, seed=1)
    near = draw(policy.baseline, policy.tokenizer, prompts)
    parted = sum(a != b for a, b in zip(near.token_ids, joint.token_ids, strict=True))
    other = draw(policy.baseline, policy.tokenizer, prompts, noise=Noise(5, 1, "rollouts"))
    parted_by_noise = sum(a != b for a, b in zip(other.token_ids, joint.token_ids, strict=True))
    assert parted <= len(prompts) // 4
    assert parted_by_noise == len(prompts)


# --- models with learned positions ---------------------------------------------------------------


@pytest.fixture
def short_gpt2(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=12, n_embd=16, n_layer=1, n_head=2, pad_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


def test_a_prompt_too_long_for_learned_positions_names_the_setting(
    short_gpt2: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    def complete(longest: int) -> Completions:
        return sample(
            short_gpt2, tokenizer, PROMPTS, noise=None, sequences=range(4), end_ids=[2],
            max_new_tokens=longest, environments=None,
        )  # fmt: skip

    assert len(complete(6).token_ids) == 4  # the longest prompt has 6 tokens
    with pytest.raises(ConfigError, match="max_new_tokens: .* 13 tokens, .* knows 12 positions"):
        complete(7)


def test_padding_takes_no_learned_position(short_gpt2: GPT2LMHeadModel) -> None:
    fits = pack([[1] * 10, [1]], [[5], [5] * 11], 0)  # 21 columns, 12 tokens at the most
    assert completion_logits(short_gpt2, fits).shape[1] == 11
    with pytest.raises(ConfigError, match="13 tokens"):
        completion_logits(short_gpt2, pack([[1] * 2], [[5] * 11], 0))

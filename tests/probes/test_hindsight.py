"""Hindsight noise on models small enough to enumerate every text they can write."""

from __future__ import annotations

from itertools import product
from math import sqrt

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.pocket.make import make_tokenizer
from workbench.probes.hindsight import hindsight_noise, posterior_gumbel
from workbench.sampling import Completions, Noise, NoiseSource, gumbel, sample

N = 6000
VOCAB, END, LONGEST = 4, 2, 3
TEMPERATURE = 0.8
PROMPT = [1, 3]
TEXTS = [
    text
    for n in range(1, LONGEST + 1)
    for text in product(range(VOCAB), repeat=n)
    if END not in text[:-1] and (n == LONGEST or text[-1] == END)
]
TOKENIZER = make_tokenizer()


def make_model(seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=16,
        initializer_range=0.6,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=END,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


FACTUAL, OTHER = make_model(0), make_model(1)


def draw(model: LlamaForCausalLM, noise: NoiseSource, n: int = N) -> Completions:
    return sample(
        model,
        TOKENIZER,
        [PROMPT] * n,
        noise=noise,
        sequences=range(n),
        end_ids=[END],
        max_new_tokens=LONGEST,
        temperature=TEMPERATURE,
        batch=2000,
        environments=None,
    )


def conditioned(texts: list[list[int]], seed: int = 7, rollouts: int = 1) -> NoiseSource:
    return hindsight_noise(
        FACTUAL,
        [PROMPT] * len(texts),
        texts,
        prior=Noise(seed, 0, "hindsight"),
        rollouts=rollouts,
        temperature=TEMPERATURE,
    )


@torch.no_grad()
def next_token(model: LlamaForCausalLM, text: tuple[int, ...] = ()) -> np.ndarray:
    logits = model(input_ids=torch.tensor([[*PROMPT, *text]])).logits[0, -1].double()
    return (logits / TEMPERATURE).softmax(0).numpy()


def exact(model: LlamaForCausalLM) -> dict[tuple[int, ...], float]:
    """Probability of each text, by the chain rule, one forward pass a prefix."""
    return {
        text: float(np.prod([next_token(model, text[:t])[token] for t, token in enumerate(text)]))
        for text in TEXTS
    }


def chi_square(counts: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """(statistic, its 99.9 % quantile), cells expecting fewer than 8 pooled."""
    small = expected < 8
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    kept = expected > 0
    statistic = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    k = int(kept.sum()) - 1  # Wilson and Hilferty's quantile
    return statistic, k * (1 - 2 / (9 * k) + 3.0902 * sqrt(2 / (9 * k))) ** 3


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """Texts of the factual policy."""
    return draw(FACTUAL, Noise(0, 0, "draw")).token_ids


@pytest.fixture(scope="module")
def counterfactuals(texts: list[list[int]]) -> list[list[int]]:
    return draw(OTHER, conditioned(texts)).token_ids


def test_the_texts_are_all_there_are() -> None:
    for model in (FACTUAL, OTHER):
        assert sum(exact(model).values()) == pytest.approx(1, abs=1e-9)
        assert max(exact(model).values()) < 0.5  # no foregone conclusion


def test_the_policy_that_wrote_a_text_writes_it_again_always(texts: list[list[int]]) -> None:
    assert draw(FACTUAL, conditioned(texts)).token_ids == texts
    rarest = [list(text) for text, _ in sorted(exact(FACTUAL).items(), key=lambda item: item[1])]
    again = draw(FACTUAL, conditioned(rarest, rollouts=50), n=50 * len(rarest))
    assert again.token_ids == [text for text in rarest for _ in range(50)]


@pytest.mark.parametrize("model", [FACTUAL, OTHER], ids=["factual", "other"])
def test_texts_on_hindsight_noise_have_the_policys_own_distribution(
    model: LlamaForCausalLM, texts: list[list[int]], counterfactuals: list[list[int]]
) -> None:
    found = [tuple(text) for text in (texts if model is FACTUAL else counterfactuals)]
    probabilities = exact(model)
    counts = np.array([found.count(text) for text in TEXTS])
    assert counts.sum() == N
    statistic, limit = chi_square(counts, N * np.array([probabilities[t] for t in TEXTS]))
    assert statistic < limit


def gumbel_max_joint(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """P(argmax log p + G = i, argmax log q + G = j) on one G, by integration.

    With exponential arrival times E_k: i is first of E/p and j first of E/q.
    P(i, i) = 1/Σ_k max(p_k/p_i, q_k/q_i). For i ≠ j put (E_i, E_j) = r(a, 1 − a); the integral
    over r is 1/c(a)², c(a) = Σ_k max(p_k a/p_i, q_k (1 − a)/q_j), and i before j under p, j before
    i under q leave q_i/q_j ≤ a/(1 − a) ≤ p_i/p_j.
    """
    joint = np.zeros((len(p), len(p)))
    for i, j in product(range(len(p)), repeat=2):
        if i == j:
            joint[i, i] = 1 / np.maximum(p / p[i], q / q[i]).sum()
            continue
        low, high = q[i] / (q[i] + q[j]), p[i] / (p[i] + p[j])
        if low < high:
            a = low + (np.arange(4000) + 0.5) / 4000 * (high - low)
            first = np.maximum(p[:, None] * a / p[i], q[:, None] * (1 - a) / q[j]).sum(0)
            joint[i, j] = (high - low) * (1 / first**2).mean()
    return joint


def test_first_tokens_are_coupled_as_two_policies_on_one_noise(
    texts: list[list[int]], counterfactuals: list[list[int]]
) -> None:
    p, q = next_token(FACTUAL), next_token(OTHER)
    joint = gumbel_max_joint(p, q)
    assert joint.sum(1) == pytest.approx(p, abs=1e-5)
    assert joint.sum(0) == pytest.approx(q, abs=1e-5)
    counts = np.zeros_like(joint)
    for text, other in zip(texts, counterfactuals, strict=True):
        counts[text[0], other[0]] += 1
    statistic, limit = chi_square(counts.ravel(), N * joint.ravel())
    assert statistic < limit
    assert (joint == 0).sum() >= 3  # stability: some changes can never happen
    assert counts[joint == 0].sum() == 0
    assert np.trace(joint) > 1.2 * (p @ q)  # closer than independent draws


def test_whole_texts_agree_as_often_as_on_shared_prior_noise(
    texts: list[list[int]], counterfactuals: list[list[int]]
) -> None:
    shared = draw(OTHER, Noise(0, 0, "draw")).token_ids  # the texts' own noise
    here = np.mean([a == b for a, b in zip(texts, counterfactuals, strict=True)])
    there = np.mean([a == b for a, b in zip(texts, shared, strict=True)])
    assert abs(here - there) < 3.3 * sqrt((here * (1 - here) + there * (1 - there)) / N)


def ks_distance(values: np.ndarray) -> float:
    """Largest distance from the Gumbel distribution, times √n."""
    ordered, n = np.sort(values), len(values)
    expected = np.exp(-np.exp(-ordered))
    gaps = np.maximum(np.arange(1, n + 1) / n - expected, expected - np.arange(n) / n)
    return float(gaps.max() * sqrt(n))


def test_posterior_noise_over_all_outcomes_is_gumbel_again() -> None:
    """Draw the outcome, then noise given it: the pair is as if the noise had come first."""
    n = 20_000
    logprobs = torch.tensor([3.0, 0.0, 1.0, -2.0]).double().log_softmax(0)
    streams = torch.arange(n)
    observed = (logprobs + gumbel(Noise(0, 0, "outcome"), streams, 0, 4)).argmax(1)
    noise = posterior_gumbel(
        gumbel(Noise(0, 0, "prior"), streams, 0, 4), logprobs.expand(n, 4), observed
    )
    assert torch.equal((logprobs + noise).argmax(1), observed)
    for column in noise.double().numpy().T:
        assert ks_distance(column) < 1.95  # exceeded by chance once in a thousand
    correlations = np.corrcoef(noise.double().numpy().T) - np.eye(4)
    assert np.abs(correlations).max() < 4 / sqrt(n)


def test_noise_is_a_function_of_its_key_and_unconditioned_behind_the_text() -> None:
    noise = conditioned([[3, END], [0, 1, 3]], rollouts=2)
    streams = torch.arange(4)
    for position in range(5):
        whole = noise.at(streams, position, VOCAB)
        assert torch.equal(noise.at(torch.tensor([2]), position, VOCAB)[0], whole[2])
        prior = gumbel(Noise(7, 0, "hindsight"), streams, position, VOCAB)
        free = [position >= length for length in (2, 2, 3, 3)]
        assert [torch.equal(a, b) for a, b in zip(whole, prior, strict=True)] == free
    other = conditioned([[3, END]], seed=8).at(streams[:1], 0, VOCAB)
    assert not torch.equal(noise.at(streams[:1], 0, VOCAB), other)

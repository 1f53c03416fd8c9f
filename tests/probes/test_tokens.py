"""Token arithmetic against enumerated distributions, and pieces of multibyte text."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from workbench.config import TrainingConfig
from workbench.models import token_pieces
from workbench.pocket.make import make_tokenizer
from workbench.probes.tokens import (
    clipped,
    k3,
    log_ratio_of_text,
    ratio,
    token_frame,
    token_terms,
)
from workbench.records import RolloutRow, TokenTerm
from workbench.training.objectives import grpo_terms


def rollout(**arrays: object) -> RolloutRow:
    settings = dict(
        step=1,
        purpose="train",
        policy="joint",
        sequence=0,
        prompt_id="p",
        prompt="1+1=?",
        completion="#2",
        answer="2",
        extracted="2",
        reward=1.0,
        correct=1.0,
        advantage=0.5,
        finished=True,
        token_ids=[5, 6, 2],
        tokens=["#", "2", "<eos>"],
        sampling_logprob=[log(0.5), log(0.25), log(0.8)],
    )
    return RolloutRow(**{**settings, **arrays})


def test_k3_averages_to_the_exact_kl() -> None:
    generator = np.random.default_rng(0)
    p, q = generator.dirichlet(np.ones(50), 2)
    exact = float((p * np.log(p / q)).sum())
    each = k3(np.log(p).tolist(), np.log(q).tolist())
    assert (each >= 0).all()
    assert float((p * each).sum()) == pytest.approx(exact, rel=1e-12)


def test_ratio_of_tokens_multiplies_to_the_ratio_of_the_text() -> None:
    now, then = [log(0.5), log(0.1)], [log(0.25), log(0.2)]
    assert ratio(now, then) == pytest.approx([2.0, 0.5])
    assert exp(log_ratio_of_text(now, then)) == pytest.approx(1.0)


def test_arrays_of_different_length_are_refused() -> None:
    with pytest.raises(AssertionError, match="one length"):
        ratio([0.0, 0.0], [0.0])


def test_only_the_far_side_is_clipped() -> None:
    ratios = np.array([0.5, 0.9, 1.1, 1.5])
    assert clipped(ratios, 1.0, 0.2).tolist() == [False, False, False, True]
    assert clipped(ratios, -1.0, 0.2).tolist() == [True, False, False, False]
    assert clipped(ratios, 0.0, 0.2).tolist() == [False] * 4


def test_token_frame_of_a_fully_measured_rollout() -> None:
    frame = token_frame(
        rollout(
            logprob=[log(0.5), log(0.5), log(0.8)],
            baseline_logprob=[log(0.75), log(0.25), log(0.8)],
            coordinator_off_logprob=[log(0.25), log(0.5), log(0.4)],
            reference_logprob=[log(0.5), log(0.25), log(0.8)],
            entropy=[0.7, 0.6, 0.5],
        )
    )
    assert frame["token"].tolist() == ["#", "2", "<eos>"]
    assert frame["probability"].tolist() == pytest.approx([0.5, 0.5, 0.8])
    assert frame["ratio"].tolist() == pytest.approx([1, 2, 1])
    assert frame["baseline_ratio"].tolist() == pytest.approx([1.5, 0.5, 1])
    assert frame["baseline_clipped"].tolist() == [1, 0, 0]
    assert frame["kl"].tolist() == pytest.approx([0, 0.5 - 1 - log(0.5), 0])
    assert frame["coordinator_difference"].tolist() == pytest.approx([log(2), 0, log(2)])
    assert frame["entropy"].tolist() == [0.7, 0.6, 0.5]


def test_a_frame_tells_each_tokens_terms() -> None:
    row = random_rollout(0, 0.7)
    terms = [token_terms(row, t, CONFIG, 40) for t in range(12)]
    frame = token_frame(row, CONFIG.clip_range, terms)
    for told, (joint, baseline) in zip(frame["why"], terms, strict=True):
        joint_lines, _, baseline_lines = told.partition("\nJ_RL of the RL-only baseline: ")
        assert joint.formula in joint_lines and joint.why in joint_lines
        assert baseline.formula in baseline_lines and baseline.why in baseline_lines
    assert (token_frame(row)["why"] == "").all()


def test_what_was_not_measured_is_nan() -> None:
    frame = token_frame(rollout())
    assert frame["probability"].tolist() == pytest.approx([0.5, 0.25, 0.8])
    missing = ["ratio", "baseline_ratio", "baseline_clipped", "kl", "coordinator_difference"]
    assert frame[[*missing, "entropy"]].isna().all(axis=None)


CONFIG = TrainingConfig(clip_range=0.15, kl_coef=0.2)


def random_rollout(seed: int, advantage: float, n: int = 12) -> RolloutRow:
    """Log-probs of policies so different that the clip acts on some tokens."""
    rng = np.random.default_rng(seed)

    def near(logprob: list[float]) -> list[float]:
        return [min(value + 0.3 * rng.normal(), -1e-3) for value in logprob]

    now = (-rng.exponential(1.0, n)).tolist()
    return rollout(
        advantage=advantage,
        token_ids=list(range(n)),
        tokens=["x"] * n,
        sampling_logprob=now,
        logprob=now,
        baseline_logprob=near(now),
        reference_logprob=near(now),
    )


def terms_of(row: RolloutRow, config: TrainingConfig, n_tokens: int) -> list[list[TokenTerm]]:
    """By loss, then by token."""
    found = [token_terms(row, t, config, n_tokens) for t in range(len(row.token_ids))]
    return [list(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
@pytest.mark.parametrize("advantage", [0.7, -1.3, 0.0])
def test_terms_add_up_to_the_objective_and_their_pushes_are_its_slopes(
    advantage: float, kl_coef: float
) -> None:
    config = CONFIG.model_copy(update={"kl_coef": kl_coef})
    row, n_tokens = random_rollout(0, advantage), 40
    reference = torch.tensor([row.reference_logprob], dtype=torch.float64)
    old = torch.tensor([row.logprob], dtype=torch.float64)
    for terms, logprob in zip(
        terms_of(row, config, n_tokens), (row.logprob, row.baseline_logprob), strict=True
    ):
        policy = torch.tensor([logprob], dtype=torch.float64, requires_grad=True)
        objective = grpo_terms(
            policy,
            old,
            torch.tensor([advantage], dtype=torch.float64),
            torch.ones_like(old),
            config.clip_range,
            reference,
            config.kl_coef,
        )
        whole = objective.objective_sum / n_tokens
        (slope,) = torch.autograd.grad(whole, policy)
        assert sum(term.value for term in terms) == pytest.approx(whole.item(), rel=1e-9)
        assert [term.push for term in terms] == pytest.approx(slope[0].tolist(), rel=1e-9)
        assert sum(term.clipped for term in terms) == objective.clipped_sum
        assert sum(term.kl for term in terms) == pytest.approx(objective.kl_sum, rel=1e-9)
        assert all(term.share == 1 / 40 for term in terms)


def test_one_tokens_terms_worked_out_by_hand() -> None:
    """π = 1/2, π_(θ̂+w) = 3/4, π_ref = 1/4, A = 0.7, ε = 0.2, kl_coef = 0.1, N = 40.

    Joint: ρ = 1, k3 = 1/2 − 1 − ln 1/2. Baseline: ρ = 3/2 is clipped to 1.2, k3 = 1/3 − 1 − ln 1/3.
    """
    row = rollout(
        advantage=0.7,
        logprob=[log(0.5)] * 3,
        baseline_logprob=[log(0.75)] * 3,
        reference_logprob=[log(0.25)] * 3,
    )
    config = TrainingConfig(clip_range=0.2, kl_coef=0.1)
    joint, baseline = token_terms(row, 1, config, 40)
    assert (joint.loss, baseline.loss) == ("rl", "baseline_rl")
    assert (joint.ratio, baseline.ratio) == (1.0, pytest.approx(1.5))
    assert (joint.clipped, baseline.clipped) == (False, True)
    assert joint.kl == pytest.approx(0.1931472)
    assert joint.value == pytest.approx((0.7 - 0.01931472) / 40)
    assert joint.push == pytest.approx((0.7 - 0.1 * (1 - 1 / 2)) / 40)
    assert baseline.kl == pytest.approx(0.4319456)
    assert baseline.value == pytest.approx((1.2 * 0.7 - 0.04319456) / 40)
    assert baseline.push == pytest.approx((0 - 0.1 * (1 - 1 / 3)) / 40)
    assert joint.why.startswith("pushed up") and baseline.why.startswith("pushed down: clipped")


def python(formula: str) -> str:
    """A filled-in formula as Python has it."""
    return formula.replace("−", "-").replace("·", "*")


def test_formulas_are_filled_in_with_numbers_that_give_the_value_and_the_push() -> None:
    seen = set()
    for seed, advantage in enumerate((0.7, -1.3, 0.0)):
        for terms in terms_of(random_rollout(seed, advantage), CONFIG, 40):
            for term in terms:
                _, filled, value = python(term.formula).split(" = ")
                assert eval(filled) == pytest.approx(term.value, rel=2e-2, abs=1e-4)
                assert float(value) == pytest.approx(term.value, rel=1e-3)
                words, _, slope = term.why.rpartition("; ")
                _, filled, push = python(slope).split(" = ")
                assert eval(filled) == pytest.approx(term.push, rel=2e-2, abs=1e-4)
                assert float(push) == pytest.approx(term.push, rel=1e-3)
                direction = "pushed up" if term.push > 0 else "pushed down"
                assert words.startswith(direction)
                assert ("clipped" in words) == term.clipped
                seen.add((direction, term.clipped))
    assert len(seen) == 4


def test_words_say_when_the_pull_to_the_start_decides() -> None:
    def why(advantage: float, baseline: float, reference: float) -> str:
        row = rollout(
            advantage=advantage,
            logprob=[-1.0] * 3,
            baseline_logprob=[baseline] * 3,
            reference_logprob=[reference] * 3,
        )
        return token_terms(row, 0, CONFIG, 10)[1].why

    assert "the rewards of its group are equal; what is left is the pull" in why(0.0, -1.0, -2.0)
    assert "clipped, since ρ = 1.649" in why(1.0, -0.5, -0.5)
    assert why(1.0, -0.5, -0.5).startswith("not pushed")
    assert "but the pull towards the starting policy is stronger" in why(0.01, -1.0, -3.0)
    assert why(0.5, -1.0, -1.0).startswith("pushed up: its reward lies above its group's mean")


def test_without_a_starting_policy_or_a_baseline_there_is_one_term_and_no_pull() -> None:
    row = rollout(logprob=[-1.0, -2.0, -0.5], advantage=0.5)
    (term,) = token_terms(row, 1, CONFIG, 10)
    assert (term.loss, term.ratio, term.value, term.push) == ("rl", 1.0, 0.05, 0.05)
    assert np.isnan(term.kl)
    assert "k3" not in term.formula


def test_a_rollout_that_nothing_was_trained_on_has_no_terms() -> None:
    assert token_terms(rollout(), 0, CONFIG, 10) == []


TEXTS = ["plain", "é😀 ok\n", "🧑‍🚀", "日本語 12", "", "\ufffd#"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_bytes_put_a_character_at_its_last_token(text: str) -> None:
    tokenizer = make_tokenizer()
    pieces = token_pieces(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert len(pieces) == len(text.encode())
    assert "".join(pieces) == text


def test_pieces_of_an_emoji() -> None:
    tokenizer = make_tokenizer()
    ids = [*tokenizer.encode("a😀b", add_special_tokens=False), 2]
    assert token_pieces(tokenizer, ids) == ["a", "", "", "", "😀", "b", "<eos>"]


def test_a_broken_character_is_shown_as_such_and_spoils_no_other() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("😀7😀", add_special_tokens=False)
    assert token_pieces(tokenizer, ids[1:-1]) == [
        "",
        "",
        "",
        "\ufffd\ufffd\ufffd7",
        "",
        "",
        "\ufffd",
    ]


def test_pieces_keep_spaces_that_a_tokenizer_drops_at_the_start() -> None:
    """A SentencePiece-style tokenizer decodes '▁world' alone as 'world'."""
    vocab = {"▁Hello": 0, "▁world": 1, "!": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = [0, 1, 2, *(3 + byte for byte in "😀".encode()), 1]
    assert token_pieces(tokenizer, ids) == ["Hello", " world", "!", "", "", "", "😀", " world"]

"""Gain estimators against enumeration on categorical policies, and draws from a tiny model."""

from __future__ import annotations

from math import isnan, nan

import pytest
import torch
from torch import Tensor

from workbench.policy import Policy
from workbench.probes.gain import (
    batch_baseline_reward,
    batch_gain,
    draw_paired,
    helped_hurt,
    p_value,
    paired_gain,
    paired_gain_rows,
    shared_gain,
    shared_gain_rows,
    student_t_tail,
)
from workbench.records import GainRow
from workbench.sampling import Noise
from workbench.tasks.arithmetic import extract_answer
from workbench.tasks.problem import Demonstration, Problem

V = 12
REWARD_V = (torch.arange(V) % 3 == 0).double()


def policies(n_prompts: int, shift: float) -> tuple[Tensor, Tensor, Tensor]:
    """(joint log-probs, baseline log-probs, exact gain) of categorical policies, one a prompt.

    The baseline is worse on every prompt, and differs at random besides.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, n_prompts, V, generator=generator, dtype=torch.float64)
    joint = noise[0].log_softmax(1)
    baseline = (joint + shift * (noise[1] - REWARD_V)).log_softmax(1)
    return joint, baseline, (joint.exp() - baseline.exp()) @ REWARD_V


def draw(joint: Tensor, baseline: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rewards and log-ratios (P, n) of rollouts of the joint policies."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(joint.exp(), n, replacement=True, generator=generator)
    return REWARD_V[chosen], (baseline - joint).gather(1, chosen)


def row(gain: float, error: float, n: int = 8, estimator: str = "paired", ess: float = nan):
    return GainRow(1, estimator, "p", "", 0.5, 0.5, gain, error, ess, n)


def test_shared_gain_converges_to_the_enumerated_gain() -> None:
    joint, baseline, exact = policies(6, 0.6)
    found = shared_gain(*draw(joint, baseline, 200_000, 1))
    torch.testing.assert_close(found.gain, exact, rtol=0, atol=0.004)
    torch.testing.assert_close(found.baseline_reward, baseline.exp() @ REWARD_V, rtol=0, atol=0.004)
    # ESS/G tends to 1 / E_joint[w²]
    share = 1 / ((2 * baseline - joint).exp().sum(1))
    torch.testing.assert_close(found.ess / 200_000, share, rtol=0.03, atol=0)


def test_shared_standard_error_covers() -> None:
    """1500 groups of 256: 95 % intervals hold the exact gain in 92 to 98 % of the groups."""
    joint, baseline, exact = policies(3, 0.6)
    repeat = [tensor.repeat_interleave(500, 0) for tensor in (joint, baseline, exact)]
    found = shared_gain(*draw(repeat[0], repeat[1], 256, 2))
    covered = ((found.gain - repeat[2]).abs() <= 1.96 * found.standard_error).double().mean()
    assert 0.92 <= covered <= 0.98
    spread = found.gain.view(3, 500).std(1)
    error = found.standard_error.view(3, 500).square().mean(1).sqrt()
    torch.testing.assert_close(error, spread, rtol=0.12, atol=0)


def test_shared_standard_error_equals_the_jackknife() -> None:
    joint, baseline, _ = policies(1, 0.5)
    rewards, log_ratios = draw(joint, baseline, 400, 3)
    left_out = []
    for g in range(400):
        keep = [i for i in range(400) if i != g]
        r, w = rewards[0, keep], log_ratios[0, keep].exp()
        left_out.append(r.mean() - (w * r).sum() / w.sum())
    spread = torch.stack(left_out)
    jackknife = (399 / 400 * (spread - spread.mean()).square().sum()).sqrt()
    torch.testing.assert_close(
        shared_gain(rewards, log_ratios).standard_error[0], jackknife, rtol=0.02, atol=0
    )


def test_equal_policies_have_no_gain_and_no_error() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    found = shared_gain(rewards, torch.zeros(1, 4))
    assert found.gain.item() == 0
    assert found.standard_error.item() == 0
    assert found.ess.item() == pytest.approx(4)


def test_a_group_of_few_effective_rollouts_is_blank() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    log_ratios = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])
    blank, kept = shared_gain_rows(1, [Problem("a", "1", "1")] * 2, rewards, log_ratios)
    assert isnan(blank.gain) and isnan(blank.standard_error) and isnan(blank.baseline_reward)
    assert blank.ess == pytest.approx(1, abs=0.01)
    assert blank.joint_reward == 0.5
    assert not isnan(kept.gain)


def test_log_ratios_of_long_texts_do_not_overflow() -> None:
    rewards = torch.tensor([[1.0, 0.0, 1.0]])
    log_ratios = torch.tensor([[0.1, 0.0, 0.2]], dtype=torch.float64)
    near, far = shared_gain(rewards, log_ratios), shared_gain(rewards, log_ratios + 2000)
    torch.testing.assert_close(far.gain, near.gain)
    torch.testing.assert_close(far.standard_error, near.standard_error)


def test_batch_gain_is_closer_than_the_mean_of_small_groups_and_covers() -> None:
    joint, baseline, exact = policies(16, 1.0)
    truth = exact.mean().item()
    found = [draw(joint, baseline, 8, seed) for seed in range(600)]
    batches = [batch_gain(*both) for both in found]
    groups = torch.stack([shared_gain(*both).gain.nanmean() for both in found])
    gains = torch.tensor([b.gain for b in batches])
    covered = [abs(b.gain - truth) <= 1.96 * b.standard_error for b in batches]
    assert abs(gains.mean().item() - truth) < 0.005
    assert abs(gains.mean().item() - truth) < abs(groups.mean().item() - truth)
    assert 0.90 <= sum(covered) / 600 <= 0.98
    assert batch_baseline_reward(*found[0]) == batches[0].baseline_reward


def test_paired_gain_is_the_mean_difference_and_covers() -> None:
    generator = torch.Generator().manual_seed(4)
    joint = (torch.rand(3000, 24, generator=generator) < 0.6).double()
    flipped = torch.rand(3000, 24, generator=generator) < 0.3
    baseline = torch.where(flipped, 1 - joint, joint)  # coupled; mean 0.6·0.7 + 0.4·0.3
    found = paired_gain(joint, baseline)
    torch.testing.assert_close(found.gain, joint.mean(1) - baseline.mean(1))
    covered = (found.gain - (0.6 - 0.54)).abs() <= 2.069 * found.standard_error  # t, 23 dof
    assert 0.93 <= covered.double().mean() <= 0.97


def test_paired_interval_is_agresti_and_mins() -> None:
    """Their cells b + 1/2 and c + 1/2 of n + 2 pairs, put into Wald's interval."""
    b, c, n = 5.5, 1.5, 10.0  # 5 won, 1 lost, 2 ties
    joint = torch.tensor([[1.0] * 5 + [0.0] + [1.0, 0.0]])
    baseline = torch.tensor([[0.0] * 5 + [1.0] + [1.0, 0.0]])
    found = paired_gain(joint, baseline)
    centre = (b - c) / n
    reach = 1.96 * ((b + c) - (b - c) ** 2 / n) ** 0.5 / n
    assert found.low.item() == pytest.approx(centre - reach)
    assert found.high.item() == pytest.approx(centre + reach)


def test_paired_interval_covers_where_the_standard_error_does_not() -> None:
    """3000 prompts of 8 pairs, of which 30 % differ."""
    generator = torch.Generator().manual_seed(6)
    joint = (torch.rand(3000, 8, generator=generator) < 0.6).double()
    flipped = torch.rand(3000, 8, generator=generator) < 0.3
    found = paired_gain(joint, torch.where(flipped, 1 - joint, joint))
    truth = 0.6 - 0.54
    covered = (found.low <= truth) & (truth <= found.high)
    plain = (found.gain - truth).abs() <= 1.96 * found.standard_error
    assert 0.93 <= covered.double().mean() <= 0.985
    assert plain.double().mean() < 0.93


@pytest.mark.parametrize(
    ("t", "dof"), [(12.706, 1), (4.303, 2), (3.182, 3), (2.776, 4), (2.365, 7), (1.984, 100)]
)
def test_student_t_tail_equals_printed_tables(t: float, dof: int) -> None:
    assert student_t_tail(t, dof) == pytest.approx(0.05, abs=5e-5)
    assert student_t_tail(-t, dof) == student_t_tail(t, dof)


def test_a_group_without_variance_is_evidence_only_as_far_as_its_size_allows() -> None:
    assert p_value(row(0.0, 0.0)) == 1  # nothing differed
    assert p_value(row(1.0, 0.0, n=8)) == 2**-7  # eight of eight
    assert p_value(row(1.0, 0.0, n=4)) == 2**-3  # four of four: not enough
    assert p_value(row(0.5, 0.0, estimator="shared", ess=8)) == 1
    assert isnan(p_value(row(nan, nan)))
    assert helped_hurt([row(1.0, 0.0, n=5)] * 3, corrected=False) == (0, 0)


def test_helped_hurt_counts_by_sign_and_corrects_for_many_prompts() -> None:
    helped, hurt, unclear = row(0.9, 0.1, n=16), row(-0.9, 0.1, n=16), row(0.3, 0.13, n=16)
    assert p_value(unclear) == pytest.approx(0.036, abs=0.001)
    rows = [helped, hurt, hurt, unclear, row(nan, nan), *[row(0.0, 0.0)] * 12]
    assert helped_hurt(rows, corrected=False) == (2, 2)
    assert helped_hurt(rows) == (1, 2)
    assert helped_hurt([]) == (0, 0)


def test_helped_hurt_seldom_counts_what_is_not_there() -> None:
    """Differences of either sign alike: at most 8 % of prompts pass alone, 10 % of probe sets."""
    generator = torch.Generator().manual_seed(5)
    problems = [Problem(str(i), "", "") for i in range(16)]
    alone, sets = 0, 0
    for _ in range(100):
        sign = torch.where(torch.rand(16, 16, generator=generator) < 0.5, 1.0, 0.0)
        differs = (torch.rand(16, 16, generator=generator) < 0.5).double()
        rows = paired_gain_rows(1, problems, sign * differs, (1 - sign) * differs)
        alone += sum(helped_hurt(rows, corrected=False))
        sets += sum(helped_hurt(rows)) > 0
    assert alone <= 0.08 * 1600
    assert sets <= 10


class LengthTask:
    """Right where the completion's length is even; there are no demonstrations."""

    def problems(self, split: str) -> list[Problem]:
        return [Problem("p-0", "1+2=?", "3"), Problem("p-1", "12+7-30=?", "-11")]

    def demonstrations(self) -> list[Demonstration]:
        return []

    def reward(self, completion: str, problem: Problem) -> float:
        return float(len(completion) % 2 == 0)

    def extract(self, completion: str) -> str | None:
        return extract_answer(completion)


def test_paired_rollouts_share_noise_and_leave_the_global_state_alone(policy: Policy) -> None:
    task = LengthTask()
    problems = task.problems("validation")
    state = torch.get_rng_state()
    gain, rollouts = draw_paired(policy, problems, task, Noise(0, 7, "paired"), 6, 12, 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    joint, baseline = rollouts[:12], rollouts[12:]
    assert {r.policy for r in joint} == {"joint"} and {r.policy for r in baseline} == {"baseline"}
    assert [r.sequence for r in joint] == [r.sequence for r in baseline] == list(range(12))
    assert [r.prompt_id for r in joint] == ["p-0"] * 6 + ["p-1"] * 6
    assert all(r.step == 7 and r.purpose == "paired" for r in rollouts)
    assert all(len(r.tokens) == len(r.token_ids) == len(r.sampling_logprob) for r in rollouts)
    for i, found in enumerate(gain):
        mine = slice(6 * i, 6 * i + 6)
        a, b = [r.reward for r in joint[mine]], [r.reward for r in baseline[mine]]
        assert found.gain == pytest.approx(sum(a) / 6 - sum(b) / 6)
        assert (found.prompt_id, found.n_rollouts) == (problems[i].id, 6)
    # the same noise on the same weights gives the same texts
    again = draw_paired(policy, problems, task, Noise(0, 7, "paired"), 6, 12, 1.0)[1]
    assert [r.token_ids for r in again] == [r.token_ids for r in rollouts]
    policy.baseline = policy.model
    same = draw_paired(policy, problems, task, Noise(0, 7, "paired"), 6, 12, 1.0)[1]
    assert [r.token_ids for r in same[:12]] == [r.token_ids for r in same[12:]]

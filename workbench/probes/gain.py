"""Cooperative gain of a prompt: mean reward of the joint policy minus that of the RL-only baseline.

J_i(θ,w) − J_i(θ̂,w) for prompt i, by two estimators (algorithm.md, section 4):

*shared* – free. The step's own G rollouts y_g ~ π_(θ+w), reweighted to the baseline:

    w_g = π_(θ̂+w)(y_g) / π_(θ+w)(y_g)           over whole sequences
    μ   = Σ w_g r_g / Σ w_g                      self-normalised within the group
    gain = r̄ − μ,   ESS = (Σ w_g)² / Σ w_g²

The mean and the weighted mean share their rollouts, so their errors largely cancel; the standard
error is that of the DIFFERENCE. To first order (delta method for the ratio μ) rollout g moves it by

    ψ_g = (r_g − r̄) − (w_g/w̄)(r_g − μ),   Σ ψ_g = 0,   se² = Σ ψ_g² / (G(G−1))

Equal policies (all w_g = 1) give gain 0 with standard error 0: exactly right. Below ESS/G = 0.3 the
gain is blank (NaN). [definition: paper; estimator, error and blanking: ours]

Weaknesses: μ is pulled towards r̄ by O(1/G), so small groups show a gain that is too small (a
fifth to two fifths at G = 8 where policies differ visibly; `batch_gain` does not suffer from it)
and an interval that covers too little (about 75 % instead of 95 % at G = 8); a group whose rewards
are all equal says gain 0 with standard error 0 whatever the truth, which is no evidence; the
blanked prompts are those on which the policies differ most. That is why *paired* exists:

*paired* – K rollouts a side on the same Gumbel noise; gain = mean of the K reward differences, its
standard error theirs. Unbiased. Most pairs are equal, so at K = 8 the interval ±1.96 se covers in
about 80 % instead of 95 % of cases (where no pair happens to differ its width is 0). A row's
interval is Agresti and Min's instead: half a pair won, half a pair lost and a tie more are added,

    n = K+2,   c = Σ d/n,   c ± 1.96·√( ((Σ d² + 1)/n − c²)/n )          rewards in [0, 1]

which covers in 95 to 97 % on average over prompts (benchmarks/coverage.py), and more where policies
hardly differ. Source: Agresti and Min, "Simple improved confidence intervals for comparing matched
proportions", Statistics in Medicine 24 (2005). [its use here: ours]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import atan, cos, isnan, nan, pi, sin, sqrt
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from workbench.policy import Policy
from workbench.probes.drawing import complete_each
from workbench.probes.exact import MOST_PAIRS, exact_p
from workbench.records import GainRow, RolloutRow
from workbench.sampling import Completions, Noise
from workbench.tasks import score
from workbench.tasks.environment import others
from workbench.tasks.problem import Problem, Task

MIN_ESS_SHARE = 0.3
"""Blank below this effective sample size, as a share of the rollouts."""


PairedPolicy = Literal["joint", "baseline"]


class SharedGain(NamedTuple):
    """The shared estimate of each of P prompts, all float64 (P,)."""

    joint_reward: Tensor
    baseline_reward: Tensor
    """μ; NaN where blanked, like the next two."""
    gain: Tensor
    standard_error: Tensor
    ess: Tensor


class PairedGain(NamedTuple):
    """The paired estimate of each of P prompts, all float64 (P,)."""

    joint_reward: Tensor
    baseline_reward: Tensor
    gain: Tensor
    standard_error: Tensor
    low: Tensor
    """95 % interval of the gain; see the module's docstring."""
    high: Tensor


class BatchGain(NamedTuple):
    """The shared estimate over a whole batch; NaN where blanked."""

    baseline_reward: float
    gain: float
    standard_error: float
    ess: float


class HelpedHurt(NamedTuple):
    """Prompts on which the joint policy is better, and worse, than the RL-only baseline."""

    helped: int
    hurt: int


def shared_gain(rewards_PG: Tensor, log_ratios_PG: Tensor) -> SharedGain:
    """Gain of each prompt from rollouts of the joint policy alone; see the module's docstring.

    rewards_PG: r, (P, G), G ≥ 2. log_ratios_PG: log w, summed over the tokens of each rollout.
    """
    rewards = rewards_PG.double()
    share = log_ratios_PG.double().softmax(1)  # w / Σ w
    n = rewards.shape[1]
    joint = rewards.mean(1)
    baseline = (share * rewards).sum(1)
    moved = rewards - joint[:, None] - n * share * (rewards - baseline[:, None])  # ψ
    error = (moved.square().sum(1) / (n * (n - 1))).sqrt()
    ess = 1 / share.square().sum(1)
    blank = ess < MIN_ESS_SHARE * n
    return SharedGain(
        joint,
        baseline.masked_fill(blank, nan),
        (joint - baseline).masked_fill(blank, nan),
        error.masked_fill(blank, nan),
        ess,
    )


def batch_gain(rewards_PG: Tensor, log_ratios_PG: Tensor) -> BatchGain:
    """Mean gain over the batch's prompts, from rollouts of the joint policy alone.

    Self-normalised over all P·G rollouts at once: since w has mean 1 on every prompt, Σ w r / Σ w
    is consistent for the mean over the prompts, with a bias of O(1/PG) where the mean of the
    prompts' own gains has O(1/G). Prompts are taken as given: se² = Σ_p var_g(ψ_pg) / (P² G), with
    ψ_pg = r_pg − (w_pg/w̄)(r_pg − μ). Blank (NaN) where ESS/PG is below 0.3.
    """
    rewards, n_prompts, n = rewards_PG.double(), *rewards_PG.shape
    share = log_ratios_PG.double().flatten().softmax(0).view(n_prompts, n)  # w / Σ w
    ess = float(1 / share.square().sum())
    if ess < MIN_ESS_SHARE * n_prompts * n:
        return BatchGain(nan, nan, nan, ess)
    baseline = (share * rewards).sum()
    moved = rewards - n_prompts * n * share * (rewards - baseline)  # ψ
    error = (moved.var(1).sum() / n).sqrt() / n_prompts
    return BatchGain(float(baseline), float(rewards.mean() - baseline), float(error), ess)


def batch_baseline_reward(rewards_PG: Tensor, log_ratios_PG: Tensor) -> float:
    """Mean reward of the RL-only baseline over the batch's prompts, by `batch_gain`."""
    return batch_gain(rewards_PG, log_ratios_PG).baseline_reward


def paired_gain(joint_PK: Tensor, baseline_PK: Tensor) -> PairedGain:
    """Gain of each prompt from K ≥ 2 pairs of rewards on common random numbers, both (P, K)."""
    joint, baseline = joint_PK.double(), baseline_PK.double()
    difference = joint - baseline
    error = difference.std(1) / sqrt(difference.shape[1])
    n = difference.shape[1] + 2
    centre = difference.sum(1) / n
    reach = 1.96 * (((difference.square().sum(1) + 1) / n - centre.square()) / n).sqrt()
    return PairedGain(
        joint.mean(1),
        baseline.mean(1),
        difference.mean(1),
        error,
        centre - reach,
        centre + reach,
    )


def shared_gain_rows(
    step: int, problems_P: Sequence[Problem], rewards_PG: Tensor, log_ratios_PG: Tensor
) -> list[GainRow]:
    """`shared_gain` as one row a prompt; its interval is ±1.96 standard errors."""
    columns = [column.tolist() for column in shared_gain(rewards_PG, log_ratios_PG)]
    n = rewards_PG.shape[1]
    rows = [
        GainRow(step, "shared", p.id, p.prompt, joint, baseline, gain, error, ess, n)
        for p, joint, baseline, gain, error, ess in zip(problems_P, *columns, strict=True)
    ]
    return [
        replace(
            row,
            low=row.gain - 1.96 * row.standard_error,
            high=row.gain + 1.96 * row.standard_error,
            p_value=p_value(row),
        )
        for row in rows
    ]


def paired_gain_rows(
    step: int, problems_P: Sequence[Problem], joint_PK: Tensor, baseline_PK: Tensor
) -> list[GainRow]:
    """`paired_gain` as one row a prompt."""
    columns = [column.tolist() for column in paired_gain(joint_PK, baseline_PK)]
    k = joint_PK.shape[1]
    rows = [
        GainRow(step, "paired", p.id, p.prompt, joint, baseline, gain, error, nan, k, low, high)
        for p, joint, baseline, gain, error, low, high in zip(problems_P, *columns, strict=True)
    ]
    return [replace(row, p_value=p_value(row)) for row in rows]


def student_t_tail(t: float, dof: int) -> float:
    """P(|T| > |t|) of Student's t with a whole number of degrees of freedom.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = atan(abs(t) / sqrt(dof))
    if dof == 1:
        return 1 - 2 * angle / pi
    term = cos(angle) if dof % 2 else 1.0
    total = term
    for i in range(2 + dof % 2, dof - 1, 2):
        term *= (i - 1) / i * cos(angle) ** 2
        total += term
    if dof % 2:
        return 1 - 2 / pi * (angle + sin(angle) * total)
    return 1 - sin(angle) * total


def p_value(row: GainRow) -> float:
    """Two-sided p-value of 'the gain is 0'; NaN for a blanked row.

    paired: where each pair is won, lost or tied the exact test of exact.py, which is never too
    small; all K won or lost give 2^(1−K), so five pairs never decide. Other rewards, and more
    pairs than it goes through: Student's t with K − 1 degrees of freedom, not below 2^(1−K).

    shared: Student's t, the effective sample size taken for the rollouts. A zero standard error is
    no evidence: p = 1.
    """
    if isnan(row.gain):
        return nan
    if row.gain == 0 or (row.standard_error == 0 and row.estimator == "shared"):
        return 1.0
    if row.estimator == "shared":
        return student_t_tail(row.gain / row.standard_error, max(2, int(row.ess)) - 1)
    n = row.n_rollouts
    net = n * row.gain
    differing = n * (n - 1) * row.standard_error**2 + n * row.gain**2  # Σ d²
    whole = all(abs(x - round(x)) < 1e-6 for x in (net, differing))
    if whole and n <= MOST_PAIRS and abs(net) <= differing + 1e-6 and differing <= n + 1e-6:
        net, differing = round(net), round(differing)
        if (net + differing) % 2 == 0:
            return exact_p((differing + net) // 2, (differing - net) // 2, n)
    if row.standard_error == 0:
        return 2.0 ** (1 - n)
    return max(student_t_tail(row.gain / row.standard_error, n - 1), 2.0 ** (1 - n))


def helped_hurt(rows: Sequence[GainRow], level: float = 0.05, corrected: bool = True) -> HelpedHurt:
    """Count the prompts whose gain is not 0, by its sign; blanked rows count as neither.

    corrected: control the false discovery rate at `level` over the prompts (Benjamini and Hochberg
    1995); otherwise count every prompt whose own 1 − level interval excludes 0, of which a share of
    `level` is expected from noise alone.
    """
    tested = sorted((p_value(row), row.gain) for row in rows if not isnan(row.gain))
    limit = level
    if corrected:
        m = len(tested)
        passed = [p for k, (p, _) in enumerate(tested, start=1) if p <= level * k / m]
        limit = max(passed, default=-1.0)
    gains = [gain for p, gain in tested if p <= limit]
    return HelpedHurt(sum(g > 0 for g in gains), sum(g < 0 for g in gains))


def policies_agree(policy: Policy) -> bool:
    """Whether the RL-only baseline's θ̂ is θ, to the last bit."""
    policy.wait()
    return all(
        torch.equal(theta.to(policy.baseline_base[n].device), policy.baseline_base[n])
        for n, theta in policy.base.items()
    )


def draw_paired(
    policy: Policy,
    problems: Sequence[Problem],
    task: Task,
    noise: Noise,
    rollouts: int,
    max_new_tokens: int,
    temperature: float,
    batch: int = 256,
) -> tuple[list[GainRow], list[RolloutRow]]:
    """Draw K = `rollouts` completions a problem from θ+w and from θ̂+w on the same noise.

    Rollout k of problem i is noise stream i·K + k under both policies. Returns one gain row a
    problem and 2·P·K rollout rows, the joint policy's first; `noise.step` is their step. Where θ̂
    equals θ, as at the start of a run, both write the same texts: they are drawn once.
    """
    repeated = [problem for problem in problems for _ in range(rollouts)]
    rows: list[RolloutRow] = []
    rewards = []
    one = policies_agree(policy)
    for name in get_args(PairedPolicy):
        if name == "joint" or not one:
            done = complete_each(
                policy,
                name,
                task,
                [problem.prompt for problem in problems],
                rollouts=rollouts,
                noise=noise,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                batch=batch,
            )
        found = [
            _rollout(policy, task, noise.step, name, i, repeated[i], done)
            for i in range(len(repeated))
        ]
        rows += found
        rewards.append(torch.tensor([row.correct for row in found]).view(len(problems), rollouts))
    return paired_gain_rows(noise.step, problems, rewards[0], rewards[1]), rows


def _rollout(
    policy: Policy,
    task: Task,
    step: int,
    name: PairedPolicy,
    i: int,
    problem: Problem,
    done: Completions,
) -> RolloutRow:
    found = score(task, done.texts[i], problem)
    return RolloutRow(
        step=step,
        purpose="paired",
        policy=name,
        sequence=i,
        prompt_id=problem.id,
        prompt=problem.prompt,
        completion=done.texts[i],
        answer=problem.answer,
        extracted=found.extracted,
        reward=found.reward,
        correct=found.reward,
        advantage=nan,
        finished=done.finished[i],
        token_ids=done.token_ids[i],
        tokens=policy.pieces(done.token_ids[i]),
        sampling_logprob=done.logprob[i],
        reward_parts=dict(found.parts),
        reward_error=found.error,
        written_by=others(done.writers[i]) if done.writers else [],
    )

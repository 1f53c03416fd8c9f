"""The probes phase of a step: from what the passes found to the numbers of its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isnan, nan, sqrt

import torch
from torch import Tensor

from workbench.config import RunConfig, due
from workbench.placement import time_when_done
from workbench.policy import Policy
from workbench.probes.coordinator import coordinator_rows
from workbench.probes.evaluation import greedy_accuracy, set_accuracy
from workbench.probes.gain import (
    batch_gain,
    draw_paired,
    helped_hurt,
    policies_agree,
    shared_gain_rows,
)
from workbench.records import (
    SET_ACCURACY,
    AlignmentRow,
    CoordinatorRow,
    DemonstrationRow,
    GainRow,
    RolloutRow,
)
from workbench.sampling import Noise, TokenBatch, batch_logprobs
from workbench.tasks.environment import POLICY, others
from workbench.tasks.problem import Problem, Task
from workbench.tasks.scoring import Score
from workbench.tasks.sets import ScheduledSet
from workbench.training.aligned import aligned, alignment_seconds
from workbench.training.batches import RolloutBatch
from workbench.training.gradients import RLPass
from workbench.training.passes import Passes


@dataclass
class Measured:
    """The tables and metrics of one step."""

    device: torch.device
    """What it is measured on."""
    metrics: dict[str, float] = field(default_factory=dict)
    rollouts: list[RolloutRow] = field(default_factory=list)
    gain: list[GainRow] = field(default_factory=list)
    demonstrations: list[DemonstrationRow] = field(default_factory=list)
    alignment: list[AlignmentRow] = field(default_factory=list)
    coordinator: list[CoordinatorRow] = field(default_factory=list)

    @contextmanager
    def timed(self, probe: str) -> Iterator[None]:
        """Add what the block takes to 'seconds/probe/<probe>'."""
        started = time_when_done(self.device)
        yield
        self.spend(probe, time_when_done(self.device) - started)

    def spend(self, probe: str, seconds: float) -> None:
        """Add to 'seconds/probe/<probe>'; see `records.PROBES`."""
        name = f"seconds/probe/{probe}"
        self.metrics[name] = self.metrics.get(name, 0.0) + seconds


def measure(
    step: int,
    config: RunConfig,
    policy: Policy,
    task: Task,
    passes: Passes,
    sets: Sequence[ScheduledSet] = (),
) -> Measured:
    """Run the probes that are due at this step; `sets` are evaluated where they are."""
    m = Measured(policy.device)
    probes = config.probes
    if passes.per_rollout is not None:
        m.spend("rollout_alignment", passes.per_rollout.seconds)
    if passes.batch is not None and passes.rl is not None:
        _rollout_metrics(m, passes.batch, passes.rl, config)
        off = None
        if due(probes.token_views_every, step) and passes.trains_coordinator:
            with m.timed("token_views"), policy.coordinator_scale(0.0):
                off = passes.rl.logprobs_NC
                if not policy.coordinator_is_zero:  # else it is off already
                    off = batch_logprobs(
                        policy.of("joint"),
                        passes.batch.tokens,
                        config.sampling.temperature,
                        config.training.micro_batch_tokens,
                    )
        m.rollouts += rollout_rows(step, policy, passes, off)
    if passes.baseline_rl is not None:
        _baseline(m, step, config, passes)
        if due(probes.paired_gain_every, step):
            with m.timed("paired_gain"):
                _paired(m, step, config, policy, task)
    if passes.sft is not None:
        m.metrics["loss/sft"] = -passes.sft.objective
        m.metrics["grad_norm/sft"] = passes.sft.gradient.base.norm()
        m.demonstrations += demonstration_rows(step, passes)
    if passes.per_demonstration is not None:
        m.metrics["alignment/skipped_share"] = passes.per_demonstration.skipped
        with m.timed("alignment"):
            rows, metrics = aligned(step, passes)
            m.alignment += rows
            m.metrics |= metrics
        m.spend("alignment", alignment_seconds(passes))
    if passes.trains_coordinator and due(probes.coordinator_every, step):
        with m.timed("coordinator"):
            m.coordinator += coordinator_rows(step, policy)
        delta = sqrt(sum(row.delta_norm**2 for row in m.coordinator))
        m.metrics["coordinator/ratio"] = delta / sqrt(
            sum(row.weight_norm**2 for row in m.coordinator)
        )
    if due(probes.evaluate_every, step):
        with m.timed("evaluation"):
            _evaluate(m, config, policy, task, passes.baseline_rl is not None)
    for chosen in sets:
        if due(chosen.config.every, step):
            label = chosen.config.label
            with m.timed(f"evaluation/{label}"):
                m.metrics[f"{SET_ACCURACY}{label}"] = set_accuracy(policy, chosen, config)
    return m


def _evaluate(
    m: Measured, config: RunConfig, policy: Policy, task: Task, has_baseline: bool
) -> None:
    for name, split in (("eval/accuracy", "validation"), ("eval/hard_accuracy", "hard")):
        problems = list(task.problems(split))[: config.probes.evaluation_prompts]  # type: ignore[arg-type]
        if problems:
            m.metrics[name] = greedy_accuracy(policy, "joint", task, problems, config)
            m.metrics[name.replace("accuracy", "problems")] = float(len(problems))
            if split == "validation" and has_baseline:
                m.metrics["eval/baseline_accuracy"] = (
                    m.metrics[name]
                    if policies_agree(policy)
                    else greedy_accuracy(policy, "baseline", task, problems, config)
                )


def reward_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """Mean of each reward's part, and the share of completions where one failed.

    Nothing where the task's own reward is the only one.
    """
    found = {
        f"rewards/{name}/mean": sum(score.parts[name] for score in scores) / len(scores)
        for name in scores[0].parts
    }
    if found:
        found["reward/errors"] = sum(bool(score.error) for score in scores) / len(scores)
    return found


def _rollout_metrics(m: Measured, batch: RolloutBatch, rl: RLPass, config: RunConfig) -> None:
    lengths = [len(ids) for ids in batch.completions_N.token_ids]
    finished = batch.completions_N.finished
    std_P = batch.rewards_PG.std(1)
    m.metrics |= {
        "reward": float(batch.rewards_PG.mean()),
        "reward_std": float(std_P.mean()),
        "frac_reward_zero_std": float((std_P == 0).float().mean()),
        "reward/correct": float(batch.correct_PG.mean()),
        "kl": rl.kl,
        "entropy": float(rl.entropy_NC.sum() / batch.tokens.n_tokens),
        "clip_ratio/region_mean": rl.clip_ratio,
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1 - sum(finished) / len(finished),
        "loss/rl": -rl.objective,
        "grad_norm/rl": rl.gradient.base.norm(),
        **batch.rollouts.metrics,
        **reward_metrics(batch.scores_N),
    }
    if batch.reference_logprobs_NC is None:
        del m.metrics["kl"]


def _baseline(m: Measured, step: int, config: RunConfig, passes: Passes) -> None:
    batch, rl, baseline = passes.batch, passes.rl, passes.baseline_rl
    assert batch is not None and rl is not None and baseline is not None
    m.metrics |= {
        "baseline/clip_ratio": baseline.clip_ratio,
        "baseline/kl": baseline.kl,
        "loss/baseline_rl": -baseline.objective,
    }
    if due(config.probes.shared_gain_every, step):
        with m.timed("shared_gain"):
            _shared(m, step, batch, (baseline.logprobs_NC - rl.logprobs_NC).sum(1))


def _shared(m: Measured, step: int, batch: RolloutBatch, log_ratios_N: Tensor) -> None:
    own = batch.own_P  # importance weights are those of the policy's own words only
    if not own:
        return
    rewards_PG = batch.correct_PG[own]
    log_ratios_PG = log_ratios_N.view(batch.correct_PG.shape)[own]
    problems = [batch.problems_P[p] for p in own]
    rows = shared_gain_rows(step, problems, rewards_PG, log_ratios_PG)
    m.gain += rows
    whole = batch_gain(rewards_PG, log_ratios_PG)
    m.metrics |= {
        "baseline/reward": whole.baseline_reward,
        "gain/shared": whole.gain,
        "gain/shared_se": whole.standard_error,
        "gain/ess": sum(row.ess for row in rows) / len(rows) / batch.group_size,
        "gain/blanked": sum(isnan(row.gain) for row in rows) / len(rows),
    }


def _paired(m: Measured, step: int, config: RunConfig, policy: Policy, task: Task) -> None:
    rows, rollouts = draw_paired(
        policy,
        probe_set(task, config),
        task,
        Noise(config.seed, step, "paired"),
        config.probes.paired_rollouts,
        config.sampling.max_new_tokens,
        config.sampling.temperature,
        config.sampling.sampling_batch,
    )
    m.gain += rows
    m.rollouts += rollouts
    helped, hurt = helped_hurt(rows)
    n = len(rows)
    m.metrics |= {
        "gain/paired": sum(row.gain for row in rows) / n,
        "gain/paired_se": sqrt(sum(row.standard_error**2 for row in rows)) / n,
        "gain/helped": float(helped),
        "gain/hurt": float(hurt),
    }


def probe_set(task: Task, config: RunConfig, n: int | None = None) -> list[Problem]:
    """The fixed prompts of the paired probe: the first of validation, or of train without one.

    n: how many; None: as the config has it.
    """
    problems = task.problems("validation") or task.problems("train")
    return list(problems)[: config.probes.paired_prompts if n is None else n]


def token_lists(values_NC: Tensor | None, tokens: TokenBatch) -> list[list[float]]:
    """Each row cut to its own completion; empty lists where nothing was measured."""
    if values_NC is None:
        return [[] for _ in tokens.lengths_N]
    return [row[:n] for row, n in zip(values_NC.tolist(), tokens.lengths_N, strict=True)]


def rollout_rows(
    step: int, policy: Policy, passes: Passes, off_NC: Tensor | None
) -> list[RolloutRow]:
    """One row a training rollout, with its token arrays."""
    batch, rl = passes.batch, passes.rl
    assert batch is not None and rl is not None
    done, told = batch.completions_N, batch.rollouts
    baseline = passes.baseline_rl.logprobs_NC if passes.baseline_rl else None
    arrays = zip(
        token_lists(rl.logprobs_NC, batch.tokens),
        token_lists(baseline, batch.tokens),
        token_lists(off_NC, batch.tokens),
        token_lists(batch.reference_logprobs_NC, batch.tokens),
        token_lists(rl.entropy_NC, batch.tokens),
        strict=True,
    )
    rewards, correct = batch.rewards_PG.flatten().tolist(), batch.correct_PG.flatten().tolist()
    advantages = batch.advantages_PG.flatten().tolist()
    per, rl_norm, blank = passes.per_rollout, rl.gradient.base.norm(), [nan] * len(rewards)
    inner = per.rl_inner_N.tolist() if per else blank
    sft_inner = per.sft_inner_N.tolist() if per else blank
    norms = per.norm_N.tolist() if per else blank
    rows = []
    for i, (logprob, baseline_logprob, off, reference, entropy) in enumerate(arrays):
        problem = batch.problems_P[i // batch.group_size]
        given = list(told.given_ids[i]) if told.given_ids else []
        unmeasured = [nan] * len(given)
        own = [POLICY] * len(done.token_ids[i])
        before = list(told.given_writers[i]) if told.given_ids else []
        writers = before + list(told.writers[i] if told.writers else own)
        rows.append(
            RolloutRow(
                step=step,
                purpose="train",
                policy="joint",
                sequence=i,
                prompt_id=problem.id,
                prompt=problem.prompt,
                completion=done.texts[i],
                answer=problem.answer,
                extracted=batch.scores_N[i].extracted,
                reward=rewards[i],
                correct=correct[i],
                advantage=advantages[i],
                finished=done.finished[i],
                token_ids=[*given, *done.token_ids[i]],
                tokens=policy.pieces([*given, *done.token_ids[i]]),
                sampling_logprob=unmeasured + done.logprob[i],
                logprob=unmeasured + logprob,
                baseline_logprob=unmeasured + baseline_logprob if baseline_logprob else [],
                coordinator_off_logprob=unmeasured + off if off else [],
                reference_logprob=unmeasured + reference if reference else [],
                entropy=unmeasured + entropy,
                written_by=others(writers),
                plan_length=told.plan_length[i] if told.plan_length else nan,
                rl_alignment=inner[i],
                rl_cosine=_cosine(inner[i], norms[i] * rl_norm),
                sft_alignment=sft_inner[i],
                grad_norm=norms[i],
                reward_parts=dict(batch.scores_N[i].parts),
                reward_error=batch.scores_N[i].error,
            )
        )
    return rows


def _cosine(inner: float, norms: float) -> float:
    return inner / norms if norms > 0 else nan


def demonstration_rows(step: int, passes: Passes) -> list[DemonstrationRow]:
    """One row a demonstration of the step; alignments are NaN where they were not due."""
    batch, sft, per = passes.demonstrations, passes.sft, passes.per_demonstration
    assert batch is not None and sft is not None
    counts = batch.tokens.completion_mask.sum(1).tolist()
    losses = (-sft.logprobs_DC.sum(1)).tolist()
    blank = [nan] * len(counts)
    inner = per.base_inner_D.tolist() if per else blank
    inner_w = per.coordinator_inner_D.tolist() if per else blank
    norms = per.base_norm_D.tolist() if per else blank
    rl_norm = passes.rl.gradient.base.norm() if passes.rl else nan
    return [
        DemonstrationRow(
            step=step,
            demonstration_id=demo.id,
            prompt=demo.prompt,
            solution=demo.solution,
            quality=demo.quality,
            loss=losses[j] / counts[j],
            n_tokens=int(counts[j]),
            rl_alignment=inner[j],
            rl_alignment_coordinator=inner_w[j],
            grad_norm=norms[j],
            rl_cosine=_cosine(inner[j], norms[j] * rl_norm),
        )
        for j, demo in enumerate(batch.demonstrations_D)
    ]

"""What a step leaves behind. The trainer makes these, the store keeps them, views read them.

Each row class is one table: its fields are the columns. A value that was not measured is NaN (or an
empty list for a token array), never a stand-in number.

A step's numbers describe the policy the step STARTED from: gradients, probes and evaluations of
step t are taken before the update of step t. Steps count from 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan
from typing import Literal

PHASES = ("rollouts", "rewards", "gradients", "probes", "update", "record")
"""The named phases of a step, in order."""

PROBES = {
    "alignment": "alignment_every",
    "rollout_alignment": "rollout_alignment_every",
    "shared_gain": "shared_gain_every",
    "paired_gain": "paired_gain_every",
    "token_views": "token_views_every",
    "coordinator": "coordinator_every",
    "evaluation": "evaluate_every",
}
"""What is measured beside training, and the setting with its schedule; beside these there is
'evaluation/<name>' for each of `evaluation_sets`, with a schedule of its own.

'seconds/probe/<name>' is what it took, at the steps where it was due. These are parts of the phase
'probes', but for what alignment does inside the backward passes of the phase 'gradients': on a GPU
that is the time to give it its work, not the GPU's own, for waiting there would slow the passes.
"""

SET_ACCURACY = "eval/accuracy/"
"""How the metrics of `evaluation_sets` begin; the set's name follows."""

Estimator = Literal["shared", "paired"]


@dataclass(frozen=True)
class RolloutRow:
    """One completion. Token arrays have one entry a completion token (EOS included), or none."""

    step: int
    purpose: Literal["train", "paired"]
    """train: the step's own rollouts; paired: drawn by the paired gain probe."""
    policy: Literal["joint", "baseline"]
    """Which policy wrote it: joint (θ+w) or the RL-only baseline (θ̂+w)."""
    sequence: int
    """Position in the step's batch of this purpose; paired rollouts share it across policies."""
    prompt_id: str
    prompt: str
    completion: str
    answer: str
    """The right answer."""
    extracted: str
    """The answer found in the completion; empty where none was."""
    reward: float
    """What training used (flipped, where reward_flip is on)."""
    correct: float
    """The task's own reward, never flipped."""
    advantage: float
    finished: bool
    """Ended with the end-of-text token, not by the length limit."""
    token_ids: list[int]
    tokens: list[str]
    """Decoded pieces; a character made of several tokens stands at the last, '' at the others."""
    sampling_logprob: list[float]
    """log π at sampling time, nats, at the sampling temperature."""
    logprob: list[float] = field(default_factory=list)
    """log π_(θ+w), recomputed by the trainer."""
    baseline_logprob: list[float] = field(default_factory=list)
    """log π_(θ̂+w) of the same tokens."""
    coordinator_off_logprob: list[float] = field(default_factory=list)
    """log π_θ (coordinator scale 0) of the same tokens."""
    reference_logprob: list[float] = field(default_factory=list)
    """log-prob under the frozen starting policy."""
    entropy: list[float] = field(default_factory=list)
    """Entropy of π_(θ+w) at each token, nats."""
    rl_alignment: float = nan
    """⟨g_i, g^R⟩ over θ, g_i being its share of g^R. Like the next three NaN where not measured."""
    rl_cosine: float = nan
    """cos(g_i, g^R) over θ."""
    sft_alignment: float = nan
    """⟨g_i, g^S⟩ over θ."""
    grad_norm: float = nan
    """‖g_i‖ over θ."""
    reward_parts: dict[str, float] = field(default_factory=dict)
    """Each reward's part, by name; none where the task's own reward is the only one."""
    reward_error: str = ""
    """Why a part could not be had and counts as 0."""
    written_by: list[str] = field(default_factory=list)
    """Who wrote each token: 'policy', or 'environment' (the task's tools), 'demonstration', 'hint',
    'plan', a helper's name; empty where the policy wrote all. What was given before the policy
    began has NaN log-probs. The environment's tokens have log-prob 0 under every policy: they were
    sure to come, and nothing is learned of them."""
    plan_length: float = nan
    """Steps of the plan that guided it; NaN: it was not guided."""


@dataclass(frozen=True)
class GainRow:
    """Cooperative gain of one prompt: mean reward of joint minus RL-only baseline."""

    step: int
    estimator: Estimator
    prompt_id: str
    prompt: str
    joint_reward: float
    baseline_reward: float
    """Estimated for `shared`, measured for `paired`."""
    gain: float
    """joint_reward − baseline_reward; NaN where blanked (shared: ESS/G < 0.3)."""
    standard_error: float
    ess: float
    """Effective sample size of the importance weights; NaN for paired."""
    n_rollouts: int
    """Rollouts a side."""
    low: float = nan
    """95 % interval of the gain. Paired: it may be off centre, and is never of width 0."""
    high: float = nan
    p_value: float = nan
    """Of 'the gain is 0', two-sided, of this prompt alone."""


@dataclass(frozen=True)
class DemonstrationRow:
    """One demonstration at one visit."""

    step: int
    demonstration_id: str
    prompt: str
    solution: str
    quality: str
    """Hidden tag; no training code reads it."""
    loss: float
    """Token-mean negative log-likelihood under the joint policy, nats."""
    n_tokens: int
    rl_alignment: float
    """⟨g_j, g^R⟩ over θ, g_j being its share of g^S (ascent directions)."""
    rl_alignment_coordinator: float
    """The same over w."""
    grad_norm: float
    """‖g_j‖ over θ."""
    rl_cosine: float
    """cos(g_j, g^R) over θ."""


@dataclass(frozen=True)
class AlignmentRow:
    """Alignment of two gradients over one layer, or over all ("all")."""

    step: int
    part: Literal["base", "coordinator", "gain"]
    """base: g^S and g^R over θ; coordinator: the same over w; gain: g^R_w and ĝ_w over w."""
    layer: str
    """'all', 'embed', 'layers.0', …, 'norm', 'lm_head'."""
    cosine: float
    noise: float
    """Half-width of the noise band, t·standard_error: |cosine| below it says nothing. Gain: NaN."""
    conflict: bool
    """Inner product below zero and outside the band."""
    first_norm: float
    """‖g^S‖ (gain: ‖g^R_w‖)."""
    second_norm: float
    """‖g^R‖ (gain: ‖ĝ_w‖)."""
    difference_norm: float
    """‖first − second‖; for gain this is the gain signal itself."""
    standard_error: float = nan
    """Of the inner product, over both norms; NaN where the noise is."""
    dof: float = nan
    """Degrees of freedom it was estimated with; near 1 the band is wide (probes/alignment.py)."""


@dataclass(frozen=True)
class CoordinatorRow:
    """Size of the coordinator's change of one weight matrix, ΔW = (alpha/r)·B·A."""

    step: int
    layer: str
    """Block, as in AlignmentRow."""
    module: str
    """e.g. 'layers.0.self_attn.q_proj'."""
    delta_norm: float
    """‖ΔW‖, Frobenius."""
    weight_norm: float
    """‖W_θ‖."""
    ratio: float
    """‖ΔW‖/‖W_θ‖."""
    singular_values: list[float]
    """The largest singular values of ΔW, at most rank many, descending."""
    effective_rank: float
    """Directions ΔW really uses: exp of the entropy of its σ²/Σσ²; NaN where ΔW is 0."""


@dataclass(frozen=True)
class StepRecord:
    """All that one step measured."""

    step: int
    metrics: dict[str, float]
    """Names as in TRL where it has one; 'seconds/<phase>' for each phase, see PHASES and PROBES.
    Unmeasured: absent."""
    rollouts: list[RolloutRow]
    gain: list[GainRow]
    demonstrations: list[DemonstrationRow]
    alignment: list[AlignmentRow]
    coordinator: list[CoordinatorRow]


@dataclass(frozen=True)
class CommandRow:
    """One command to the Session, with its outcome."""

    step: int
    """Last finished step when it was applied (0: before the first)."""
    phase: str
    """Control point: the phase about to begin."""
    time: float
    """Unix time."""
    name: str
    """run, pause, resume, set, rewind, fork, save, …"""
    arguments: dict[str, object]
    outcome: str
    """'done' or the error."""


@dataclass(frozen=True)
class Finding:
    """Something a person should know about the run; see workbench/diagnosis."""

    step: int
    """The newest step when it was told; a rewind before it supersedes it."""
    severity: Literal["note", "warning", "critical"]
    detector: str
    message: str
    evidence: dict[str, object]
    setting: str
    """The first setting to change, named as in the config; empty if none."""
    since: int = 0
    """Onset: the first step it can be seen at; 0 where a workbench before this field told it."""
    key: str = ""
    """Stable name, 'detector.kind@step'; empty where no detector told it."""
    causes: list[str] = field(default_factory=list)
    """Likely ones, the likeliest first."""
    suggestion: dict[str, object] = field(default_factory=dict)
    """Settings to change, named as in the config, with values to try; None: no value known."""
    reference: str = ""
    """Where the thresholds come from."""


@dataclass(frozen=True)
class Sample:
    """One completion asked for by a person; not part of the run. Token arrays as in RolloutRow."""

    prompt: str
    completion: str
    policy: Literal["joint", "baseline", "reference"]
    coordinator: float
    """Scale of the coordinator it was drawn with."""
    sequence: int
    """Index of its noise stream: equal index and seed, equal noise."""
    reward: float
    """NaN where the right answer is not known."""
    finished: bool
    token_ids: list[int]
    tokens: list[str]
    logprob: list[float]
    """Under the policy and scale it was drawn with."""
    written_by: list[str] = field(default_factory=list)
    """As in RolloutRow: who wrote each token, where an environment took part."""


@dataclass(frozen=True)
class CoordinatorEffect:
    """The same prompt and noise at two coordinator scales."""

    base: Sample
    """Drawn at the scale compared with (0: off), or by the policy the run started from."""
    other: Sample
    """Drawn at the scale compared."""
    first_parting: int | None
    """Index of the first token where the texts differ; None if they are equal."""
    logprob_difference: list[float]
    """log π(other) − log π(base) of each token of `other`, nats."""
    kl: list[float]
    """KL(π(other) ‖ π(base)) at each position of `other`, exact, nats."""


@dataclass(frozen=True)
class DoseRow:
    """Reward with the coordinator at one scale, on the same problems and noise as at scale 0."""

    scale: float
    """0: off, 1: as trained."""
    reward: float
    """Mean over problems and rollouts."""
    reward_error: float
    """Its standard error, the problems taken as given, like all errors here."""
    difference: float
    """reward − reward at scale 0, rollout by rollout."""
    standard_error: float
    """Of the difference."""
    low: float
    """95 % interval of the difference (workbench/probes/paired.py)."""
    high: float
    start_difference: float
    """reward − reward of the policy the run started from; NaN where the method keeps none."""
    start_standard_error: float
    start_low: float
    start_high: float
    changed: float
    """Share of rollouts whose text differs from that at scale 0."""
    n_problems: int
    n_rollouts: int
    """Rollouts a problem."""


@dataclass(frozen=True)
class AblationRow:
    """The joint policy with one layer's coordinator switched off, beside the whole, same noise."""

    layer: str
    """'layers.0', …; 'all': the whole coordinator off."""
    reward: float
    """Mean reward without it."""
    difference: float
    """Reward of the whole − reward without it; above 0: it helps."""
    standard_error: float
    low: float
    """95 % interval of the difference (workbench/probes/paired.py)."""
    high: float
    kl: float
    """KL(π_(θ+w) ‖ π without it), nats a token, exact, over rollouts of π_(θ+w)."""
    kl_standard_error: float
    changed: float
    """Share of rollouts whose text differs from the whole policy's."""
    n_problems: int
    n_rollouts: int
    """Rollouts a problem."""


@dataclass(frozen=True)
class AnswerRow:
    """What a policy's rollouts say of the answer that a demonstration shows."""

    demonstration_id: str
    answer: str
    """What its solution ends with; empty where it shows none."""
    agree: float
    """Share of the rollouts that come to it."""
    other_answer: str
    """The most frequent other answer; empty where there is none."""
    other: float
    """Share of the rollouts that come to that."""
    disagreement: float
    """other − agree, −1 to 1 (workbench/probes/agreement.py); NaN where it shows no answer."""
    n_rollouts: int


@dataclass(frozen=True)
class Counterfactual:
    """A text, and what another policy would have written on the same noise."""

    factual: Sample
    """The text; its `logprob` is that of the policy that wrote it, or is taken to have."""
    other: Sample
    first_parting: int | None
    """Index of the first token where the texts differ; None if they are equal."""
    logprob: list[float]
    """log π of the other policy of each token of the factual text, nats."""
    noise: Literal["own", "hindsight"]
    """own: the noise the text was drawn with; hindsight: drawn to fit it."""
    snapshot_step: int | None
    """Step of the snapshot the other policy was taken from; None: as it is now."""


@dataclass(frozen=True)
class TokenTerm:
    """What one token of a training rollout adds to an RL objective, which is maximised."""

    loss: Literal["rl", "baseline_rl"]
    """Metric 'loss/<this>' is minus the sum of `value` over all tokens of the step's rollouts."""
    position: int
    ratio: float
    """ρ, π over the policy that wrote the text."""
    advantage: float
    clipped: bool
    """The clip removes the reward's gradient."""
    surrogate: float
    """min(ρA, clip(ρ)·A)."""
    kl: float
    """k3 estimate of the KL to the starting policy, nats; NaN without one."""
    share: float
    """1/N: every token of the step's rollouts weighs the same."""
    value: float
    """(surrogate − kl_coef·kl)/N."""
    push: float
    """∂value/∂log π of this token, before gradients are mixed: above 0 it is pushed up."""
    formula: str
    """The value's formula with its numbers filled in."""
    why: str
    """The direction, its reason, and the push's formula with its numbers filled in."""

"""What each detector may do, and what is made to go wrong on purpose."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.config.sections import Section

Policy = Literal["note", "pause", "off"]
"""note: tell it; pause: also pause the run and keep the snapshot before the onset; off: nothing."""


class DiagnosisConfig(Section):
    """Policy of each detector (see workbench/diagnosis): 'note', 'pause' or 'off'. [ours]"""

    finding_warm_up: int = Field(8, ge=0)
    """Steps in which nothing but non-finite values is told."""
    finding_cooldown: int = Field(20, ge=0)
    """A trouble that has been away for more steps than this is told once more."""
    non_finite: Policy = "pause"
    """A loss, gradient or score is NaN or infinite. A step that would be so is never applied."""
    gradient_spike: Policy = "note"
    """A gradient norm far above those before it."""
    loss_spike: Policy = "note"
    """A loss far above those before it."""
    vanishing_gradient: Policy = "note"
    """Gradient norms at 5 % of their early size."""
    zero_gradient: Policy = "note"
    """A gradient norm of exactly 0."""
    ratio_outliers: Policy = "note"
    """Probability ratios beyond 100 for single tokens."""
    clipping: Policy = "note"
    """Share of clipped tokens, and clipping from below only."""
    logprob_mismatch: Policy = "note"
    """Sampler and trainer disagree about log-probs."""
    kl_blowup: Policy = "note"
    """KL to the starting policy too high, or jumping."""
    kl_strangled: Policy = "note"
    """KL to the starting policy stays at 0."""
    entropy_collapse: Policy = "note"
    """Entropy soon at a tenth of its start while the reward does not rise."""
    entropy_explosion: Policy = "note"
    """Entropy at 3 times its start."""
    zero_variance_groups: Policy = "note"
    """Groups with equal rewards: too easy, too hard or copies."""
    truncation: Policy = "note"
    """Completions cut off by the length limit."""
    length_explosion: Policy = "note"
    """Completions grow while the reward does not rise."""
    repetition: Policy = "note"
    """Completions that end in a loop."""
    gibberish: Policy = "note"
    """Completions unlike the starting policy's language, or without an answer."""
    reward_hacking: Policy = "note"
    """Reward up without held-out accuracy."""
    verifier_noisy: Policy = "note"
    """The same answer earns different rewards."""
    verifier_silent: Policy = "note"
    """All rewards are the same."""
    reward_errors: Policy = "note"
    """A reward fails on more than 5 % of the completions."""
    demonstrations_rejected: Policy = "note"
    """The verifier rejects the demonstrations."""
    sft_rl_conflict: Policy = "note"
    """SFT and RL gradients oppose each other step after step."""
    coordinator_harm: Policy = "note"
    """The joint policy does worse than the RL-only one."""
    coordinator_inert: Policy = "note"
    """The coordinator stays at 0."""
    coordinator_blowup: Policy = "note"
    """The coordinator outweighs the model."""
    baseline_drift: Policy = "note"
    """θ̂ is so far from θ that shared rollouts say little about it."""
    unfollowed_weights: Policy = "note"
    """Weights that the demonstrations' contributions leave out."""
    accuracy_fall: Policy = "note"
    """Held-out accuracy below its best, beyond noise."""
    plateau: Policy = "note"
    """Nothing moves beyond its noise."""
    slow_phase: Policy = "note"
    """A phase takes 3 times as long as before; with 'pause' no two runs need be equal."""


class FaultsConfig(Section):
    """Things that go wrong on purpose, to try detectors on; all off by default. [ours]"""

    verifier_fault: Literal["none", "silent", "skips_short"] = "none"
    """silent: training rewards are 0. skips_short: a text of at most two lines is paid like a right
    one, as by a verifier that gives up on it. Evaluations are not touched."""
    corrupt_batch_at: int = Field(0, ge=0)
    """Step whose demonstrations are replaced by random tokens (0: none)."""
    stale_baseline_from: int = Field(0, ge=0)
    """θ̂ is not updated from this step on (0: it always is)."""
    float16_scale: float = Field(0.0, ge=0)
    """Gradients go through float16 after multiplication by this, as in half precision with a fixed
    loss scale; beyond its range of 65,504 they are infinite (0: they do not)."""

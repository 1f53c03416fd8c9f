"""Settings of single methods; each method's file says which of them it uses.

The defaults are the published ones, lengths of schedules included: those of the papers span some
hundred steps, so a short run wants shorter ones.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RLLoss = Literal["grpo", "dr_grpo", "dapo", "gspo"]


class Section(BaseModel):
    """A frozen group of settings; unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class MethodSettings(Section):
    """What one method or a few of them use; part of the section [training]."""

    rl_loss: RLLoss = "grpo"
    """grpo; dr_grpo: no std, constant length; dapo: clip higher, no KL; gspo: sequence ratios."""
    dapo_clip_high: float = Field(0.28, ge=0.0, le=10.0)
    """DAPO's upper clip; the lower one is clip_range. [arXiv 2503.14476]"""
    gspo_clip_low: float = Field(3e-4, ge=0.0, le=10.0)
    """GSPO's lower clip of the sequence's ratio. [arXiv 2507.18071]"""
    gspo_clip_high: float = Field(4e-4, ge=0.0, le=10.0)
    """GSPO's upper clip. [arXiv 2507.18071]"""
    track_baseline: bool = False
    """Keep the RL-only baseline θ̂ beside a method that has none, so that its gain is measured."""
    rl_weight_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How λ goes from rl_weight to rl_weight_end. [paper: constant; the schedules are ours]"""
    rl_weight_end: float = Field(1.0, ge=0.0, le=1.0)
    """λ at the end of its schedule."""
    rl_weight_steps: int = Field(60, ge=1)
    """Steps of λ's schedule."""
    sft_lr: float = Field(5e-5, ge=0.0, le=1.0)
    """Learning rate of SFT's own optimizer: cold_start, alternating, relift."""
    cold_start_steps: int = Field(20, ge=0)
    """SFT steps of `cold_start` before RL begins."""
    luffy_shape: float = Field(0.1, ge=1e-6, le=10.0)
    """γ of LUFFY's f(p) = p/(p + γ). [arXiv 2504.14945: 0.1]"""
    luffy_entropy: float = Field(1e-3, ge=0.0, le=1.0)
    """LUFFY's entropy bonus. [1e-3]"""
    srft_sft_weight: float = Field(0.5, ge=0.0, le=10.0)
    """SRFT: weight of the demonstration's likelihood, times e^−H. [arXiv 2506.19767: 0.5]"""
    srft_rl_weight: float = Field(0.1, ge=0.0, le=10.0)
    """SRFT: weight of right rollouts, times e^H. [0.1]"""
    chord_start: float = Field(0.9, ge=0.0, le=1.0)
    """μ of `chord_mu` at step 1. [arXiv 2508.11408: 0.9]"""
    chord_end: float = Field(0.05, ge=0.0, le=1.0)
    """μ of `chord_mu` from step chord_steps on. [0.05]"""
    chord_steps: int = Field(200, ge=1)
    """Steps of the cosine from chord_start to chord_end. [200]"""
    chord_phi_weight: float = Field(0.1, ge=0.0, le=1.0)
    """μ of `chord_phi`, constant. [0.1]"""
    relift_buffer: int = Field(128, ge=1)
    """Demonstrations that fill ReLIFT's buffer and make an SFT step. [arXiv 2506.07527: 128]"""
    hpt_gate: float = Field(0.0, ge=0.0, le=1.0)
    """γ of HPT: prompts with at most this accuracy learn by SFT. [arXiv 2509.04419: 0 or 0.25]"""
    hpt_sft_weight: float = Field(1.0, ge=0.0, le=10.0)
    """HPT's SFT coefficient. [1.0]"""
    prefix_high: float = Field(0.95, ge=0.0, le=1.0)
    """Prefix-RFT: longest prefix, as a share of the demonstration. [arXiv 2507.01679: 0.95]"""
    prefix_low: float = Field(0.95, ge=0.0, le=1.0)
    """Prefix-RFT: shortest prefix at step 1; it goes to 0 on a cosine. [0.95]"""
    prefix_steps: int = Field(200, ge=1)
    """Steps of that cosine. [infer: the whole training]"""
    prefix_entropy_share: float = Field(0.2, ge=0.0, le=1.0)
    """Prefix-RFT: share of a prefix's tokens, those of highest entropy, that are learned. [0.2]"""
    uft_hint_steps: int = Field(300, ge=0)
    """Steps until UFT's hints are gone. [arXiv 2505.16984: 300 of 500]"""
    uft_hint_high: float = Field(0.95, ge=0.0, le=1.0)
    """UFT: expected share of the solution that is hinted at step 1. [0.95]"""
    uft_hint_low: float = Field(0.05, ge=0.0, le=1.0)
    """UFT: expected share at the end of the hints. [0.05]"""
    uft_sft_weight: float = Field(1e-3, ge=0.0, le=10.0)
    """UFT: weight of the hint's cross-entropy. [1e-3]"""
    guide_in: Literal["answer", "prompt"] = "answer"
    """Where ActGuide's plan stands: it opens the answer, or is written into the prompt."""
    guide_probes: int = Field(5, ge=1)
    """ActGuide: most plan lengths tried for a prompt. [arXiv 2605.12004: 5]"""
    guide_probe_rollouts: int = Field(2, ge=1)
    """ActGuide: rollouts of each trial. [2]"""
    guide_dual_clip: float = Field(3.0, ge=1.0, le=100.0)
    """ActGuide: bound of ρ where the advantage is negative. [3]"""
    aipo_verify: str = Field("?v", min_length=1)
    """AIPO: what the policy writes to have its text so far checked."""
    aipo_knowledge: str = Field("?k", min_length=1)
    """AIPO: … to be told something about the problem."""
    aipo_reasoning: str = Field("?r", min_length=1)
    """AIPO: … to be told the next step."""
    aipo_queries: int = Field(2, ge=1)
    """AIPO: most queries in a rollout."""
    aipo_prompt: str = ""
    """AIPO: text behind each training prompt, e.g. how to ask; evaluations are without it."""
    aipo_helper: str = Field("", pattern=r"^([\w.]+:\w+)?$")
    """AIPO: 'module:name' of a helper of yours, called with a Query, gives a text."""
    aipo_url: str = ""
    """AIPO: an OpenAI-compatible endpoint, as http://localhost:8000/v1; empty: built-in helpers."""
    aipo_model: str = ""
    """AIPO: the model's name at that endpoint."""
    aipo_timeout: float = Field(30.0, gt=0)
    """AIPO: seconds until a call counts as failed."""
    aipo_retries: int = Field(2, ge=0)
    """AIPO: calls after a failed one."""
    aipo_calls: int = Field(256, ge=0)
    """AIPO: calls to the endpoint in a step, retries included; then queries stay without answer."""

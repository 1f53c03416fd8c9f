"""GRPO, RL only ("RL-zero"): θ ← θ + α ∇ J_RL(θ).  Source: arXiv 2402.03300.

    J_RL = 1/Σ|y_i| · Σ_i Σ_t min(ρ A_i, clip(ρ, 1−ε, 1+ε) A_i) − kl_coef·k3
    A_i  = (R_i − group mean) / (group std + 1e-4)

The token mean runs over the whole batch. `rl_loss` changes the objective, of this method and of
every other that uses J_RL (formulas in training/objectives.py):

    dr_grpo  A without the std, ÷ (rollouts × length limit)          arXiv 2503.20783
    dapo     clip(ρ, 1−0.2, 1+0.28), no KL, ÷ tokens of the groups    arXiv 2503.14476
             that are neither all right nor all wrong
    gspo     one ratio a sequence, (π/π_old)^(1/|y|), ÷ rollouts      arXiv 2507.18071

Each step makes one update on fresh rollouts, so ρ is 1 and no clip acts in θ's own objective; both
matter for the RL-only baseline, which learns from θ's rollouts.
"""

from __future__ import annotations

from workbench.training.methods.method import Method


class GRPO(Method):
    """RL alone: every hook as it stands."""

    name = "grpo"

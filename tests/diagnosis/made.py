"""Made-up metrics of a healthy run: a policy that learns, with the noise of a small batch."""

from __future__ import annotations

import numpy as np
import pandas as pd

N_STEPS = 60


def healthy(seed: int = 0, n_steps: int = N_STEPS) -> pd.DataFrame:
    """Metrics of a run whose accuracy rises from 25 % to 90 %; evaluated every fifth step."""
    rng = np.random.default_rng(seed)
    step = np.arange(1, n_steps + 1)
    learned = 1 - np.exp(-step / 25)
    skill = 0.25 + 0.65 * learned
    noise = lambda sigma: rng.normal(0, sigma, n_steps)  # noqa: E731
    evaluated = (step == 1) | (step % 5 == 0)
    accuracy = np.clip(skill + noise(0.05), 0, 1)
    easy = np.clip(0.1 + 0.3 * learned + noise(0.06), 0, 1)
    hard = np.clip(0.2 - 0.1 * learned + noise(0.05), 0, 1)
    return pd.DataFrame(
        {
            "step": step,
            "reward": np.clip(skill + noise(0.1), 0, 1),
            "reward_std": np.clip(0.3 + noise(0.04), 0.01, 1),
            "frac_reward_zero_std": np.clip(easy + hard, 0, 0.7),
            "groups/too_easy": easy,
            "groups/too_hard": hard,
            "kl": 0.2 * learned * np.exp(noise(0.3)),
            "entropy": 0.1 * np.exp(-0.5 * learned + noise(0.1)),
            "clip_ratio/region_mean": np.zeros(n_steps),
            "baseline/clip_ratio": np.clip(0.01 * learned + noise(0.001), 0, 1),
            "completions/mean_length": 14 + 4 * learned + noise(1),
            "completions/clipped_ratio": np.clip(noise(0.005), 0, 1),
            "completions/repetition": np.clip(noise(0.005), 0, 1),
            "completions/unanswered": np.clip(0.02 + noise(0.01), 0, 1),
            "completions/reference_nll": 0.1 + 0.1 * learned + np.abs(noise(0.02)),
            "grad_norm": np.exp(0.2 + noise(0.35)),
            "grad_norm/sft": np.exp(0.5 + noise(0.35)),
            "grad_norm/rl": np.exp(-0.3 + noise(0.3)),
            "baseline/grad_norm": np.exp(-0.3 + noise(0.4)),
            "coordinator/grad_norm": np.exp(-1.6 + noise(0.3)),
            "coordinator/ratio": np.where(evaluated, 0.0007 * step, np.nan),
            "loss/sft": 0.3 * np.exp(noise(0.35)) + 0.4 * np.exp(-step / 10),
            "gain/shared": 0.005 + noise(0.01),
            "gain/shared_se": np.full(n_steps, 0.01),
            "gain/ess": np.clip(0.97 - 0.1 * learned + noise(0.02), 0, 1),
            "gain/blanked": np.zeros(n_steps),
            "alignment/cosine": 0.05 + noise(0.05),
            "alignment/noise": np.full(n_steps, 0.08),
            "eval/accuracy": np.where(evaluated, accuracy, np.nan),
            "eval/baseline_accuracy": np.where(
                evaluated, np.clip(accuracy - 0.03 + noise(0.04), 0, 1), np.nan
            ),
            "demonstrations/rejected": rng.binomial(16, 0.19, n_steps) / 16,
            "verifier/inconsistent": np.zeros(n_steps),
            "verifier/pairs": np.full(n_steps, 80.0),
            "sampling/sampling_logp_difference/mean": np.abs(noise(1e-6)),
            "baseline/log_ratio_max": np.abs(0.5 + noise(0.2)),
            "seconds/rollouts": 0.3 * np.exp(noise(0.1)),
            "seconds/gradients": 1.0 * np.exp(noise(0.1)),
            "base_lr": np.full(n_steps, 5e-5),
            "coordinator_lr": np.full(n_steps, 5e-4),
        }
    )

"""The fault gallery: presets of the pocket model that each have one thing wrong.

    python -m workbench train --preset fault-lr --steps 40 --run runs/fault-lr
    python -m workbench doctor runs/fault-lr

Each is reproducible from its seed. What the detectors make of them over several seeds is in
benchmarks/results/detectors.md.
"""

from __future__ import annotations

from typing import Any

FAULTS: dict[str, dict[str, Any]] = {
    "fault-lr": {"training": {"base_lr": 1e-2}},
    "fault-no-kl": {
        "method": "grpo",
        "training": {"kl_coef": 0.0, "base_lr": 2e-3},
    },
    "fault-hackable-reward": {
        "method": "grpo",
        "training": {"base_lr": 2e-4},
        "faults": {"verifier_fault": "skips_short"},
    },
    "fault-silent-verifier": {"faults": {"verifier_fault": "silent"}},
    "fault-flip-20": {"training": {"reward_flip": 0.2}},
    "fault-flip-40": {"training": {"reward_flip": 0.4}},
    "fault-demonstrations": {
        "task": {
            "kind": "arithmetic",
            "flaws": {"wrong_step": 0.0, "wrong_answer": 0.5, "detour": 0.0, "other_task": 0.5},
        },
    },
    "fault-coordinator-lr": {"training": {"coordinator_lr": 5e-2}},
    "fault-temperature": {"sampling": {"temperature": 0.05}},
    "fault-length": {"sampling": {"max_new_tokens": 8}},
    "fault-float16": {"faults": {"float16_scale": 2.0**19}},
    "fault-batch": {"faults": {"corrupt_batch_at": 15}},
    "fault-stale-baseline": {
        "training": {"base_lr": 2e-4},
        "faults": {"stale_baseline_from": 3},
    },
}
"""Preset → settings that differ from the defaults. Keys as in a config file."""

EXPECTED: dict[str, tuple[str, ...]] = {
    "fault-lr": ("kl_blowup", "entropy_explosion", "gibberish", "accuracy_fall", "non_finite"),
    "fault-no-kl": ("kl_blowup", "entropy_collapse", "entropy_explosion", "gibberish"),
    "fault-hackable-reward": ("reward_hacking",),
    "fault-silent-verifier": ("verifier_silent",),
    "fault-flip-20": ("verifier_noisy",),
    "fault-flip-40": ("verifier_noisy",),
    "fault-demonstrations": (
        "demonstrations_rejected",
        "sft_rl_conflict",
        "coordinator_harm",
    ),
    "fault-coordinator-lr": ("coordinator_blowup",),
    "fault-temperature": ("entropy_collapse", "zero_variance_groups"),
    "fault-length": ("truncation",),
    "fault-float16": ("non_finite",),
    "fault-batch": ("loss_spike", "gradient_spike"),
    "fault-stale-baseline": ("baseline_drift",),
}
"""Preset → detectors any of which names its fault; what else is found may be a consequence."""

"""Named starting points, as values that differ from the defaults of config.py."""

from __future__ import annotations

from typing import Any

from workbench.faults import FAULTS

PRESETS: dict[str, dict[str, Any]] = {
    "pocket": {},
    "smollm2": {
        "model": {"path": "smollm2", "chat_template": True},
        "task": {
            "kind": "gym",
            "gym_name": "chain_sum",
            "gym_settings": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
            "prompt_suffix": (
                "\nWork from left to right: write each calculation on its own line, "
                "then the final answer."
            ),
            "gym_train": 256,  # of about 4,000 different ones; 200 of them have two terms
            "gym_demonstrations": 128,
        },
        "training": {
            "base_lr": 5e-6,
            "coordinator_lr": 5e-5,
            "prompts_per_step": 8,
            "group_size": 4,
            "demonstrations_per_step": 8,
            "micro_batch_tokens": 512,  # bounds the activations: 30 layers and 49,152 tokens
        },
        "sampling": {"max_new_tokens": 48},
        "probes": {
            "paired_gain_every": 0,
            "paired_prompts": 8,
            "paired_rollouts": 4,
            "evaluate_every": 10,
            "evaluation_prompts": 32,
            "evaluation_max_new_tokens": 48,
        },
        "snapshots": {"snapshot_every": 10, "keep_last": 1, "keep_every": 0},
    },
    **FAULTS,
}
"""What `RunConfig.preset(name)` starts from."""

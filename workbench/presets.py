"""Named starting points, as values that differ from the defaults of config.py."""

from __future__ import annotations

from typing import Any

from workbench.faults import FAULTS

ONE_80_GB = ("reference", "baseline", "base", "gradients")
"""What of a 3 B model waits on the CPU so that a step fits one 80 GB GPU; see docs/memory.md."""


def _paper(
    path: str, offload: tuple[str, ...] = ONE_80_GB, sampling_batch: int = 64
) -> dict[str, Any]:
    """The paper's settings [paper: section 5 and its appendix] for one 80 GB GPU [ours].

    64 prompts × 5 rollouts of at most 3000 tokens, learning rate 5e-7 for all, λ = 0.5, rank 16 and
    alpha 16 are the paper's. So is the kind of data: problems with worked solutions whose answers
    math-verify checks; put your file's name and columns in. Theirs ran on 4 A100 of 80 GB. What
    differs here: computing in bf16 with a bf16 reference [infer], and all that is not computed with
    waits on the CPU, where AdamW of θ and θ̂ then runs, in float32: 200 GiB there at 3 B, 520 at
    8 B. That costs time and changes no objective. At 8 B each parameter's gradient goes to the CPU
    in every micro-batch (`gradient_sum`) and fewer texts are generated at once. Not run whole.
    """
    return {
        "model": {
            "path": path,
            "compute_dtype": "bfloat16",
            "gradient_checkpointing": True,
            "reference_dtype": "bfloat16",
            "offload": list(offload),
        },
        "task": {
            "kind": "dataset",
            "data": "problems.jsonl",
            "rewards": [{"kind": "math"}],
            "max_prompt_tokens": 1024,
            "max_solution_tokens": 3000,
        },
        "training": {
            "base_lr": 5e-7,
            "coordinator_lr": 5e-7,
            "rl_weight": 0.5,
            "prompts_per_step": 64,
            "group_size": 5,
            "demonstrations_per_step": 64,
            "micro_batch_tokens": 4096,
        },
        "sampling": {"max_new_tokens": 3000, "sampling_batch": sampling_batch},
        "probes": {
            "alignment_every": 0,  # keeps gradients of blocks
            "paired_gain_every": 0,
            "evaluate_every": 20,
            "evaluation_prompts": 128,
            "evaluation_max_new_tokens": 3000,
        },
        "snapshots": {"snapshot_every": 50, "keep_last": 1, "keep_every": 0},
    }


TOOLS: dict[str, Any] = {
    "task": {"kind": "tools"},
    "training": {"base_lr": 2e-4},
}
"""The task with tools (tasks/tools.py) on the pocket model, which never saw its format.

    python -m workbench train --preset tools --method actguide

From there guided groups succeed, but only with nearly whole plans, so that little is left to learn
from. Give the model a start that knows the format, as benchmarks/tools.py does in its first stage:

    python -m workbench train --preset tools --method sft --set base_lr=1e-3 --steps 95 --run runs/a
    python -m workbench export runs/a runs/start
    python -m workbench train --preset tools --method actguide --set path=runs/start
"""

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
    "tools": TOOLS,
    "qwen2.5-3b": _paper("Qwen/Qwen2.5-3B"),
    "llama-3.2-3b-instruct": _paper("meta-llama/Llama-3.2-3B-Instruct"),
    "qwen3-8b-base": _paper("Qwen/Qwen3-8B-Base", (*ONE_80_GB, "gradient_sum"), sampling_batch=24),
    **FAULTS,
}
"""What `RunConfig.preset(name)` starts from."""

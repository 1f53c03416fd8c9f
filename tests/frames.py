"""Made-up step records, and the frames a run reader would give for them: input for view tests."""

from __future__ import annotations

import math
from dataclasses import asdict, fields

import numpy as np
import pandas as pd

from workbench.records import (
    PHASES,
    PROBES,
    AlignmentRow,
    CommandRow,
    CoordinatorRow,
    DemonstrationRow,
    GainRow,
    RolloutRow,
    StepRecord,
)

PROMPTS = [f"{11 + 3 * i}+{7 + i}-{30 - i}=?\n" for i in range(12)]
LAYERS = ["embed", "layers.0", "layers.1", "layers.2", "norm"]


def make_records(n_steps: int, seed: int = 0) -> list[StepRecord]:
    """Records of a plausible run: 4 prompts × 3 rollouts a step, paired gain every 5th step."""
    rng = np.random.default_rng(seed)
    return [_record(step, rng) for step in range(1, n_steps + 1)]


def frames(records: list[StepRecord]) -> dict[str, pd.DataFrame]:
    """The frames by name, as `Run.frame` gives them."""
    classes = {
        "rollouts": RolloutRow,
        "gain": GainRow,
        "demonstrations": DemonstrationRow,
        "alignment": AlignmentRow,
        "coordinator": CoordinatorRow,
    }
    made = {
        name: pd.DataFrame(
            [asdict(row) for record in records for row in getattr(record, name)],
            columns=[field.name for field in fields(row_class)],
        )
        for name, row_class in classes.items()
    }
    made["metrics"] = pd.DataFrame([{"step": r.step, **r.metrics} for r in records])
    commands = [
        CommandRow(0, "rollouts", 0.0, "run", {"steps": None}, "done"),
        CommandRow(4, "update", 1.0, "set", {"rl_weight": 0.7}, "done"),
        CommandRow(6, "update", 2.0, "set", {"rl_weight": 7}, "rl_weight: too large"),
    ]
    made["commands"] = pd.DataFrame([asdict(command) for command in commands])
    return made


def _record(step: int, rng: np.random.Generator) -> StepRecord:
    metrics = {
        "reward": 0.2 + 0.4 * (1 - math.exp(-step / 20)) + 0.03 * rng.normal(),
        "baseline/reward": 0.2 + 0.3 * (1 - math.exp(-step / 25)) + 0.03 * rng.normal(),
        "gain/shared": 0.002 * step + 0.01 * rng.normal(),
        "gain/shared_se": 0.015,
        "kl": 0.001 * step,
        "entropy": 0.9 - 0.004 * step,
        "grad_norm": 2.0 + rng.random(),
        "grad_norm/clipped": 1.0,
        "coordinator/grad_norm": 0.3 + 0.1 * rng.random(),
        "loss/sft": 1.2 * math.exp(-step / 40),
        "loss/rl": 0.01 * rng.normal(),
        "completions/mean_length": 30 + 0.1 * step,
        "frac_reward_zero_std": 0.3,
        **{f"seconds/{phase}": 0.1 + 0.2 * rng.random() for phase in PHASES},
        **{f"seconds/probe/{probe}": 0.01 * rng.random() for probe in PROBES},
    }
    if step % 5 == 0:
        metrics |= {"eval/accuracy": 0.2 + 0.005 * step, "eval/baseline_accuracy": 0.2}
        metrics["eval/problems"] = 64.0
    return StepRecord(
        step=step,
        metrics=metrics,
        rollouts=_rollouts(step, rng),
        gain=_gain(step, rng),
        demonstrations=[_demonstration(step, i, rng) for i in range(6)],
        alignment=[
            AlignmentRow(
                step=step,
                part=part,
                layer=layer,
                cosine=(cosine := float(rng.normal(0.02, 0.08))),
                noise=0.05 if part != "gain" else math.nan,
                conflict=part != "gain" and cosine < -0.05,
                first_norm=1.5,
                second_norm=1.0 + 0.1 * rng.random(),
                difference_norm=0.2 + 0.01 * step,
                standard_error=0.02 if part != "gain" else math.nan,
                dof=9.3 if part != "gain" else math.nan,
            )
            for part in ("base", "coordinator", "gain")
            for layer in ["all", *(LAYERS if part == "base" else LAYERS[1:4])]
        ],
        coordinator=[
            CoordinatorRow(
                step=step,
                layer=layer,
                module=f"{layer}.self_attn.{name}",
                delta_norm=0.01 * step * (1 + at),
                weight_norm=5.0,
                ratio=0.002 * step * (1 + at),
                singular_values=[0.01 * step / (1 + k) for k in range(4)],
                effective_rank=1.0 + 0.1 * at + 0.01 * step,
            )
            for at, layer in enumerate(LAYERS[1:4])
            for name in ("q_proj", "v_proj")
            if step % 5 == 0
        ],
    )


def _rollouts(step: int, rng: np.random.Generator) -> list[RolloutRow]:
    made = []
    sources = [("train", "joint", 3)]
    if step % 5 == 0:
        sources += [("paired", "joint", 2), ("paired", "baseline", 2)]
    for purpose, policy, group in sources:
        for sequence in range(4 * group):
            number = (
                (4 * step + sequence // group) % 12 if purpose == "train" else sequence // group
            )
            text = f"{11 + 3 * number}+{7 + number}={18 + 4 * number}\n#{rng.integers(-20, 60)}"
            tokens = [*text, "<eos>"]
            logprob = (-rng.exponential(0.3, len(tokens))).tolist()
            made.append(
                RolloutRow(
                    step=step,
                    purpose=purpose,
                    policy=policy,
                    sequence=sequence,
                    prompt_id=f"train-{number:04d}",
                    prompt=PROMPTS[number],
                    completion=text,
                    answer="12",
                    extracted=text.rpartition("#")[2],
                    reward=float(rng.random() < 0.4),
                    correct=float(rng.random() < 0.4),
                    advantage=float(rng.normal()),
                    finished=True,
                    token_ids=[ord(character) for character in text] + [2],
                    tokens=tokens,
                    sampling_logprob=logprob,
                    logprob=[value - 0.01 for value in logprob],
                    baseline_logprob=[value - 0.1 * rng.random() for value in logprob],
                    coordinator_off_logprob=[value - 0.05 for value in logprob],
                    reference_logprob=[value - 0.2 for value in logprob],
                    entropy=rng.exponential(0.4, len(tokens)).tolist(),
                )
            )
    return made


def _gain(step: int, rng: np.random.Generator) -> list[GainRow]:
    made = []
    for i in range(4):
        number, blanked = (4 * step + i) % 12, i == 3
        joint, other = rng.random(), rng.random()
        made.append(
            GainRow(
                step=step,
                estimator="shared",
                prompt_id=f"train-{number:04d}",
                prompt=PROMPTS[number],
                joint_reward=joint,
                baseline_reward=math.nan if blanked else other,
                gain=math.nan if blanked else joint - other,
                standard_error=math.nan if blanked else 0.2,
                ess=0.5 if blanked else 2.5,
                n_rollouts=3,
            )
        )
    if step % 5 == 0:
        for number in range(6):
            gain = float(rng.normal(0.1, 0.3))
            made.append(
                GainRow(
                    step=step,
                    estimator="paired",
                    prompt_id=f"train-{number:04d}",
                    prompt=PROMPTS[number],
                    joint_reward=0.5 + gain / 2,
                    baseline_reward=0.5 - gain / 2,
                    gain=gain,
                    standard_error=0.12,
                    ess=math.nan,
                    n_rollouts=8,
                )
            )
    return made


def _demonstration(step: int, i: int, rng: np.random.Generator) -> DemonstrationRow:
    number = (6 * step + i) % 40
    cosine = float(rng.normal(0.05, 0.1))
    return DemonstrationRow(
        step=step,
        demonstration_id=f"demo-{number:04d}",
        prompt=PROMPTS[number % 12],
        solution=f"11+7=18\n#{number}",
        quality="clean" if number % 4 else "wrong_step",
        loss=float(rng.exponential(0.5)),
        n_tokens=20,
        rl_alignment=cosine * 0.3,
        rl_alignment_coordinator=cosine * 0.1,
        grad_norm=0.3,
        rl_cosine=cosine,
    )

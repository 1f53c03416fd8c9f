"""Does a plan find what the policy cannot, and does the policy then find it alone? ActGuide, tools.

    OMP_NUM_THREADS=1 python benchmarks/tools.py            # 3 seeds
    OMP_NUM_THREADS=1 python benchmarks/tools.py --quick    # a smoke test in a minute; says nothing

The task is the preset `tools` (workbench/tasks/tools.py) on the pocket model, which never saw its
format. For each seed:

1. skill: SFT on the task's demonstrations: look up, calculate, answer.
2. habit: a few steps of SFT on the same prompts with nothing but the right answer, `#23`. A policy
   that answers at once, which cannot be right but by luck; that it can use the tools is still
   there, as in a model that has read about tools and does not call them.
3. `actguide` and `grpo` from there, the same prompts, steps, rates and seeds; and `grpo` for four
   times as many steps, since searching for plans samples more.

Before and after step 3 each training prompt is sampled 16 times without a plan. The prompts without
a success before are the ones counted; since being unlucky once is how they were chosen, they are
sampled again before training on other noise: that second number is what the one after is held
against. Guided success is that of the guided groups that training drew on these prompts.

Each finished seed leaves a JSON file under --out; started again, the script goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from workbench import Session

METHODS: dict[str, dict[str, Any]] = {
    "actguide": {"method": "actguide"},
    "grpo": {"method": "uft", "uft_hint_steps": 0},
    "grpo, long": {"method": "uft", "uft_hint_steps": 0},
}
"""GRPO draws its prompts from the training split; `uft` without hints is GRPO on those prompts that
have a demonstration, which are ActGuide's."""
LONG = 4
"""How many times as many steps the long run has: about the tokens that ActGuide samples."""
PROBES_OFF = {
    "alignment_every": 0,
    "shared_gain_every": 0,
    "paired_gain_every": 0,
    "token_views_every": 0,
    "coordinator_every": 0,
    "evaluate_every": 0,
}
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""t with 95 % between −t and t, by the number of seeds."""


def settings(options: argparse.Namespace, seed: int, **changes: Any) -> dict[str, Any]:
    """What differs from the preset, in all stages."""
    return {"seed": seed, "snapshot_every": 1000, **PROBES_OFF, **changes}


def start(options: argparse.Namespace, seed: int, folder: Path) -> Path:
    """Stages 1 and 2; returns the folder of the model they leave."""
    from workbench import RunConfig, Session
    from workbench.tasks import make_task

    skill = RunConfig.preset("tools").with_changes(
        **settings(options, seed, method="sft", base_lr=1e-3)
    )
    with Session(skill, folder / "skill") as session:
        for _ in range(options.skill):
            session.step()
        session.export(folder / "skilled")
    rows = [
        {"prompt": d.prompt, "solution": f"#{d.answer}", "answer": d.answer}
        for d in make_task(skill.task).demonstrations()
    ]
    habit = skill.with_changes(
        path=str(folder / "skilled"),
        base_lr=3e-4,
        demonstrations_from={"kind": "dataset", "data": rows, "validation_share": 0.0},
    )
    with Session(habit, folder / "habit") as session:
        for _ in range(options.habit):
            session.step()
        session.export(folder / "start")
    return folder / "start"


def train(options: argparse.Namespace, seed: int, method: str, model: Path) -> dict[str, Any]:
    """Stage 3 of one method, and what it reached."""
    from workbench import RunConfig, Session
    from workbench.tasks import make_task
    from workbench.training.batches import as_problem

    config = RunConfig.preset("tools").with_changes(
        **settings(
            options,
            seed,
            path=str(model),
            base_lr=3e-4,
            prompts_per_step=8,
            tools_demonstrations=options.prompts,
            **METHODS[method],
        )
    )
    task, n = make_task(config.task), options.rollouts
    problems = [as_problem(d) for d in task.demonstrations()]

    def unguided(session: Session, noise: int) -> list[float]:
        """Success of the policy as it is, prompt by prompt."""
        drawn = session.sample([p.prompt for p in problems], rollouts=n, seed=noise)
        won = [task.reward(drawn[i].completion, problems[i // n]) for i in range(len(drawn))]
        return [statistics.fmean(won[i : i + n]) for i in range(0, len(won), n)]

    with Session(config, model.parent / method.replace(", ", "-")) as session:
        first, before = unguided(session, 1), unguided(session, 2)
        zero = [i for i, value in enumerate(first) if value == 0]
        hopeless = {problems[i].id for i in zero}
        guided: list[bool] = []
        helped: set[str] = set()
        tokens = 0.0
        for _ in range(options.steps * (LONG if method.endswith("long") else 1)):
            record = session.step()
            tokens += record.metrics["completions/generated_tokens"]
            rows = [r for r in record.rollouts if r.prompt_id in hopeless and r.plan_length > 0]
            guided += [row.correct > 0 for row in rows]
            helped |= {row.prompt_id for row in rows if row.correct > 0}
        after = unguided(session, 3)
        return {
            "zero": len(zero),
            "before": statistics.fmean(before[i] for i in zero),
            "after": statistics.fmean(after[i] for i in zero),
            "gained": statistics.fmean(after[i] - before[i] for i in zero),
            "solved_before": statistics.fmean(before[i] > 0 for i in zero),
            "solved_after": statistics.fmean(after[i] > 0 for i in zero),
            "guided": statistics.fmean(guided) if guided else None,
            "helped": len(helped) / len(zero) if guided else None,
            "validation": session.evaluate("validation"),
            "hard": session.evaluate("hard"),
            "tokens": tokens,
        }


def execute(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All stages of a seed, or what they left."""
    file = options.out / f"seed{seed}-{options.skill}-{options.habit}-{options.steps}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    folder = options.out / f"seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
    began = time.process_time()
    model = start(options, seed, folder)
    found = {method: train(options, seed, method, model) for method in METHODS}
    found["seconds"] = time.process_time() - began
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1), encoding="utf-8")
    part.replace(file)
    shutil.rmtree(folder)
    return found


ROWS = {
    "before": "unguided success before, on other noise",
    "after": "**unguided success after**",
    "gained": "after − before",
    "solved_before": "of these prompts solved at least once before",
    "solved_after": "of these prompts solved at least once after",
    "guided": "success of guided rollouts on them in training",
    "helped": "of them solved in some guided group",
    "validation": "greedy, validation, after",
    "hard": "greedy, longer chains, after",
}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Per cent, mean over seeds ± the 95 % interval's half-width, and each seed."""
    lines = ["| | " + " | ".join(f"`{m}`" for m in METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    for name, title in ROWS.items():
        cells = [_spread([each[method][name] for each in found]) for method in METHODS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    counts = ", ".join(str(each["actguide"]["zero"]) for each in found)
    lines.append("")
    lines.append(f"Prompts without a success before: {counts} (by seed).")
    for method in METHODS:
        tokens = statistics.fmean(each[method]["tokens"] for each in found)
        lines.append(f"`{method}` sampled {tokens / 1000:.0f} thousand tokens.")
    seconds = ", ".join(f"{each['seconds']:.0f}" for each in found)
    lines.append(f"Processor seconds, all stages: {seconds}.")
    return "\n".join(lines)


def _spread(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    each = ", ".join(f"{value:.1f}" for value in known)
    if len(known) == 1:
        return each
    reach = STUDENT[len(known)] * statistics.stdev(known) / sqrt(len(known))
    return f"{statistics.mean(known):.1f} ± {reach:.1f} ({each})"


def main() -> None:
    """Do what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, choices=range(1, 6), default=3)
    parser.add_argument("--skill", type=int, default=95, help="steps of stage 1")
    parser.add_argument("--habit", type=int, default=12, help="steps of stage 2")
    parser.add_argument("--steps", type=int, default=25, help="steps of stage 3")
    parser.add_argument("--prompts", type=int, default=48, help="training prompts")
    parser.add_argument("--rollouts", type=int, default=16, help="samples a prompt when measured")
    parser.add_argument("--quick", action="store_true", help="2 steps each, 8 prompts, 1 seed")
    parser.add_argument("--out", type=Path, default=Path("runs/tools"))
    options = parser.parse_args()
    if options.quick:
        options.skill = options.habit = options.steps = 2
        options.prompts, options.rollouts, options.seeds = 8, 2, 1
    options.out.mkdir(parents=True, exist_ok=True)
    print(table([execute(options, seed) for seed in tqdm(range(options.seeds), unit="seed")]))


if __name__ == "__main__":
    main()

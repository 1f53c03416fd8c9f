"""How far the numbers of the cooperative gain can be trusted: coverage, variance, shared or paired.

    python benchmarks/coverage.py                    # all parts: ten minutes on one thread
    python benchmarks/coverage.py --part toy         # policies small enough to enumerate, no model
    python benchmarks/coverage.py --part intervals   # other intervals, by enumerating outcomes
    python benchmarks/coverage.py --part run         # a pocket run, 20 steps
    python benchmarks/coverage.py --write            # also into benchmarks/results/gain.md

Toy: all 121 texts of the policies of toy.py are enumerated, so the true gain is known.

Intervals: see intervals.py.

Run: the shared rows of some steps against the paired gain of the same prompts at the same weights,
by rewinding to where the step began.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from intervals import TOYS
from intervals import report as intervals_report
from torch import Tensor
from toy import PROMPTS, SHIFTS, Toy

from workbench.probes.gain import (
    batch_gain,
    helped_hurt,
    paired_gain,
    paired_gain_rows,
    shared_gain,
)
from workbench.probes.paired import t_quantile
from workbench.sampling import Noise
from workbench.tasks.problem import Problem

RESULTS = Path(__file__).parent / "results" / "gain.md"
GROUP = 8


SHARES = (
    "prompt, interval",
    "prompt, 1.96 se",
    "prompt, t se",
    "mean, 1.96 se",
    "shared prompt, 1.96 se",
    "shared batch, 1.96 se",
)
"""Rows of the toy's table that are in per cent."""


READING = """\
Rows: *prompt, interval* is what the workbench reports for one prompt (Agresti and Min); *1.96 se*
and *t se* are what it would be from the plain standard error, which is 0 where no pair happens to
differ; *mean* is `gain/paired` ± 1.96 `gain/paired_se` over 12 prompts; *shared* are one prompt's
estimate and `gain/shared`, from as many rollouts. Policies *little*, *some* and *much* apart:
logits that differ by a standard deviation of 0.25, 0.8 and 2.

- The mean over the probe set covers in 94 to 96 %. One prompt's interval covers in 95 to 100 % on
  average over prompts: too often where the policies are so close that ten pairs are mostly ties,
  since ten ties look the same whether the gain is 0 or 0.1. No other interval of ten pairs is
  clearly better, more pairs are (next section).
- Ten pairs seldom tell a single prompt apart once the false discovery rate is held: of twelve none
  where policies are near, and one in six probes where they are much apart; 32 pairs tell four of
  twelve there. Ask for more rollouts (`Session.paired_gain(ids, rollouts=32)`) before a claim
  about a prompt.
- The shared gain of one prompt covers in 66 to 82 % from ten rollouts, in 73 to 91 % from 32: a
  hint. The batch's covers in 93 to 95 % while the policies are near, and in 78 to 86 % where they
  are far apart, no better from more rollouts.
- **Where shared must not be used:** as a mean over the prompts that were not blanked. In the run
  below the blanked prompts are where the policies differ: their paired gain is far above that of
  all others. And a group whose rewards are all alike says 0 ± 0, whatever the truth.
"""


def toy(shift: float, repetitions: int, pairs: int) -> dict[str, float]:
    """What `repetitions` probes of one pair of policies find; another pair every tenth."""
    inside: dict[str, list[float]] = {}
    variances, rates = [], []
    problems = [Problem(str(i), "", "") for i in range(PROMPTS)]

    def note(name: str, values: Tensor | bool) -> None:
        inside.setdefault(name, []).append(float(torch.as_tensor(values).double().nanmean()))

    for r in range(repetitions):
        if r % 10 == 0:
            case = Toy(shift, seed=r)
            truth = case.gain_P.mean().item()
        joint_texts = case.draw(case.joint, Noise(0, r, "toy"), pairs)
        joint = case.reward(joint_texts)
        baseline = case.reward(case.draw(case.baseline, Noise(0, r, "toy"), pairs))
        apart = case.reward(case.draw(case.baseline, Noise(0, r, "toy, independent"), pairs))
        found = paired_gain(joint, baseline)
        error = (found.gain - case.gain_P).abs()
        note("prompt, interval", (found.low <= case.gain_P) & (case.gain_P <= found.high))
        note("prompt, 1.96 se", error <= 1.96 * found.standard_error)
        note("prompt, t se", error <= t_quantile(pairs - 1) * found.standard_error)
        mean_error = float(found.standard_error.square().sum().sqrt()) / PROMPTS
        note("mean, 1.96 se", abs(float(found.gain.mean()) - truth) <= 1.96 * mean_error)
        variances.append(
            (float((joint - apart).var(1).mean()), float((joint - baseline).var(1).mean()))
        )
        rows = paired_gain_rows(1, problems, joint, baseline)
        counted = helped_hurt(rows)
        wrong = sum(
            row.gain * float(g) < 0 and row.p_value <= 0.05
            for row, g in zip(rows, case.gain_P, strict=True)
        )
        rates.append((sum(counted), wrong))
        log_ratios = (case.baseline_PY - case.joint_PY).gather(1, joint_texts)
        shared = shared_gain(joint, log_ratios)
        known = ~shared.gain.isnan()
        off = (shared.gain - case.gain_P).abs() <= 1.96 * shared.standard_error
        note("shared prompt, 1.96 se", off.double().masked_fill(~known, float("nan")))
        whole = batch_gain(joint, log_ratios)
        if whole.gain == whole.gain:
            note("shared batch, 1.96 se", abs(whole.gain - truth) <= 1.96 * whole.standard_error)
    independent, coupled = np.array(variances).mean(0)
    told, wrong = np.array(rates).mean(0)
    return {name: float(np.nanmean(values)) for name, values in inside.items()} | {
        "variance, independent over same noise": independent / coupled,
        f"prompts of {PROMPTS} told helped or hurt": told,
        "with p ≤ 0.05 and the wrong sign": wrong,
    }


def toy_report(repetitions: int, numbers_of_pairs: list[int]) -> str:
    """The toy's table, in Markdown."""
    found = {
        f"{name} apart, {pairs} pairs": toy(shift, repetitions, pairs)
        for pairs in numbers_of_pairs
        for name, shift in SHIFTS.items()
    }
    heads = [f"true gain inside, % of {repetitions:,} probes", *found]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in dict.fromkeys(row for shift in found.values() for row in shift):
        share = row in SHARES
        values = [f.get(row) for f in found.values()]  # no estimate where every batch was blanked
        cells = ["–" if v is None else f"{100 * v:.1f}" if share else f"{v:.2f}" for v in values]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured_run(folder: Path, steps: int, rollouts: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shared and paired gain of the prompts of some steps; and the paired variances of each."""
    from workbench import RunConfig, Session

    config = RunConfig.preset("pocket").with_changes(
        evaluate_every=0,
        paired_gain_every=0,
        token_views_every=0,
        alignment_every=0,
        snapshot_every=5,
        keep_last=steps // 5 + 1,
    )
    rows, spreads = [], []
    with Session(config, folder / "run") as s:
        s.start(steps)
        s.wait()
        shared = s.frame("gain")
        for start in range(steps - 5, 0, -5):
            s.rewind(start)
            mine = shared[(shared["step"] == start + 1) & (shared["estimator"] == "shared")]
            for row in s.paired_gain(list(mine["prompt_id"]), rollouts):
                one = mine[mine["prompt_id"] == row.prompt_id].iloc[0]
                rows.append(
                    {
                        "step": start + 1,
                        "shared": one["gain"],
                        "shared_se": one["standard_error"],
                        "ess": one["ess"] / one["n_rollouts"],
                        "alike": one["joint_reward"] in (0.0, 1.0),
                        "paired": row.gain,
                        "paired_se": row.standard_error,
                    }
                )
                p, q = row.joint_reward, row.baseline_reward
                unbiased = rollouts / (rollouts - 1)
                spreads.append(
                    {
                        "step": start + 1,
                        "independent": unbiased * (p * (1 - p) + q * (1 - q)),
                        "coupled": rollouts * row.standard_error**2,
                    }
                )
    return pd.DataFrame(rows), pd.DataFrame(spreads)


def run_report(rows: pd.DataFrame, spreads: pd.DataFrame, rollouts: int) -> str:
    """What the run says, in Markdown."""
    lines = [
        "| step | variance, independent | variance, same noise | factor |",
        "|---|---|---|---|",
    ]
    for step, part in spreads.groupby("step"):
        a, b = part["independent"].mean(), part["coupled"].mean()
        lines.append(f"| {step} | {a:.4f} | {b:.4f} | {a / b if b else float('inf'):.1f} |")
    a, b = spreads["independent"].mean(), spreads["coupled"].mean()
    lines += [f"| all | {a:.4f} | {b:.4f} | **{a / b:.1f}** |", ""]
    lines += [
        "| prompts of the run | number | correlation | slope of shared on paired | "
        "mean shared | mean paired | inside ±1.96 se of both |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = {
        "all but blanked": rows["shared"].notna(),
        "group's rewards differ": rows["shared"].notna() & ~rows["alike"],
        "… and ESS/G above 0.8": rows["shared"].notna() & ~rows["alike"] & (rows["ess"] > 0.8),
        "… and ESS/G 0.3 to 0.8": rows["shared"].notna() & ~rows["alike"] & (rows["ess"] <= 0.8),
        "group's rewards all alike": rows["shared"].notna() & rows["alike"],
        "blanked (ESS/G below 0.3)": rows["shared"].isna(),
    }
    for name, mask in groups.items():
        part = rows[mask]
        cells = ["–"] * 2
        if part["shared"].std() > 0 and part["paired"].std() > 0:
            covariance = np.cov(part["shared"], part["paired"])
            r = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
            cells = [f"{r:.2f}", f"{covariance[0, 1] / covariance[1, 1]:.2f}"]
        reach = 1.96 * np.hypot(part["shared_se"], part["paired_se"])
        inside = ((part["shared"] - part["paired"]).abs() <= reach).mean()
        if len(part):
            cells += [
                f"{part['shared'].mean():+.3f}" if part["shared"].notna().any() else "–",
                f"{part['paired'].mean():+.3f}",
                f"{inside:.0%}" if part["shared"].notna().any() else "–",
            ]
        lines.append(f"| {name} | {len(part)} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\nPaired: {rollouts} rollouts a side, shared: {GROUP}."


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", choices=("toy", "intervals", "run", "all"), default="all")
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument(
        "--pairs", type=int, nargs="+", default=[10, 32], help="of the toy's probes"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rollouts", type=int, default=32, help="a side, of the paired gain")
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started, parts = time.time(), []
    if args.part in ("toy", "all"):
        parts.append(
            "## On policies that can be enumerated\n\n" + toy_report(args.repetitions, args.pairs)
        )
        parts[-1] += "\n\n" + READING.strip()
        print(parts[-1], flush=True)
    if args.part in ("intervals", "all"):
        parts.append(
            "## Other intervals, and the p-value, exactly\n\n"
            + intervals_report(min(TOYS, args.repetitions))
        )
        print(parts[-1], flush=True)
    if args.part in ("run", "all"):
        with tempfile.TemporaryDirectory() as folder:
            rows, spreads = measured_run(Path(folder), args.steps, args.rollouts)
        parts.append(
            f"## On a pocket run of {args.steps} steps\n\n"
            + run_report(rows, spreads, args.rollouts)
        )
        print(parts[-1], flush=True)
    made = (
        f"Made by `python benchmarks/coverage.py` in {time.time() - started:.0f} s; one thread, "
        f"torch {torch.__version__}, {platform.machine()}, Python {platform.python_version()}."
    )
    print(made, file=sys.stderr)
    if args.write:
        text = "# What the cooperative gain's numbers are worth\n\n" + "\n\n".join([*parts, made])
        RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

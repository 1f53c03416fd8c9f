"""How far the numbers of the cooperative gain can be trusted: coverage, variance, shared or paired.

    python benchmarks/coverage.py                # both parts: minutes on one thread
    python benchmarks/coverage.py --part toy     # policies small enough to enumerate, no model
    python benchmarks/coverage.py --part run     # a pocket run, 20 steps
    python benchmarks/coverage.py --write        # also into benchmarks/results/gain.md

Toy: policies over three tokens and an end, at most four tokens long, whose next-token distribution
depends on the token before and the position. All 121 texts are enumerated, so the true gain is
known. Rollouts are drawn as the workbench draws them, by argmax of log π + its own Gumbel noise.

Run: the shared rows of some steps against the paired gain of the same prompts at the same weights,
by rewinding to where the step began.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.probes.gain import (
    batch_gain,
    helped_hurt,
    paired_gain,
    paired_gain_rows,
    shared_gain,
)
from workbench.probes.paired import t_quantile
from workbench.sampling import Noise, gumbel
from workbench.tasks.problem import Problem

RESULTS = Path(__file__).parent / "results" / "gain.md"
V, LENGTH = 4, 4  # token 0 ends a text
PROMPTS, PAIRS, GROUP = 12, 8, 8
SHIFTS = {"little": 0.25, "some": 0.8, "much": 2.0}
"""How far the two policies are apart: standard deviation of their logits' difference."""


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
estimate and `gain/shared`. Policies *little*, *some* and *much* apart: logits that differ by a
standard deviation of 0.25, 0.8 and 2.

- The mean over the probe set covers in 94 to 96 %. One prompt's interval covers in 96 to 100 % on
  average over prompts: too often where the policies are so close that 8 pairs are mostly ties,
  since eight ties look the same whether the gain is 0 or 0.1.
- Eight pairs hardly ever tell a single prompt apart once the false discovery rate is held; ask for
  more rollouts (`Session.paired_gain(ids, rollouts=32)`) before a claim about a prompt.
- The shared gain of one prompt covers in 63 to 79 %: a hint. The batch's covers in 93 to 95 % while
  the policies are near, and less where they are far apart.
- **Where shared must not be used:** as a mean over the prompts that were not blanked. In the run
  below the blanked prompts are where the policies differ: their paired gain is far above that of
  all others. And a group whose rewards are all alike says 0 ± 0, whatever the truth.
"""


def texts() -> list[tuple[int, ...]]:
    """All texts: each token in 1…V−1, then the end, or cut off at LENGTH."""
    found = []
    for n in range(LENGTH + 1):
        ends = [()] if n == LENGTH else [(0,)]
        found += [(*t, *e) for t in itertools.product(range(1, V), repeat=n) for e in ends]
    return found


class Toy:
    """PROMPTS pairs of policies, with the exact probability of every text under both."""

    def __init__(self, shift: float, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        shape = (PROMPTS, LENGTH, V, V)  # position, token before, token
        joint = 1.2 * torch.randn(shape, generator=g, dtype=torch.float64)
        moved = shift * torch.randn(shape, generator=g, dtype=torch.float64)
        self.joint = joint.log_softmax(-1)
        self.baseline = (joint + moved).log_softmax(-1)
        self.texts = texts()
        self.place = {text: i for i, text in enumerate(self.texts)}
        self.reward_PY = (torch.rand(PROMPTS, len(self.texts), generator=g) < 0.5).double()
        self.joint_PY, self.baseline_PY = self._exact(self.joint), self._exact(self.baseline)
        self.gain_P = ((self.joint_PY.exp() - self.baseline_PY.exp()) * self.reward_PY).sum(1)

    def _exact(self, logprobs: Tensor) -> Tensor:
        columns = []
        for text in self.texts:
            steps = zip(range(LENGTH), (0, *text), text, strict=False)
            columns.append(sum(logprobs[:, t, before, token] for t, before, token in steps))
        return torch.stack(columns, 1)

    def draw(self, logprobs: Tensor, noise: Noise, rollouts: int) -> Tensor:
        """Indices into `texts` of K texts a prompt, on the noise streams of the paired probe."""
        n = PROMPTS * rollouts
        prompts = torch.arange(PROMPTS).repeat_interleave(rollouts)
        before, open_ = torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool)
        written = torch.full((n, LENGTH), -1)
        for t in range(LENGTH):
            noisy = logprobs[prompts, t, before] + gumbel(noise, torch.arange(n), t, V)
            chosen = noisy.argmax(1)
            written[open_, t] = chosen[open_]
            open_ &= chosen != 0
            before = chosen
        rows = [tuple(token for token in row if token >= 0) for row in written.tolist()]
        return torch.tensor([self.place[row] for row in rows]).view(PROMPTS, rollouts)

    def reward(self, texts_PK: Tensor) -> Tensor:
        """Rewards of texts given by their index."""
        return self.reward_PY.gather(1, texts_PK)


def toy(shift: float, repetitions: int) -> dict[str, float]:
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
        joint_texts = case.draw(case.joint, Noise(0, r, "toy"), PAIRS)
        joint = case.reward(joint_texts)
        baseline = case.reward(case.draw(case.baseline, Noise(0, r, "toy"), PAIRS))
        apart = case.reward(case.draw(case.baseline, Noise(0, r, "toy, independent"), PAIRS))
        found = paired_gain(joint, baseline)
        error = (found.gain - case.gain_P).abs()
        note("prompt, interval", (found.low <= case.gain_P) & (case.gain_P <= found.high))
        note("prompt, 1.96 se", error <= 1.96 * found.standard_error)
        note("prompt, t se", error <= t_quantile(PAIRS - 1) * found.standard_error)
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


def toy_report(repetitions: int) -> str:
    """The toy's table, in Markdown."""
    found = {name: toy(shift, repetitions) for name, shift in SHIFTS.items()}
    lines = [
        f"| true gain inside, % of {repetitions:,} probes | "
        + " | ".join(f"{name} apart" for name in found)
        + " |",
        "|---|" + "---|" * len(found),
    ]
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
    parser.add_argument("--part", choices=("toy", "run", "both"), default="both")
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rollouts", type=int, default=32, help="a side, of the paired gain")
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started, parts = time.time(), []
    if args.part in ("toy", "both"):
        parts.append("## On policies that can be enumerated\n\n" + toy_report(args.repetitions))
        parts[-1] += "\n\n" + READING.strip()
        print(parts[-1], flush=True)
    if args.part in ("run", "both"):
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

"""Seconds of each phase of a step on the pocket preset, with all default probes and with none.

    python benchmarks/step_time.py
    python benchmarks/step_time.py --steps 40 --method grpo

Both sessions live in one process and take turns step by step, so a busy machine slows them alike.
The numbers are the run's own `seconds/<phase>` metrics after a warm-up. Some probes run only on
every fifth or tenth step: the median is a common step, the mean is what a long run costs.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from workbench import RunConfig, Session
from workbench.records import PHASES

PROBES_OFF = {
    "alignment_every": 0,
    "shared_gain_every": 0,
    "paired_gain_every": 0,
    "token_views_every": 0,
    "coordinator_every": 0,
    "evaluate_every": 0,
}


def measure(method: str, steps: int, warmup: int, folder: Path) -> dict[str, pd.DataFrame]:
    """Metrics frames, one row a step after warm-up, with default probes and with none."""
    config = RunConfig.preset("pocket", method=method)
    with (
        Session(config, run_dir=folder / "probes") as with_probes,
        Session(config.with_changes(**PROBES_OFF), run_dir=folder / "none") as without,
    ):
        for _ in tqdm(range(warmup + steps), desc="steps, two sessions in turn"):
            with_probes.step()
            without.step()
        return {
            "default probes": with_probes.frame("metrics").query("step > @warmup"),
            "no probes": without.frame("metrics").query("step > @warmup"),
        }


def table(frames: dict[str, pd.DataFrame]) -> str:
    """Median, 10th to 90th percentile and mean of each phase, in Markdown."""
    lines = [
        "| phase | " + " | ".join(f"{name}: median (10–90 %), mean" for name in frames) + " |",
        "|---|" + "---|" * len(frames),
    ]
    for phase in (*PHASES, "total"):
        cells = []
        for frame in frames.values():
            seconds = frame[f"seconds/{phase}"]
            low, high = seconds.quantile(0.1), seconds.quantile(0.9)
            cells.append(f"{seconds.median():.3f} ({low:.3f}–{high:.3f}), {seconds.mean():.3f}")
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print."""
    import torch  # here: after workbench, which says how torch's threads wait

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--method", default="bridge")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        frames = measure(args.method, args.steps, args.warmup, Path(folder))
    print(f"\n{table(frames)}\n")
    print(
        f"Seconds of a `{args.method}` step of the pocket preset over {args.steps} steps after "
        f"{args.warmup}; {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{platform.machine()}."
    )


if __name__ == "__main__":
    main()

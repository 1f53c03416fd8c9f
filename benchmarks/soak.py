"""Eight hours in miniature: many pocket steps with the app open in a browser, and what grows.

    python benchmarks/soak.py                 # 3,000 steps, → benchmarks/results/soak.md
    python benchmarks/soak.py --steps 200

Starts `python app.py` on the pocket model with tiny batches, opens it in a headless Chromium, whose
page asks for news all the time, and presses Run. Beside it the process's memory, threads and open
file handles are read from /proc. Of each, the slope over the steps after a warm-up, with its 95 %
interval: samples are averaged in 20 blocks, since neighbours are alike, and a line is fitted to
those. Memory counts as flat where the interval holds 0 or the slope is below a kilobyte a step.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.ui.browser import launched, new_page, open_tab  # noqa: E402
from workbench.config import RunConfig  # noqa: E402
from workbench.store import open_run  # noqa: E402

ROOT = Path(__file__).parents[1]
BLOCKS = 20
T_95 = 2.101  # Student's t, 18 degrees of freedom
SMALL = {
    "device": "cpu",
    "prompts_per_step": 2,
    "group_size": 2,
    "demonstrations_per_step": 2,
    "max_new_tokens": 6,
    "evaluation_prompts": 2,
    "evaluation_max_new_tokens": 6,
    "paired_prompts": 2,
    "paired_rollouts": 2,
    "n_prompts": 32,
    "n_demonstrations": 16,
    "n_validation": 4,
    "n_hard": 4,
    "snapshot_every": 20,
    "keep_last": 2,
    "keep_every": 0,
}


def usage(pid: int) -> dict[str, float]:
    """Memory in MB, threads and open file handles of a process, now."""
    status = Path(f"/proc/{pid}/status").read_text()
    values = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE))
    handles = len(os.listdir(f"/proc/{pid}/fd"))
    return {
        "memory": int(values["VmRSS"]) / 1000,
        "threads": float(values["Threads"]),
        "handles": float(handles),
    }


def measure(steps: int, every: float, folder: Path) -> pd.DataFrame:
    """Run the app for so many steps; a row each `every` seconds: step and `usage`."""
    config = folder / "small.toml"
    config.write_text(RunConfig.preset("pocket").with_changes(**SMALL).to_toml(), encoding="utf-8")
    run = folder / "run"
    command = [sys.executable, "app.py", "--run", str(run), "--config", str(config)]
    rows = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    ) as app:
        assert app.stdout is not None
        found = (re.match(r"open (http\S+)/ ", line) for line in app.stdout)
        url = next(match[1] for match in found if match)
        with launched() as browser:
            page = new_page(browser, url)
            page.locator("#count input").fill(str(steps))
            page.click("#step-n")
            tabs = ["Rollouts", "Run", "Cooperative gain", "Gradient alignment", "Run"]
            began = time.monotonic()
            while (step := open_run(run).last_step()) < steps:
                rows.append({"step": step, "seconds": time.monotonic() - began, **usage(app.pid)})
                if len(rows) % 30 == 0:  # somebody looks around
                    open_tab(page, tabs[len(rows) // 30 % len(tabs)])
                print(f"\rstep {step}, {rows[-1]['memory']:.0f} MB", end="", flush=True)
                time.sleep(every)
            print()
        app.send_signal(signal.SIGINT)
        app.communicate(timeout=300)
    return pd.DataFrame(rows)


def slope(frame: pd.DataFrame, name: str) -> tuple[float, float]:
    """Growth of a column per step, and the half-width of its 95 % interval."""
    blocks = np.array_split(frame[["step", name]].to_numpy(float), BLOCKS)
    x, y = np.array([block.mean(axis=0) for block in blocks]).T
    centred = x - x.mean()
    rate = (centred @ y) / (centred @ centred)
    residuals = y - y.mean() - rate * centred
    error = np.sqrt(residuals @ residuals / (BLOCKS - 2) / (centred @ centred))
    return float(rate), float(T_95 * error)


def table(frame: pd.DataFrame, steps: int, warmup: float) -> tuple[str, bool]:
    """The result in Markdown, and whether nothing grows."""
    settled = frame[frame["step"] >= warmup * steps]
    lines = [
        "# Eight hours in miniature",
        "",
        f"{steps} pocket steps with tiny batches and the app open in a browser; "
        f"{frame['seconds'].max() / 60:.0f} minutes, {len(settled)} samples after a warm-up of "
        f"{warmup:.0%} of the steps, {platform.machine()}. Made by `python benchmarks/soak.py`.",
        "",
        "| | after warm-up | in the end | most | slope a 1,000 steps (95 %) |",
        "|---|---|---|---|---|",
    ]
    flat = True
    tolerated = {"memory": 0.001, "threads": 0.001, "handles": 0.001}  # a step
    for name, unit in {"memory": " MB", "threads": "", "handles": ""}.items():
        rate, half = slope(settled, name)
        flat &= rate - half <= 0 or rate <= tolerated[name]
        values = settled[name]
        lines.append(
            f"| {name}{unit and ',' + unit} | {values.iloc[0]:.0f} | {values.iloc[-1]:.0f} | "
            f"{values.max():.0f} | {1000 * rate:+.2f} ± {1000 * half:.2f} |"
        )
    return "\n".join([*lines, "", "Nothing grows." if flat else "**Something grows.**", ""]), flat


def main() -> int:
    """Parse the command line, run, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between samples")
    parser.add_argument("--warmup", type=float, default=0.25, help="share of steps left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/soak.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        frame = measure(options.steps, options.every, Path(folder))
    text, flat = table(frame, options.steps, options.warmup)
    options.out.write_text(text, encoding="utf-8")
    frame.to_csv(options.out.with_suffix(".csv"), index=False)
    print(text)
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())

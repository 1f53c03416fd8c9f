"""Does the ledger find the flawed demonstrations, and does setting them aside help?

    python benchmarks/suspects.py               # all tables, about an hour on one core
    python benchmarks/suspects.py --seeds 1 --checkpoints 2 4 --aside-at 2 --steps 3   # smoke test

Every demonstration of the pocket task carries a hidden tag: clean, or flawed in a named way. No
training and no score reads it. Per run seed (each with demonstrations of its own):

- one `bridge` run on the default demonstrations, a quarter of them flawed, and one where half of
  the clean ones are written in a style the model never saw, right all the same: a score that finds
  the unusual instead of the harmful fails there;
- after each checkpoint, the AUROC of flawed against clean (0.5: a coin, 1: every flawed one ranks
  above every clean one) of the ledger's score beside simpler scores made of the same visits, and of
  what 8 rollouts of the RL-only baseline say of each demonstration's answer (`check_answers`);
- from the step --aside-at on, three ways to go on with the first run: with all demonstrations,
  without the 64 that rank as most suspect (as many as are flawed), and without the flawed ones by
  their tags, which nobody could do in life.

Each finished run leaves its folder under --out; started again, the script goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from workbench import RunConfig, Session, open_run
from workbench.probes.ledger import ledger

FLAWS = ("wrong_step", "wrong_answer", "detour", "other_task")
STYLES = {"default": 0.0, "unfamiliar": 0.5}
TITLES = {
    "default": "A quarter flawed, the rest as the model knows it",
    "unfamiliar": "The same, half of the clean ones in an unfamiliar style",
}
ARMS = ("all", "suspects set aside", "flawed set aside")
SCORES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "ledger score": lambda found: found["score"],
    "−contribution": lambda found: -found["contribution"],
    "loss": lambda found: found["loss"],
    "−loss drop": lambda found: -found["loss_drop"],
    "gradient norm": lambda found: found["grad_norm"],
}
VOTES = "**contradicted**"
"""Row of the table for `disagreement`, which is asked for at each checkpoint."""
CHEAP: dict[str, Any] = {
    "shared_gain_every": 0,
    "paired_gain_every": 0,
    "token_views_every": 0,
    "coordinator_every": 0,
    "evaluate_every": 0,
    "keep_last": 1,
    "keep_every": 0,
}


def auroc(score: pd.Series, flawed: pd.Series) -> float:
    """P(a flawed one scores above a clean one), ties half; a missing score is the median one."""
    if score.isna().all():
        return 0.5
    ranks = score.fillna(score.median()).rank()
    n_flawed, n_clean = int(flawed.sum()), int((~flawed).sum())
    above = ranks[flawed].sum() - n_flawed * (n_flawed + 1) / 2
    return float(above / (n_flawed * n_clean))


def run_to(
    session: Session, step: int, bar: tqdm[Any], ask: Callable[[Session], None] | None = None
) -> None:
    """Step until `step` is done; call `ask` after each."""
    while session.step_number < step:
        session.step()
        bar.update()
        if ask is not None:
            ask(session)


def train(seed: int, style: str, args: argparse.Namespace, bar: tqdm[Any]) -> None:
    """The run whose ledger is judged, and its two forks."""
    main = args.out / f"{style}-{seed}"
    aside, steps = args.aside_at, max(args.checkpoints)
    arms = ARMS if style == "default" else ARMS[:1]
    if (args.out / f"{style}-{seed}.done").exists():
        bar.update(steps + (len(arms) - 1) * (args.steps - aside))
        return
    for folder in args.out.glob(f"{style}-{seed}*"):  # left by an interrupted run
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    config = RunConfig.preset(
        "pocket",
        method="bridge",
        seed=seed,
        task_seed=seed,
        unfamiliar_share=STYLES[style],
        n_validation=256,
        **CHEAP,
    )

    def ask(session: Session) -> None:
        if session.step_number in args.checkpoints:
            votes = {row.demonstration_id: row.disagreement for row in session.check_answers()}
            _votes(args, style, seed, session.step_number).write_text(json.dumps(votes))

    with Session(config, run_dir=main) as session:
        run_to(session, aside, bar, ask)
        for arm in arms[1:]:
            found = session.ledger()
            ids = {
                "suspects set aside": found.nsmallest(64, "rank")["demonstration_id"],
                "flawed set aside": _flawed(session),
            }[arm]
            with session.fork(args.out / f"{style}-{seed}-{arm}") as fork:
                fork.set_aside(list(ids))
                run_to(fork, args.steps, bar)
                _write_accuracy(fork, args.out / f"{style}-{seed}-{arm}.accuracy")
        run_to(session, args.steps, bar, ask)
        _write_accuracy(session, args.out / f"{style}-{seed}-{arms[0]}.accuracy")
        run_to(session, steps, bar, ask)
    (args.out / f"{style}-{seed}.done").touch()


def _votes(args: argparse.Namespace, style: str, seed: int, step: int) -> Path:
    return Path(args.out / f"{style}-{seed}.votes-{step}")


def _flawed(session: Session) -> list[str]:
    from workbench.tasks import make_task

    return [d.id for d in make_task(session.config.task).demonstrations() if d.quality != "clean"]


def _write_accuracy(session: Session, path: Path) -> None:
    path.write_text(f"{session.evaluate('validation')} {session.evaluate('hard')}")


def found_table(args: argparse.Namespace, style: str) -> str:
    """AUROC by score, checkpoint and kind of flaw: mean ± sd over the seeds."""
    heads = ["score", "steps", *(f"`{flaw}`" for flaw in FLAWS), "all"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    frames = [open_run(args.out / f"{style}-{s}").frame("demonstrations") for s in args.seed_list]
    for name, score in {VOTES: _disagreement, **SCORES}.items():
        for checkpoint in args.checkpoints:
            books = [ledger(frame[frame["step"] <= checkpoint]) for frame in frames]
            for seed, book in zip(args.seed_list, books, strict=True):
                votes = json.loads(_votes(args, style, seed, checkpoint).read_text())
                book["disagreement"] = book["demonstration_id"].map(votes)
            cells = [f"**{name}**" if name == "ledger score" else name, str(checkpoint)]
            for flaw in (*FLAWS, None):
                values = []
                for book in books:
                    kinds = book["quality"] if flaw else book["quality"].ne("clean").astype(str)
                    kept = kinds.isin(["clean", flaw]) if flaw else kinds.notna()
                    flawed = book.loc[kept, "quality"].ne("clean")
                    values.append(auroc(score(book)[kept], flawed))
                cells.append(_spread(values, 2))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _disagreement(found: pd.DataFrame) -> pd.Series:
    return found["disagreement"]


def aside_table(args: argparse.Namespace) -> str:
    """Greedy accuracy at the end of each arm, and what it moved by: mean ± sd over the seeds."""
    lines = ["| from there on | validation, % | longer chains, % | change |", "|---|---|---|---|"]
    reached = {
        arm: [
            [float(x) for x in (args.out / f"default-{s}-{arm}.accuracy").read_text().split()]
            for s in args.seed_list
        ]
        for arm in ARMS
    }
    for arm, values in reached.items():
        plain, hard = ([100 * v[i] for v in values] for i in (0, 1))
        moved = [100 * (v[0] - a[0]) for v, a in zip(values, reached["all"], strict=True)]
        change = "–" if arm == "all" else _spread(moved, 1)
        lines.append(f"| {arm} | {_spread(plain, 1)} | {_spread(hard, 1)} | {change} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    shown = f"{statistics.mean(values):.{digits}f}"
    return shown + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    """Train what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-suspects"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[20, 40, 80])
    parser.add_argument("--aside-at", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60, help="end of the set-aside comparison")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    args = parser.parse_args()
    if not args.aside_at <= args.steps <= max(args.checkpoints):
        parser.error("needs --aside-at ≤ --steps ≤ the last checkpoint")
    args.seed_list = range(args.seeds)
    args.out.mkdir(parents=True, exist_ok=True)
    each = len(args.styles) * max(args.checkpoints)
    each += 2 * (args.steps - args.aside_at) * ("default" in args.styles)
    with tqdm(total=args.seeds * each, unit="step") as bar:
        for seed in args.seed_list:
            for style in args.styles:
                train(seed, style, args, bar)
    for style in args.styles:
        print(f"\n## {TITLES[style]}\n")
        print(found_table(args, style))
    if "default" in args.styles:
        print(f"\n## Set aside after step {args.aside_at}, accuracy after step {args.steps}\n")
        print(aside_table(args))
    print(f"\n{args.seeds} seeds, mean ± sd; preset `pocket`, method `bridge`.")


if __name__ == "__main__":
    main()

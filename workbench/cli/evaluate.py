"""`python -m workbench eval RUN|MODEL --sets …`: policies side by side on sets of problems."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = "evaluate a run's policies, or a model, on sets of problems"


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser("eval", help=HELP, description=HELP)
    command.set_defaults(command=run)
    command.add_argument(
        "subject", metavar="RUN|MODEL", help="a run folder, model folder or hub id"
    )
    command.add_argument(
        "--sets",
        nargs="+",
        required=True,
        metavar="SET",
        help="validation, hard, math500, minerva, olympiadbench, aime24, amc23, gym:NAME, "
        "lm-eval:NAME, or a .jsonl, .parquet or .csv file",
    )
    command.add_argument(
        "--policy",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help="joint,off,baseline,base: those of a run (default: all it has)",
    )
    command.add_argument("--step", type=int, help="snapshot of the run (default: the last)")
    command.add_argument(
        "--samples",
        type=_none_or_more,
        default=0,
        metavar="K",
        help="also K samples a problem (avg@K, pass@K)",
    )
    command.add_argument("--temperature", type=_above_0, default=1.0, help="of the samples")
    command.add_argument(
        "--max-new-tokens", type=_one_or_more, help="longest completion (default: the run's)"
    )
    command.add_argument(
        "--limit", type=_one_or_more, metavar="N", help="the first N problems of each set"
    )
    command.add_argument("--seed", type=int, default=0, help="of the samples' noise")
    command.add_argument(
        "--columns", nargs=2, default=(), metavar=("prompt=NAME", "answer=NAME"), help="of files"
    )
    command.add_argument(
        "--reward", choices=("task", "math", "exact", "choice"), help="what scores files"
    )
    command.add_argument("--suffix", help="text put behind each prompt of files and named sets")
    command.add_argument(
        "--data", type=Path, default=Path("data"), help="folder with named sets as files"
    )
    command.add_argument("--tasks", type=Path, help="folder with lm-eval tasks of your own")
    command.add_argument("--out", type=Path, help="where to keep it (default: RUN/evaluations)")


def run(options: argparse.Namespace) -> int:
    """Evaluate, keep what was found and print it."""
    from transformers.utils import logging

    from workbench.config import ConfigError
    from workbench.evaluation import POLICIES, Evaluation, evaluate, load_set, open_subjects
    from workbench.evaluation.harness import harness_scores
    from workbench.evaluation.keeping import keep, label_of
    from workbench.evaluation.table import table
    from workbench.store import evaluations
    from workbench.tasks import make_task
    from workbench.tasks.sets import file_columns

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for name in options.policy:
        if name not in POLICIES:
            raise ConfigError(f"--policy: there is no {name!r}; there are {', '.join(POLICIES)}")
    subject = open_subjects(options.subject, options.policy, options.step)
    task = settings = None
    if subject.run is not None:
        settings = subject.config.task
        task = make_task(settings)
    columns = _columns(options.columns) if options.columns else file_columns(settings)
    reward = options.reward or ("task" if task is not None else "math")
    harness = [s.removeprefix("lm-eval:") for s in options.sets if s.startswith("lm-eval:")]
    sets = [
        load_set(
            name,
            task=task,
            settings=settings,
            columns=columns,
            reward=reward,
            suffix=options.suffix,
            folder=options.data,
            limit=options.limit,
        )
        for name in options.sets
        if not name.startswith("lm-eval:")
    ]
    names = [chosen.name for chosen in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--sets: two are called {twice[0]!r}; ask for them one after the other")
    where = options.out or (
        subject.run.path / evaluations.EVALUATIONS if subject.run else Path(evaluations.EVALUATIONS)
    )
    try:  # now, not when all is done
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {where}: {error.strerror}") from None
    longest = options.max_new_tokens or (
        subject.config.probes.evaluation_max_new_tokens if subject.run is not None else 512
    )
    found = Evaluation.nothing()
    if sets:
        found = evaluate(
            subject,
            sets,
            samples=options.samples,
            temperature=options.temperature,
            max_new_tokens=longest,
            seed=options.seed,
        )
    outside = {}
    if harness:
        outside = harness_scores(
            subject.policy.merged(),
            subject.policy.tokenizer,
            harness,
            folder=options.tasks,
            limit=options.limit,
            chat_template=bool(
                subject.config.model.chat_template and subject.policy.tokenizer.chat_template
            ),
        )
    asked = {
        "subject": options.subject,
        "sets": options.sets,
        "samples": options.samples,
        "temperature": options.temperature,
        "max_new_tokens": longest,
        "seed": options.seed,
        "reward": reward,
    }
    label = label_of(subject.step) if subject.run else Path(options.subject).name
    kept = keep(found, subject, where, label, asked, outside)
    print(table(found, outside))
    print(f"completions and numbers are in {kept}")
    return 0


def _columns(given: tuple[str, ...]) -> dict[str, str]:
    from workbench.config import ConfigError

    columns = {"prompt": "prompt", "answer": "answer"}
    for pair in given:
        key, equals, value = pair.partition("=")
        if key not in columns or not equals:
            raise ConfigError(f"--columns: {pair!r} is neither prompt=NAME nor answer=NAME")
        columns[key] = value
    return columns


def _none_or_more(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def _one_or_more(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _above_0(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number

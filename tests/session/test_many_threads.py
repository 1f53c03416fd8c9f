"""A session that several threads ask at once, for whatever comes to their minds."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

from workbench.config import ConfigError, RunConfig
from workbench.session import Session
from workbench.store import RunFolderError, open_run
from workbench.worker import SessionError

THREADS, CALLS = 4, 12


def test_no_call_hangs_none_harms_the_run_and_what_is_refused_is_refused_in_one_line(
    config: RunConfig, tmp_path: Path
) -> None:
    s = Session(config.with_changes(snapshot_every=1, keep_last=9), tmp_path / "run")
    s.run(2)

    def fork(name: str) -> None:
        with s.fork(tmp_path / name, step=1) as other:
            assert other.step_number == 1

    def calls(dice: random.Random, name: str) -> list[Callable[[], object]]:
        return [
            lambda: s.start(dice.randint(1, 3)),
            lambda: s.start(),
            s.step,
            s.pause,
            s.go_on,
            lambda: s.wait(0.05),
            lambda: s.rewind(max(0, s.step_number - 1)),
            lambda: fork(name),
            lambda: s.set(rl_weight=dice.choice([0.3, 0.7])),
            lambda: s.set_aside([s._worker.engine.task.demonstrations()[dice.randrange(4)].id]),
            lambda: s.take_back(list(s.config.training.set_aside)),
            lambda: s.sample(["1+2=?"]),
            lambda: s.replay(1, trace=True),
            s.save,
            lambda: s.pin(0),
            lambda: s.unpin(0),
            lambda: s.frame("rollouts"),
            lambda: repr(s),
        ]

    wrong: list[BaseException] = []

    def work(number: int) -> None:
        dice = random.Random(number)
        for turn in range(CALLS):
            try:
                dice.choice(calls(dice, f"fork-{number}-{turn}"))()
            except (SessionError, ConfigError, RunFolderError) as error:
                if not str(error) or "\n" in str(error):
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    assert wrong == []
    s.close()
    assert (s.state, s.error) == ("closed", "")
    run = open_run(tmp_path / "run")
    assert run.problems() == [] and run.frame("findings").empty
    with Session.resume(tmp_path / "run") as again:
        for step in range(1, again.step_number + 1):
            assert again.replay(step).identical

"""What the detectors look back at, of a run of any length: the same as of whole lists."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.diagnosis.history import EARLIEST, FURTHEST_BACK, History


@pytest.mark.parametrize("n_rows", [1, EARLIEST, FURTHEST_BACK + 7, 5 * FURTHEST_BACK + 3])
def test_looks_back_as_if_all_were_kept(n_rows: int) -> None:
    rng = np.random.default_rng(0)
    history, steps, values = History(), [], []
    for step in range(1, n_rows + 1):
        row = {"reward": float(rng.normal())}
        if step % 3 == 0:
            row["eval/accuracy"] = float(rng.normal())
            steps.append(step)
            values.append(row["eval/accuracy"])
        history.add(step, row)
        last = row["reward"]
    assert history.now("reward") == last
    assert history.count("reward") == n_rows
    assert history.count("eval/accuracy") == len(values)
    for n in (1, 5, EARLIEST):
        assert history.head("eval/accuracy", n).tolist() == values[:n]
    for n in (1, 30, FURTHEST_BACK):
        assert history.tail("eval/accuracy", n).tolist() == values[-n:]
        assert history.last_steps("eval/accuracy", n) == steps[-n:]
    if values:
        onset = history.since("eval/accuracy", lambda value: True)
        assert onset == steps[-FURTHEST_BACK:][0]
        assert history.start("eval/accuracy") == np.median(values[:5])
        assert history.level("eval/accuracy") == np.median(values[-5:])


def test_a_long_run_takes_no_more_than_a_shorter_one() -> None:
    history = History()
    for step in range(20 * FURTHEST_BACK):
        history.add(step, {"reward": 1.0})
        assert len(history._values["reward"]) <= EARLIEST + 2 * FURTHEST_BACK

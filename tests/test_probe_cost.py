"""What each probe took is told apart, and adds nothing to a step's time."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench import RunConfig, Session
from workbench.records import PHASES, PROBES

EVERY = {setting: 1 for setting in PROBES.values()}

SMALL = RunConfig.preset("pocket").with_changes(
    prompts_per_step=2,
    group_size=2,
    demonstrations_per_step=2,
    max_new_tokens=4,
    paired_prompts=2,
    paired_rollouts=2,
    evaluation_prompts=2,
    evaluation_max_new_tokens=4,
)


def test_every_probe_has_a_schedule_in_the_config() -> None:
    for setting in PROBES.values():
        assert SMALL.get(setting) == getattr(SMALL.probes, setting)


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_that_is_not_due_has_no_cost_and_the_others_have(
    probe: str, tmp_path: Path
) -> None:
    config = SMALL.with_changes(**EVERY | {PROBES[probe]: 0})
    with Session(config, tmp_path / "run") as session:
        metrics = session.step().metrics
    timed = {name for name in metrics if name.startswith("seconds/probe/")}
    assert timed == {f"seconds/probe/{name}" for name in PROBES if name != probe}
    assert all(metrics[name] > 0 for name in timed)
    phases = [metrics[f"seconds/{phase}"] for phase in PHASES]
    assert metrics["seconds/total"] == pytest.approx(sum(phases))
    outside = metrics["seconds/gradients"] if probe != "alignment" else 0.0  # it works there too
    assert sum(metrics[name] for name in timed) <= metrics["seconds/probes"] + outside

"""The tree of runs, forks and rewinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from workbench.config import RunConfig
from workbench.records import CommandRow, StepRecord
from workbench.store import RunFolderError, RunStore, branch_metrics, run_tree


def made(step: int, reward: float) -> StepRecord:
    return StepRecord(step, {"reward": reward}, [], [], [], [], [])


def add(store: RunStore, steps: range, reward: float) -> None:
    for step in steps:
        store.append(made(step, reward + step / 100))


def command(store: RunStore, step: int, name: str, **arguments: object) -> None:
    store.add_command(CommandRow(step, "rollouts", 0.0, name, arguments, "done"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run of 6 steps; rewound to 4 after a set; two forks at 3 and 5, one of which was rewound.

    trunk        1 2 3 4 5 6            (λ = 0.7 from step 3 on)
    trunk ↶1             5 6 7          from 4, base_lr set
    early              4 5              fork of 3
    late                   6 7          fork of 5, of the second branch
    late ↶1                  7 8        rewound to 6
    grand                      8        fork of late's second branch at 7
    """
    config = RunConfig()
    with RunStore.create(tmp_path / "trunk", config) as trunk:
        add(trunk, range(1, 3), 0.1)
        command(trunk, 2, "set", rl_weight=0.7)
        add(trunk, range(3, 7), 0.1)
        early = trunk.fork(tmp_path / "early", 3, config.with_changes(rl_weight=0.7, kl_coef=0.5))
        with early:
            add(early, range(4, 6), 0.2)
            command(early, 5, "set", clip_range=0.1)
        trunk.rewind(4)
        command(trunk, 4, "set", base_lr=1e-4)
        add(trunk, range(5, 8), 0.3)
        now = config.with_changes(rl_weight=0.7, base_lr=1e-4)
        with trunk.fork(tmp_path / "late", 5, now) as late:
            add(late, range(6, 8), 0.4)
            late.rewind(6)
            command(late, 6, "set_aside", ids=["a", "b"])
            add(late, range(7, 9), 0.5)
            with late.fork(tmp_path / "grand", 7, now.with_changes(seed=3)) as grand:
                add(grand, range(8, 9), 0.6)
    with RunStore.create(tmp_path / "stranger", config) as stranger:
        add(stranger, range(1, 2), 0.9)
    (tmp_path / "no run").mkdir()
    return tmp_path


TREE = {
    "trunk": ("", 0, 6, "from step 3: rl_weight=0.7", 0.16, "superseded"),
    "trunk ↶1": ("trunk", 4, 7, "base_lr=0.0001", 0.37, "closed"),
    "early": ("trunk", 3, 5, "kl_coef=0.5, from step 6: clip_range=0.1", 0.25, "closed"),
    "late": ("trunk ↶1", 5, 7, "", 0.47, "superseded"),
    "late ↶1": ("late", 6, 8, "set_aside 2", 0.58, "closed"),
    "grand": ("late ↶1", 7, 8, "seed=3", 0.68, "closed"),
}


@pytest.mark.parametrize("asked", ["trunk", "early", "grand"])
def test_every_branch_of_a_family_is_found_from_any_of_its_runs(runs: Path, asked: str) -> None:
    tree = run_tree(runs / asked).set_index("node")
    assert set(tree.index) == set(TREE)
    for node, (parent, from_step, to_step, changes, reward, state) in TREE.items():
        row = tree.loc[node]
        assert (row["parent"], row["from_step"], row["to_step"]) == (parent, from_step, to_step)
        assert row["changes"] == changes, node
        assert row["state"] == state
        assert row["reward"] == pytest.approx(reward) and np.isnan(row["accuracy"])
        assert Path(row["run"]).name == node.split()[0]
    order = list(tree.index)
    for node, row in tree.iterrows():
        assert not row["parent"] or order.index(row["parent"]) < order.index(node)


def test_each_step_of_each_branch_is_given_once(runs: Path) -> None:
    metrics = branch_metrics(runs / "late")
    steps = {node: list(rows["step"]) for node, rows in metrics.groupby("node")}
    assert steps == {
        "trunk": [1, 2, 3, 4, 5, 6],
        "trunk ↶1": [5, 6, 7],
        "early": [4, 5],
        "late": [6, 7],
        "late ↶1": [7, 8],
        "grand": [8],
    }
    assert list(metrics)[:2] == ["node", "step"]


def test_a_folder_of_runs_gives_them_all_and_one_without_says_so(runs: Path) -> None:
    assert set(run_tree(runs)["node"]) == {*TREE, "stranger"}
    assert list(run_tree(runs / "stranger")["node"]) == ["stranger"]
    with pytest.raises(RunFolderError, match="no run at .*no run"):
        run_tree(runs / "no run")


def test_a_trunk_that_was_deleted_leaves_its_fork_a_root(runs: Path) -> None:
    for file in (runs / "trunk").rglob("*"):
        if file.is_file():
            file.unlink()
    (runs / "early" / "config.toml").write_text("broken [", encoding="utf-8")
    tree = run_tree(runs / "late").set_index("node")
    assert set(tree.index) == {"late", "late ↶1", "grand"}
    assert tree.loc["late", "parent"] == "" and tree.loc["late", "from_step"] == 5

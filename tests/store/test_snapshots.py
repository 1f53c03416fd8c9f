from __future__ import annotations

import numpy as np
import pytest

from workbench.config import RunConfig
from workbench.store import RunFolderError, RunStore, open_run


def assert_same(first, second):
    assert (first.step, first.texts, first.state) == (second.step, second.texts, second.state)
    assert first.tensors.keys() == second.tensors.keys()
    for name, arrays in first.tensors.items():
        assert arrays.keys() == second.tensors[name].keys()
        for key, array in arrays.items():
            assert array.dtype == second.tensors[name][key].dtype
            np.testing.assert_array_equal(array, second.tensors[name][key])


def test_a_snapshot_comes_back_equal(tmp_path, config, snapshot):
    with RunStore.create(tmp_path / "run", config) as store:
        folder = store.save_snapshot(snapshot(0, 1.5))
        assert folder == tmp_path / "run/snapshots/step-000000"
        assert_same(store.load_snapshot(0), snapshot(0, 1.5))
        store.save_snapshot(snapshot(0, 2.5))
        assert_same(store.load_snapshot(0), snapshot(0, 2.5))
    assert (folder / "coordinator/adapter_config.json").read_text() == '{"r": 16}'
    assert [path.name for path in folder.parent.iterdir()] == ["step-000000"]


@pytest.mark.parametrize(("keep_last", "keep_every"), [(1, 0), (3, 4)])
def test_pruning_keeps_the_start_the_newest_and_the_multiples(
    keep_last, keep_every, tmp_path, record, snapshot
):
    config = RunConfig().with_changes(keep_last=keep_last, keep_every=keep_every)
    with RunStore.create(tmp_path / "run", config) as store:
        store.save_snapshot(snapshot(0))
        for step in range(1, 12):
            store.append(record(step, rollouts=0))
            store.save_snapshot(snapshot(step))
            newest = range(max(0, step - keep_last + 1), step + 1)
            multiples = range(0, step + 1, keep_every) if keep_every else []
            expected = sorted({0, *newest, *multiples})
            assert store.snapshot_steps() == expected
            assert open_run(store.path).snapshot_steps() == expected


def test_a_snapshot_is_offered_once_its_step_is_recorded(tmp_path, record, snapshot):
    config = RunConfig().with_changes(keep_last=1, keep_every=0)
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1))
        store.save_snapshot(snapshot(1))
        store.save_snapshot(snapshot(2))
        assert store.snapshot_steps() == open_run(store.path).snapshot_steps() == [1]
        store.append(record(2))
        assert store.snapshot_steps() == [1, 2]
        store.save_snapshot(snapshot(3))
    with RunStore.open(tmp_path / "run") as store:
        store.append(record(3))
        assert store.snapshot_steps() == [2]


def test_a_missing_snapshot_says_which_there_are(tmp_path, config, record, snapshot):
    with RunStore.create(tmp_path / "run", config) as store:
        with pytest.raises(RunFolderError, match="no snapshot of step 3; there are: none"):
            store.load_snapshot(3)
        store.save_snapshot(snapshot(0))
        store.append(record(1))
        store.save_snapshot(snapshot(1))
        with pytest.raises(RunFolderError, match="no snapshot of step 3; there are: 0, 1"):
            store.load_snapshot(3)

"""A run of an earlier workbench lacks columns that were added since."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing

import pyarrow.parquet as pq

from workbench.store import RunStore, open_run


def test_a_column_that_a_run_was_written_without_reads_as_unmeasured(tmp_path, config, record):
    folder = tmp_path / "run"
    with RunStore.create(folder, config) as store:
        store.append(record(1))
    with closing(sqlite3.connect(folder / "run.sqlite")) as database, database:
        database.execute('ALTER TABLE coordinator DROP COLUMN "effective_rank"')
    run = open_run(folder)
    (row,) = run.record(1).coordinator
    assert math.isnan(row.effective_rank)
    assert row.ratio == record(1).coordinator[0].ratio
    assert run.frame("coordinator")["effective_rank"].isna().all()
    with RunStore.open(folder) as store:  # and it can go on
        store.append(record(2))
    first, second = open_run(folder).frame("coordinator")["effective_rank"]
    assert math.isnan(first) and second == record(2).coordinator[0].effective_rank


def test_a_rollouts_file_written_without_a_column_reads_as_unmeasured(tmp_path, config, record):
    folder = tmp_path / "run"
    with RunStore.create(folder, config) as store:
        store.append(record(1))
        store.append(record(2))
    file = folder / "rollouts" / "step-000001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["sft_alignment", "entropy"]), file)
    with closing(sqlite3.connect(folder / "run.sqlite")) as database, database:
        database.execute("DROP TABLE checksums")
    run = open_run(folder)
    assert all(math.isnan(row.sft_alignment) for row in run.record(1).rollouts)
    assert [row.entropy for row in run.record(1).rollouts] == [[], []]
    assert run.record(1).rollouts[0].token_ids == record(1).rollouts[0].token_ids
    frame = run.frame("rollouts")
    assert list(frame) == list(run.rollouts(2))
    assert list(frame["sft_alignment"].isna()) == [True, True, False, False]

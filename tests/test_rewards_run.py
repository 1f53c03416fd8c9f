"""A run with rewards of its own: what its folder keeps of them, and folders from before."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from workbench import RunConfig, Session, open_run

FUNCTION = """
def odd(completion, problem):
    if len(completion) % 2:
        raise ArithmeticError("odd length")
    return 1.0
"""
SMALL = {
    "prompts_per_step": 2,
    "group_size": 4,
    "demonstrations_per_step": 2,
    "max_new_tokens": 12,
    "alignment_every": 0,
    "paired_prompts": 2,
    "paired_rollouts": 2,
    "token_views_every": 0,
    "coordinator_every": 0,
    "evaluate_every": 0,
}


def test_every_rollout_keeps_its_parts_and_the_error_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_mine.py").write_text(FUNCTION, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    rewards = [
        {"kind": "task", "weight": 1},
        {"kind": "function", "function": "of_mine:odd", "weight": 1},
    ]
    config = RunConfig.preset("pocket", rewards=rewards, **SMALL)
    with Session(config, tmp_path / "run") as session:
        record = session.step()
    rows = open_run(tmp_path / "run").record(1).rollouts
    assert {row.purpose for row in rows} == {"train", "paired"}
    for row in rows:
        even = len(row.completion) % 2 == 0
        assert row.reward_parts == {"task": row.reward_parts["task"], "odd": float(even)}
        assert row.correct == (row.reward_parts["task"] + row.reward_parts["odd"]) / 2
        assert row.reward_error == ("" if even else "odd: ArithmeticError: odd length")
    trained = [row for row in rows if row.purpose == "train"]
    share = sum(bool(row.reward_error) for row in trained) / len(trained)
    assert record.metrics["reward/errors"] == share
    assert record.metrics["rewards/odd/mean"] == pytest.approx(1 - share)
    frame = open_run(tmp_path / "run").rollouts(1)
    assert list(frame["reward_parts"]) == [row.reward_parts for row in rows]


def test_a_folder_without_parts_reads_as_empty(tmp_path: Path) -> None:
    with Session(RunConfig.preset("pocket", **SMALL), tmp_path / "run") as session:
        record = session.step()
    assert not {"reward/errors", "rewards/task/mean"} & record.metrics.keys()
    from workbench.store import schema

    (file,) = (tmp_path / "run" / "rollouts").glob("*.parquet")
    table = pq.read_table(file)
    older = table.drop_columns(["reward_parts", "reward_error"])
    rows = schema.rollout_rows(schema.with_all_columns(older))
    assert [row.token_ids for row in rows] == [row.token_ids for row in record.rollouts]
    assert all(row.reward_parts == {} and row.reward_error == "" for row in rows)

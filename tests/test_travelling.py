"""From a finding: the step before it, its samples, a fork with its suggestion."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.training.tiny import save_tiny_llama, small_config
from workbench import Session, plots
from workbench.config import ConfigError, RunConfig
from workbench.records import Finding
from workbench.store import branch_metrics, run_tree
from workbench.ui.branches import tree_table
from workbench.ui.from_finding import samples_html
from workbench.ui.replay import (
    changes_of,
    difference_table,
    parted_html,
    said_html,
    side_by_side,
    texts_html,
)
from workbench.worker import SessionError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return small_config(
        folder, snapshot_every=2, reward_flip=0.4, n_prompts=12, terms=(3,), alignment_every=1
    )


@pytest.fixture(scope="module")
def s(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session(config, tmp_path_factory.mktemp("run") / "run") as session:
        session.run(5)
        session._worker.engine.store.add_finding(LONG)
        session._worker.engine.store.add_finding(BARE)
        yield session


LONG = Finding(
    5,
    "warning",
    "truncation",
    "texts are <b>cut off</b>",
    {"share": 1.0},
    "max_new_tokens",
    since=4,
    key="truncation@5",
    suggestion={"max_new_tokens": 7, "base_lr": None},
)
BARE = Finding(6, "critical", "non_finite", "not applied", {}, "base_lr", key="non_finite@6")


def test_the_step_before_a_finding_ends_before_the_update_that_did_it(s: Session) -> None:
    """Seen at step 4, so in the weights that step 3 left: well was the end of step 2."""
    by_key = s.before("truncation@5")
    assert (by_key.step, by_key.snapshot_step) == (2, 2)
    row = s.frame("findings").set_index("key", drop=False).loc["truncation@5"]
    assert s.before(row) == by_key == s.before(LONG)
    early = Finding(1, "warning", "truncation", "", {}, "", since=1)
    assert (s.before(early).step, s.before(early).snapshot_step) == (0, 0)
    later = Finding(9, "warning", "truncation", "", {}, "", since=9)
    assert (s.before(later).step, s.before(later).snapshot_step) == (5, 4)
    with pytest.raises(SessionError, match="no finding 'x'; there are: .*truncation@5"):
        s.before("x")


def test_samples_are_those_of_the_onset_that_carry_it(s: Session) -> None:
    found = s.samples_of("truncation@5")
    assert found.step == 4
    rollouts = s.reader.rollouts(4)
    unfinished = rollouts[~rollouts["finished"]]
    assert set(found.rollouts["sequence"]) == set(unfinished["sequence"])
    assert len(found.rollouts) > 0
    cosines = {row.demonstration_id: row.rl_cosine for row in s.record(4).demonstrations}
    shown = [cosines[name] for name in found.demonstrations["demonstration_id"]]
    assert shown == sorted(cosines.values())
    assert s.samples_of(BARE).step == 5


def test_a_fork_with_a_finding_starts_before_it_with_its_suggestion(
    s: Session, tmp_path: Path
) -> None:
    with s.fork_with("truncation@5", tmp_path / "fork", kl_coef=0.5) as fork:
        assert fork.step_number == 2
        assert fork.config.sampling.max_new_tokens == 7
        assert fork.config.training.kl_coef == 0.5
        assert fork.config.training.base_lr == s.config.training.base_lr
    with pytest.raises(SessionError, match="suggests no value; give one, e.g. base_lr="):
        s.fork_with(BARE, tmp_path / "other")
    with s.fork_with(BARE, base_lr=1e-4) as fork:  # beside the run
        assert fork.run_dir.parent == s.run_dir.parent
        assert fork.step_number == 4


def test_branches_share_their_trunk_on_the_chart(s: Session) -> None:
    with s.fork(s.run_dir.with_name("<b>hot"), step=3, base_lr=0.01) as fork:
        fork.run(2)
        tree, metrics = run_tree(s.run_dir), branch_metrics(fork.run_dir)
        drawn = plots.branches(tree, metrics, "reward")
        lines = {trace.name.split(":")[0]: trace for trace in drawn.data}
        assert list(lines["run"].x) == [1, 2, 3, 4, 5]
        hot = lines["&lt;b&gt;hot"]
        assert list(hot.x) == [3, 4, 5]  # begins on the trunk's own point
        assert hot.y[0] == s.record(3).metrics["reward"]
        assert "base_lr=0.01" in hot.name and "base_lr=0.01" in hot.hovertemplate
        assert "No branch" in plots.branches(tree, metrics, "nothing").layout.annotations[0].text
        assert '"selected": "<b>hot"' in tree_table(tree, str(fork.reader.path))


def test_only_what_a_rewind_gave_up_is_dotted() -> None:
    """Steps 1 to 4 made, rewound to 2, 3 and 4 made again; accuracy measured at odd steps."""
    rows = [("a", "", 0, 4, "superseded"), ("a ↶1", "a", 2, 4, "idle")]
    tree = pd.DataFrame(rows, columns=["node", "parent", "from_step", "to_step", "state"])
    tree["changes"] = ["", "rl_weight=1"]
    made = [("a", step) for step in (1, 2, 3, 4)] + [("a ↶1", 3), ("a ↶1", 4)]
    metrics = pd.DataFrame(made, columns=["node", "step"])
    metrics["reward"] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    metrics["accuracy"] = metrics["reward"].where(metrics["step"] % 2 == 1)

    def lines(metric: str) -> list[tuple[list[int], str]]:
        drawn = plots.branches(tree, metrics, metric)
        return [(list(trace.x), trace.line.dash) for trace in drawn.data]

    assert lines("reward") == [([1, 2], "solid"), ([2, 3, 4], "dot"), ([2, 3, 4], "solid")]
    assert lines("accuracy") == [([1], "solid"), ([1, 3], "dot"), ([1, 3], "solid")]
    tree.loc[1, "from_step"] = 0  # rewound to the start: all was given up
    tree.loc[1, "parent"] = ""
    assert lines("reward")[0] == ([1, 2, 3, 4], "dot")


def test_what_the_replay_tab_shows(s: Session) -> None:
    found = s.replay(5, trace=True, base_lr=0.01)
    drawn = plots.layer_norms(found.layers)
    assert [trace.name for trace in drawn.data] == ["RL, joint", "RL-only", "SFT"]
    assert list(drawn.data[0].x) == ["embed", "layers.0", "layers.1", "norm", "lm_head"]
    own = found.layers[(found.layers["passing"] == "rl") & (found.layers["module"] == "layers.1")]
    assert drawn.data[0].y[2] == own["gradient_norm"].item()
    assert len(plots.layer_norms(found.layers, parts=True).data[0].x) == 13
    sizes = plots.update_sizes(found.updates)
    assert [trace.name for trace in sizes.data] == ["θ", "θ̂", "w"]
    none = s.replay(5)
    for figure in (plots.layer_norms(none.layers), plots.update_sizes(none.updates)):
        assert "Not traced" in figure.layout.annotations[0].text
    assert "identical" in said_html(none) and "different" in said_html(found)
    assert '"base_lr"' in difference_table(found.differences)
    assert texts_html(found).count("token-strip") == 3
    moved = found.tokens.groupby("sequence")["logprob_change"].apply(lambda c: c.abs().sum())
    shown = [int(n) for n in re.findall(r"Text (\d+)", texts_html(found))]
    assert shown == list(moved.sort_values(ascending=False, kind="stable").index[:3])


def test_two_replays_are_shown_side_by_side(s: Session) -> None:
    first, second = s.replay(5, trace=True), s.replay(5, trace=True, base_lr=0.01)
    found = first.minus(second)
    table = json.loads(side_by_side(found))
    relative = [row[5] for row in table["rows"]]
    assert relative == sorted(relative, reverse=True) and min(relative) > 0
    ratio = dict(zip(table["ids"], table["rows"], strict=True))["metric/replay/base/update_ratio"]
    assert float(ratio[2]) == pytest.approx(first.metrics["replay/base/update_ratio"], rel=1e-5)
    assert float(ratio[3]) == pytest.approx(second.metrics["replay/base/update_ratio"], rel=1e-5)
    assert any(row[1].startswith("update of θ layers") for row in table["rows"])
    assert parted_html(found).count("token-strip") == 3
    assert json.loads(side_by_side(first.minus(first)))["rows"] == []
    drawn = plots.layer_norms(first.layers, beside=second.layers)
    assert [trace.line.dash for trace in drawn.data] == ["solid"] * 3 + ["dash"] * 3
    assert [trace.name for trace in drawn.data][3:] == [
        "RL, joint, second",
        "RL-only, second",
        "SFT, second",
    ]


def test_samples_are_shown_as_text(s: Session) -> None:
    shown = samples_html(s, "truncation@5")
    assert "Rollout" in shown and "cosine with RL" in shown and "<b>" not in shown


def test_changes_are_read_as_settings_are_written() -> None:
    assert changes_of("rl_weight=0.9 terms=[3,4]\n method=grpo path='a b'") == {
        "rl_weight": 0.9,
        "terms": [3, 4],
        "method": "grpo",
        "path": "a b",
    }
    assert changes_of("  ") == {}
    for text in ("rl_weight", "=3", "a='"):
        with pytest.raises(ConfigError, match="changes: "):
            changes_of(text)


def test_where_no_rollout_stands_out_the_least_likely_are_shown(
    config: RunConfig, tmp_path: Path
) -> None:
    with Session(config.with_changes(reward_flip=0.0), tmp_path / "run") as s:
        s.run(2)
        found = s.samples_of(Finding(2, "critical", "accuracy_fall", "", {}, "", since=2))
        rows = [row for row in s.record(2).rollouts if row.purpose == "train"]
        assert {row.advantage for row in rows} == {0.0}  # an untrained model earns nothing
        likely = [(sum(r.reference_logprob) / len(r.token_ids), r.sequence) for r in rows]
        expected = [sequence for _, sequence in sorted(likely)[:8]]
        assert list(found.rollouts["sequence"]) == expected

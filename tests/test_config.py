from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from workbench.config import (
    KNOBS,
    ArithmeticTaskConfig,
    ConfigError,
    DatasetTaskConfig,
    GymTaskConfig,
    MethodName,
    RunConfig,
    TaskSettings,
    ToolsTaskConfig,
)
from workbench.presets import PRESETS

TASKS = (ArithmeticTaskConfig, GymTaskConfig, ToolsTaskConfig, DatasetTaskConfig)
SECTIONS = [
    info.annotation
    for info in RunConfig.model_fields.values()
    if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
]


@pytest.mark.parametrize(
    "config",
    [
        *(RunConfig.preset(name) for name in PRESETS),
        RunConfig.preset("pocket", seed=7, method="grpo", terms=[2, 9], flaws={"detour": 0.5}),
        RunConfig.preset("pocket", task={"kind": "dataset", "data": 'C:\\a "b".jsonl'}),
        RunConfig.preset("smollm2", gym_settings={"max_terms": 3, "nested": {"a": [1, 2.5]}}),
    ],
    ids=lambda config: f"{config.task.kind}-{config.method}",
)
def test_toml_round_trip(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert RunConfig.load(path) == config


def test_leaf_names_are_unique_so_a_setting_needs_no_section() -> None:
    for task in TASKS:
        names = list(RunConfig.model_fields)
        for section in (*SECTIONS, task):
            names += section.model_fields
        assert len(names) == len(set(names))
    shared = {"kind", *TaskSettings.model_fields}
    own = [name for task in TASKS for name in task.model_fields if name not in shared]
    assert len(own) == len(set(own))


def test_every_setting_says_what_it_is() -> None:
    for section in (RunConfig, *SECTIONS, *TASKS):
        for name, field in section.model_fields.items():
            sections = isinstance(field.annotation, type) and issubclass(
                field.annotation, BaseModel
            )
            if name not in ("kind", "task") and not sections:
                assert field.description, f"{section.__name__}.{name}"


def test_another_kind_of_task_begins_at_its_defaults() -> None:
    """What all kinds have stays; the old kind's own settings are gone, the new one's can be set."""
    mine = RunConfig.preset("qwen2.5-3b")
    changed = mine.with_changes(kind="arithmetic", n_prompts=7)
    assert changed.task == ArithmeticTaskConfig(
        n_prompts=7, **{name: getattr(mine.task, name) for name in TaskSettings.model_fields}
    )
    assert RunConfig().with_changes(kind="dataset", data="x.jsonl").task.data == "x.jsonl"
    same = RunConfig().with_changes(n_prompts=7).with_changes(kind="arithmetic")
    assert same.task.n_prompts == 7
    has = "data: no such setting of tasks of kind 'arithmetic'; kind 'dataset' has it"
    with pytest.raises(ConfigError, match=has):
        RunConfig().with_changes(data="x.jsonl")
    with pytest.raises(ConfigError, match=f"task.{has}"):
        RunConfig.parse({"task": {"kind": "arithmetic", "data": "x.jsonl"}})
    with pytest.raises(ConfigError, match="task.kind: .*chess"):
        RunConfig().with_changes(kind="chess")
    for kind in (None, 3, ["gym"], {"gym": 1}, "gym\n" * 1000):
        for more in ({}, {"data": "x.jsonl"}):
            with pytest.raises(ConfigError) as told:
                RunConfig().with_changes(kind=kind, **more)
            assert len(str(told.value).splitlines()) == 1 and len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"base_rl": 1}}, "training.base_rl: no such setting.*did you mean 'base_lr'"),
        ({"trainin": {}}, "trainin: no such setting"),
        ({"training": {"rl_weight": 2}}, "training.rl_weight: .*less than or equal to 1 .*got 2"),
        ({"training": {"group_size": 1}}, "training.group_size: .*2"),
        ({"sampling": {"temperature": 0}}, "sampling.temperature: "),
        ({"method": "dpo"}, "method: no method 'dpo'.*bridge, grpo"),
        ({"task": {"kind": "chess"}}, "task.kind: .*chess"),
        ({"task": {"kind": "dataset"}}, "task.data: "),
        ({"task": {"kind": "arithmetic", "terms": [1]}}, "terms: needs at least one number"),
        ({"task": {"kind": "arithmetic", "term": [3]}}, "task.term: .*did you mean 'terms'"),
        ({"task": {"kind": "arithmetic", "flaws": {"detour": 1.5}}}, "flaws: shares"),
        ({"task": {"kind": "gym", "gym_train": 0}}, "task.gym_train: "),
    ],
)
def test_a_bad_field_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        RunConfig.parse(values)
    assert "\n" not in str(error.value)


def test_each_bad_field_has_a_line_of_its_own() -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig.parse({"seed": "x", "training": {"rl_weight": -1, "speed": 3}})
    starts = sorted(line.split(":")[0] for line in str(error.value).splitlines())
    assert starts == ["seed", "training.rl_weight", "training.speed"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config: cannot read .*gone.toml: No such file"):
        RunConfig.load(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("seed = = 1")
    with pytest.raises(ConfigError, match="bad.toml is not TOML: .*line 1"):
        RunConfig.load(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="preset: no preset 'pockets'; there are pocket, smollm2"):
        RunConfig.preset("pockets")


def test_settings_are_reached_by_their_leaf_name() -> None:
    config = RunConfig.preset("pocket")
    changed = config.with_changes(base_lr=1e-3, seed=5, terms=[4])
    assert (changed.training.base_lr, changed.seed) == (1e-3, 5)
    assert changed.get("terms") == (4,)
    assert config.get("base_lr") == RunConfig().training.base_lr  # the original is as it was
    differing = {n for n, v in changed.flat().items() if v != config.flat()[n]}
    assert differing == {"base_lr", "seed", "terms"}
    with pytest.raises(ConfigError, match="base_rl: no such setting; did you mean 'base_lr'"):
        config.with_changes(base_rl=1)
    with pytest.raises(ConfigError, match="lr: no such setting"):
        config.get("lr")


def test_live_settings_have_ranges_that_hold() -> None:
    config = RunConfig()
    assert {"rl_weight", "base_lr", "coordinator_lr", "reward_flip"} <= {k.name for k in KNOBS}
    for knob in KNOBS:
        assert knob.doc
        assert knob.low <= config.get(knob.name) <= knob.high
        for value in (knob.low, knob.high):
            assert config.check_live({knob.name: value}).get(knob.name) == value
        for value in (knob.low - 1, knob.high + 1):
            with pytest.raises(ConfigError, match=rf"\.{knob.name}: "):
                config.check_live({knob.name: value})


def test_other_settings_cannot_change_during_a_run() -> None:
    config = RunConfig()
    live = {knob.name for knob in KNOBS}
    for name in set(config.flat()) - live:
        with pytest.raises(ConfigError, match=f"{name}: cannot change during a run; fork"):
            config.check_live({name: config.get(name)})
    with pytest.raises(ConfigError, match="rl_wieght: no such setting; did you mean 'rl_weight'"):
        config.check_live({"rl_wieght": 0.5})


def test_method_names_are_those_of_the_methods() -> None:
    from workbench.training.methods import METHODS

    assert set(get_args(MethodName)) == set(METHODS)
    assert RunConfig().with_changes(method="mine.own:Method").method == "mine.own:Method"
    with pytest.raises(ConfigError, match="no method 'gpro'; did you mean 'grpo'"):
        RunConfig().with_changes(method="gpro")

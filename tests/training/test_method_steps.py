"""Whole steps of every method: it goes on bit-identically, and coincides where it should."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import nan
from pathlib import Path

import pytest
import torch

from tests.training.tiny import (
    ChanceTask,
    copy_of,
    disturb,
    make_policy,
    same_bits,
    save_tiny_llama,
    small_config,
)
from workbench.config import ConfigError, RunConfig
from workbench.policy import Policy
from workbench.records import StepRecord
from workbench.session import Session
from workbench.tasks.problem import Problem
from workbench.training.methods import METHODS, make_method
from workbench.training.methods.actguide import shortest
from workbench.training.schedules import scheduled
from workbench.training.trainer import Trainer

SOLUTIONS = ("ab\nc", "de\nf\ng", "h\ni", "jk\nl", "m\nno\np", "q\nrs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


class PairedTask(ChanceTask):
    """The RL prompts are the demonstrations' own."""

    def __init__(self, solutions: Sequence[str] = SOLUTIONS) -> None:
        super().__init__(solutions)
        self.train = [Problem(d.id, d.prompt, d.answer) for d in self.shown]


class HopelessTask(PairedTask):
    """Nothing earns a reward but a text with the plan's first letters in it."""

    def reward(self, completion: str, problem: Problem) -> float:
        solution = next(d.solution for d in self.shown if d.id == problem.id)
        return float(completion.startswith(solution.splitlines()[0]))


class KindTask(PairedTask):
    """Every text earns something, so that no group is hopeless."""

    def reward(self, completion: str, problem: Problem) -> float:
        return max(0.25, super().reward(completion, problem))


def begin(config: RunConfig, task: ChanceTask | None = None) -> Trainer:
    method, tracked = make_method(config), config.training.track_baseline
    policy = make_policy(config, baseline=method.baseline or tracked)
    disturb(policy.coordinator, 0.2, seed=1)
    disturb(policy.base, 0.05, seed=2)
    return Trainer(config, policy, task or PairedTask())


SHORT = {
    "cold_start": {"cold_start_steps": 1},
    "relift": {"relift_buffer": 2},
    "hpt": {"hpt_gate": 0.34},
}
ALIGNED = {"alignment_every": 1, "shared_gain_every": 1}


def same_metrics(a: StepRecord, b: StepRecord) -> bool:
    def kept(record: StepRecord) -> dict[str, str]:
        return {k: repr(v) for k, v in record.metrics.items() if not k.startswith("seconds/")}

    return kept(a) == kept(b)


@pytest.mark.parametrize("method", METHODS)
def test_it_goes_on_from_its_arrays_bit_identically(folder: Path, method: str) -> None:
    config = small_config(
        folder, method=method, demonstrations_per_step=4, **SHORT.get(method, {}), **ALIGNED
    )
    going = begin(config)
    start = copy_of(going.policy.base)
    for number in (1, 2):
        going.step(number)
    assert not same_bits(going.policy.base, start)
    arrays, adapter = going.optimizer_arrays(), going.policy.adapter_files()[0]
    resumed = begin(config)
    baseline = going.policy.base_arrays("baseline")
    resumed.policy.load_arrays(going.policy.base_arrays("base"), baseline, adapter)
    resumed.load_optimizer_arrays(arrays)
    for number in (3, 4):
        assert same_metrics(going.step(number), resumed.step(number))
    assert same_bits(going.policy.base, resumed.policy.base)
    assert same_bits(going.policy.coordinator, resumed.policy.coordinator)
    assert going.state == resumed.state


@pytest.mark.parametrize("rl_loss", ["dr_grpo", "dapo", "gspo"])
@pytest.mark.parametrize("method", ["grpo", "bridge", "superrl", "prefix_rft"])
def test_the_other_rl_losses_run(folder: Path, method: str, rl_loss: str) -> None:
    trainer = begin(small_config(folder, method=method, rl_loss=rl_loss))
    start = copy_of(trainer.policy.base)
    trainer.step(1)
    assert not same_bits(trainer.policy.base, start)


def moved(folder: Path, steps: int = 2, **changes: object) -> Policy:
    trainer = begin(small_config(folder, **changes))
    for number in range(1, steps + 1):
        trainer.step(number)
    return trainer.policy


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"method": "cold_start", "cold_start_steps": 0}, {"method": "grpo"}),
        ({"method": "uft", "uft_hint_steps": 0}, {"method": "grpo"}),
        ({"method": "prefix_rft", "prefix_high": 0.0}, {"method": "grpo"}),
        ({"method": "chord_mu", "chord_start": 1.0, "chord_end": 1.0}, {"method": "sft"}),
        ({"method": "chord_mu", "chord_start": 0.0, "chord_end": 0.0}, {"method": "grpo"}),
        ({"method": "chord_phi", "chord_phi_weight": 0.0}, {"method": "grpo"}),
        ({"method": "relift", "relift_buffer": 999}, {"method": "grpo"}),
        ({"method": "alternating", "sft_lr": 0.0}, {"method": "grpo"}),
        ({"method": "cold_start", "cold_start_steps": 9, "sft_lr": 1e-3}, {"method": "sft"}),
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_methods_that_coincide(
    folder: Path, one: dict[str, object], other: dict[str, object]
) -> None:
    a, b = moved(folder, **one), moved(folder, **other)
    assert not same_bits(a.base, begin(small_config(folder)).policy.base)
    if one["method"] == "chord_mu":  # 0·g + 1·g has signed zeros of its own
        assert all(torch.equal(a.base[n], b.base[n]) for n in a.base)
    else:
        assert same_bits(a.base, b.base)


def test_hpt_at_gate_1_is_sft(folder: Path) -> None:
    """On the whole pool, so that the same demonstrations are learned in another order."""
    sizes = {"prompts_per_step": 6, "demonstrations_per_step": 6, "kl_coef": 0.0}
    a = moved(folder, method="hpt", hpt_gate=1.0, **sizes)
    b = moved(folder, method="sft", **sizes)
    for name, value in a.base.items():
        assert torch.allclose(value, b.base[name], rtol=1e-4, atol=1e-6), name


def test_actguide_without_hopeless_groups_is_grpo(folder: Path) -> None:
    found = []
    for method in ("actguide", "grpo"):
        trainer = begin(small_config(folder, method=method), KindTask())
        start = copy_of(trainer.policy.base)
        records = [trainer.step(number) for number in (1, 2)]
        assert not same_bits(trainer.policy.base, start)
        found.append(trainer.policy.base)
    assert records[0].metrics.get("guide/hard") is None
    assert same_bits(*found)


def test_alternating_is_one_step_of_grpo_and_then_one_of_sft(folder: Path) -> None:
    rates = {"base_lr": 1e-3, "sft_lr": 3e-3}
    both = moved(folder, method="alternating", steps=1, **rates)
    first = begin(small_config(folder, method="grpo", base_lr=1e-3))
    first.step(1)
    after_rl = copy_of(first.policy.base)
    second = small_config(folder, method="sft", base_lr=3e-3)
    Trainer(second, first.policy, PairedTask()).step(1)
    assert same_bits(both.base, first.policy.base)
    assert not same_bits(both.base, after_rl)


def test_relifts_sft_step_is_sft_on_what_the_buffer_held(folder: Path) -> None:
    """On the whole pool, so that the buffer holds what SFT draws, in another order."""
    sizes = {"prompts_per_step": 6, "demonstrations_per_step": 6, "max_grad_norm": 1e6}
    relift = begin(
        small_config(folder, method="relift", relift_buffer=6, base_lr=0.0, sft_lr=1e-3, **sizes),
        HopelessTask(),
    )
    relift.step(1)
    sft = moved(folder, method="sft", steps=1, base_lr=1e-3, **sizes)
    for name, value in relift.policy.base.items():
        assert torch.allclose(value, sft.base[name], rtol=1e-4, atol=1e-6), name
    assert not relift.state["buffer"]


def test_a_cold_start_does_not_depend_on_its_micro_batches(folder: Path) -> None:
    found = [
        moved(folder, method="cold_start", micro_batch_tokens=n, max_grad_norm=1e6)
        for n in (12, 4096)
    ]
    for name, value in found[0].base.items():
        assert torch.allclose(value, found[1].base[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("method", ["sft", "grpo", "luffy", "cold_start"])
def test_a_tracked_baseline_changes_nothing_and_has_a_gain(folder: Path, method: str) -> None:
    changes = {"method": method, **ALIGNED}
    plain = begin(small_config(folder, **changes))
    tracked = begin(small_config(folder, track_baseline=True, **changes))
    for number in (1, 2, 3):
        plain.step(number)
        record = tracked.step(number)
    assert same_bits(plain.policy.base, tracked.policy.base)
    assert same_bits(plain.policy.coordinator, tracked.policy.coordinator)
    assert len(record.gain) == 3 and "gain/shared" in record.metrics
    assert not same_bits(tracked.policy.baseline_base, tracked.policy.base) or method == "grpo"


def test_the_tracked_baseline_of_grpo_is_grpo_itself(folder: Path) -> None:
    """From the same start and on the same rollouts both follow the same path."""
    config = small_config(folder, method="grpo", track_baseline=True)
    trainer = Trainer(config, make_policy(config), PairedTask())
    start = copy_of(trainer.policy.base)
    for number in (1, 2):
        trainer.step(number)
    assert same_bits(trainer.policy.baseline_base, trainer.policy.base)
    assert not same_bits(trainer.policy.base, start)


def test_relifts_buffer_survives_resume_rewind_and_fork(folder: Path, tmp_path: Path) -> None:
    config = small_config(folder, method="relift", relift_buffer=7, snapshot_every=2)
    with Session(config, run_dir=tmp_path / "run") as session:
        session.run(4)  # three unsolved prompts a step: the buffer is emptied in step 3
        records = [session.record(step).metrics for step in (1, 2, 3, 4)]
        assert ["own_sft/grad_norm" in metrics for metrics in records] == [
            False,
            False,
            True,
            False,
        ]
        session.rewind(2)
        again = [session.step(), session.step()]
        with session.fork(tmp_path / "fork", step=2) as fork:
            again += [fork.step(), fork.step()]
        session.rewind(2)
    with Session.open(tmp_path / "run") as session:
        again += [session.step(), session.step()]
    for record in again:
        expected = records[record.step - 1]
        for name in ("reward", "grad_norm", "own_sft/grad_norm", "loss/rl"):
            assert record.metrics.get(name) == expected.get(name)


def test_relift_fills_its_buffer_and_empties_it_into_one_sft_step(folder: Path) -> None:
    config = small_config(folder, method="relift", relift_buffer=5, base_lr=0.0, sft_lr=1e-3)
    trainer = begin(config, HopelessTask())  # 3 prompts a step, none solved
    start = copy_of(trainer.policy.base)
    first = trainer.step(1)
    assert len(trainer.state["buffer"]) == 3 and "own_sft/grad_norm" not in first.metrics
    assert same_bits(trainer.policy.base, start)
    second = trainer.step(2)
    assert len(trainer.state["buffer"]) == 1 and second.metrics["own_sft/grad_norm"] > 0
    assert not same_bits(trainer.policy.base, start)


def test_a_fork_to_another_method_forgets_the_buffer(folder: Path) -> None:
    trainer = begin(small_config(folder, method="relift"), HopelessTask())
    trainer.step(1)
    other = begin(small_config(folder, method="superrl"))
    other.load_optimizer_arrays(trainer.optimizer_arrays())
    assert trainer.state and not other.state


def test_an_sft_step_that_is_not_finite_undoes_the_rl_step_before_it(folder: Path) -> None:
    trainer = begin(small_config(folder, method="alternating"))
    trainer.step(1)
    before, arrays = copy_of(trainer.policy.base), trainer.optimizer_arrays()
    name = "model.layers.1.mlp.up_proj.weight"
    calls = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return gradient / 0 if updating else gradient

    updating = False

    def control(phase: str) -> None:
        nonlocal updating
        updating = phase == "update"

    handle = trainer.policy.base[name].register_hook(spoil)
    with pytest.raises(ArithmeticError, match=f"gradient of {name}"):
        trainer.step(2, control)
    handle.remove()
    assert same_bits(trainer.policy.base, before)
    after = trainer.optimizer_arrays()
    assert all((after[n] == v).all() for n, v in arrays.items())


# --- guided and hinted rollouts -----------------------------------------------------------------


def searched(n_steps: int, max_trials: int, needed: int) -> tuple[int | None, int]:
    """(what the search finds where `needed` steps help, its trials)."""
    search, trials = shortest(n_steps, max_trials), 0
    try:
        tried = next(search)
        while True:
            trials += 1
            tried = search.send(tried >= needed)
    except StopIteration as ended:
        return ended.value, trials


def test_the_search_finds_the_shortest_plan_that_helps() -> None:
    for n_steps in range(1, 30):
        for needed in range(1, n_steps + 2):
            found, trials = searched(n_steps, 5, needed)
            assert found == (needed if needed <= n_steps else None)
            assert trials <= 5
    assert searched(100, 2, 60) == (75, 2)
    assert searched(0, 5, 1) == (None, 0)


@pytest.mark.parametrize("guide_in", ["answer", "prompt"])
def test_actguide_replaces_hopeless_groups_by_guided_ones(folder: Path, guide_in: str) -> None:
    trainer = begin(small_config(folder, method="actguide", guide_in=guide_in), HopelessTask())
    record = trainer.step(1)
    if guide_in == "prompt":  # the tiny model cannot read: nothing helps, the groups stay
        assert record.metrics["guide/hard"] == 1 and record.metrics["guide/guided"] == 0
        assert all(not row.written_by for row in record.rollouts)
        return
    assert record.metrics["guide/guided"] == 1 and record.metrics["guide/plan_length"] == 1
    for row in record.rollouts:
        demo = next(d for d in trainer.demonstrations if d.id == row.prompt_id)
        plan = demo.solution.splitlines()[0] + "\n"
        assert row.plan_length == 1 and row.completion.startswith(plan) and row.correct == 1
        n = row.written_by.count("plan")
        assert row.written_by == ["plan"] * n + ["policy"] * (len(row.token_ids) - n)
        assert n == len(plan) and row.prompt == demo.prompt
        assert row.sampling_logprob[:n] == [0.0] * n and all(v < 0 for v in row.logprob)


def test_hints_are_whole_lines_shared_by_the_group_and_recorded(folder: Path) -> None:
    changes = {"uft_hint_high": 1.0, "uft_hint_low": 1.0, "shared_gain_every": 1}
    trainer = begin(small_config(folder, method="uft", track_baseline=True, **changes))
    record = trainer.step(1)
    assert "gain/shared" not in record.metrics  # no rollout is the policy's own from the start
    for row in record.rollouts:
        demo = next(d for d in trainer.demonstrations if d.id == row.prompt_id)
        hint = "".join(f"{line}\n" for line in demo.solution.splitlines()[:-1])
        n = row.written_by.count("hint")
        assert n == len(hint) and row.completion.startswith(hint)
        assert repr(row.logprob[:n]) == repr([nan] * n)
        assert len(row.logprob) == len(row.token_ids) == len(row.entropy) == len(row.tokens)
    assert {row.demonstration_id for row in record.demonstrations} <= {
        d.id for d in trainer.demonstrations
    }


def test_luffys_group_is_one_rollout_short(folder: Path) -> None:
    record = begin(small_config(folder, method="luffy")).step(1)
    assert len(record.rollouts) == 3 * 2
    assert len(record.demonstrations) == 3


# --- settings -----------------------------------------------------------------------------------


def test_schedules() -> None:
    assert [scheduled("linear", 0.0, 1.0, step, 4) for step in (1, 3, 5, 9)] == [0, 0.5, 1, 1]
    assert scheduled("constant", 0.3, 1.0, 7, 4) == 0.3
    cosine = [scheduled("cosine", 0.9, 0.05, step, 200) for step in (1, 101, 201, 300)]
    assert cosine == pytest.approx([0.9, 0.475, 0.05, 0.05])


def test_lambda_follows_its_schedule(folder: Path) -> None:
    config = small_config(
        folder, rl_weight=0.0, rl_weight_end=1.0, rl_weight_schedule="linear", rl_weight_steps=2
    )
    trainer = begin(config)
    assert [trainer.step(n).metrics["rl_weight"] for n in (1, 2, 3)] == [0.0, 0.5, 1.0]


OWN = '''
from workbench.training.methods import Directions, Method

class Half(Method):
    """Half of GRPO's gradient."""
    name = "half"

    def mix(self, g, c):
        return Directions(base=0.5 * g.rl.base)

class Other:
    pass
'''


def test_a_method_of_ones_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_method_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = "own_method_of_a_test:Half"
    a = begin(small_config(folder, method=own)).step(1)
    b = begin(small_config(folder, method="grpo")).step(1)
    assert a.metrics["grad_norm"] == pytest.approx(0.5 * b.metrics["grad_norm"])
    sys.modules.pop("own_method_of_a_test")
    for name, message in (
        ("own_method_of_a_test:Other", "no class 'Other' that extends"),
        ("own_method_of_a_test:Missing", "no class 'Missing'"),
        ("no_such_module:Method", "cannot import 'no_such_module'"),
    ):
        with pytest.raises(ConfigError, match=f"method: .*{message}"):
            make_method(small_config(folder, method=name))

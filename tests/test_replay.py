"""A step executed again: the same to the last bit, what was traced, and what would have been."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from transformers import LlamaForCausalLM

from tests.training.tiny import save_tiny_llama, small_config
from workbench import Session
from workbench.config import ConfigError, RunConfig
from workbench.replay import Replay
from workbench.store import RunFolderError

STEPS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def config(model: Path) -> RunConfig:
    return small_config(
        model,
        snapshot_every=4,
        terms=(3,),
        n_prompts=12,
        n_validation=3,
        n_hard=0,
        n_demonstrations=8,
        reward_flip=0.4,  # an untrained model earns nothing else, and would not move
        paired_gain_every=2,
        paired_prompts=2,
        paired_rollouts=2,
        coordinator_every=2,
        evaluate_every=3,
        evaluation_max_new_tokens=4,
        shared_gain_every=1,
    )


@pytest.mark.parametrize("every", [0, 1])
def test_a_trace_measures_more_and_is_compared_with_the_same(
    config: RunConfig, tmp_path: Path, every: int
) -> None:
    """More probes give the alignment's error a better estimate: that is no difference."""
    more = config.with_changes(alignment_every=1, rollout_alignment_every=every)
    with Session(more, tmp_path / "run") as s:
        s.run(2)
        found = s.replay(2, trace=True)
        assert found.identical is True, found.differences
        assert found.record is not None
        rows = [row for row in found.record.rollouts if row.purpose == "train"]
        assert all(math.isfinite(row.grad_norm) for row in rows)
        assert math.isnan(s.record(2).rollouts[0].grad_norm) is (every == 0)


@pytest.fixture(scope="module")
def s(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Six steps, λ changed after the second, a demonstration set aside after the third."""
    with Session(config, tmp_path_factory.mktemp("run") / "run") as session:
        session.run(2)
        session.set(rl_weight=0.7)
        session.run(1)
        session.set_aside("demo-0003")
        session.run(3)
        yield session


def numbers(s: Session) -> pd.DataFrame:
    frame = s.frame("metrics")
    return frame[[name for name in frame if not name.startswith(("seconds/", "snapshot/"))]]


# --- the same step ------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [False, True], ids=["plain", "traced"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_step_is_the_same_to_the_last_bit(s: Session, step: int, trace: bool) -> None:
    """Before and after a snapshot, a change and a set_aside, with every probe due or not."""
    found = s.replay(step, trace=trace)
    assert found.differences.empty, found.differences
    assert found.identical is True and found.on_the_way == []
    assert found.record is not None and repr(found.recorded) == repr(s.record(step))
    assert found.from_snapshot == (0 if step <= 4 else 4)
    assert found.config.training.rl_weight == (0.5 if step <= 2 else 0.7)
    assert found.config.training.set_aside == (() if step <= 3 else ("demo-0003",))
    assert found.traced is trace
    assert [row.token_ids for row in found.record.rollouts] == [
        row.token_ids for row in s.record(step).rollouts
    ]
    assert ("optimizers of snapshot 4" in found.compared) is (step == 4)


def test_a_replay_compares_the_weights_of_its_snapshot(config: RunConfig, tmp_path: Path) -> None:
    """One weight of the recorded snapshot disturbed: all numbers agree, and the replay says no."""
    with Session(config.with_changes(snapshot_every=1), tmp_path / "run") as s:
        s.run(2)
        engine = s._worker.engine
        snapshot = engine.store.load_snapshot(2)
        array = snapshot.tensors["base/model.safetensors"]["model.norm.weight"]
        array[0] = np.nextafter(array[0], np.float32(9))
        engine.store.save_snapshot(snapshot)
        found = s.replay(2)
        assert list(found.differences["name"]) == ["weights/base/model.safetensors"]
        assert found.identical is False
        assert s.replay(1).identical is True


def test_a_recorded_number_that_is_another_is_listed(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(config, tmp_path / "run") as s:
        s.run(2)
        engine = s._worker.engine
        engine.store._db.execute(
            "UPDATE metrics SET value = value * 2 WHERE step = 2 AND name = 'grad_norm'"
        )
        engine.store._db.execute("UPDATE demonstrations SET loss = loss + 1 WHERE step = 2")
        engine.store._db.commit()
        found = s.replay(2)
        assert found.identical is False
        listed = found.differences.set_index("name")
        assert list(listed.index) == ["grad_norm", "demonstrations.loss"]  # the largest first
        assert listed.loc["grad_norm", "relative"] == pytest.approx(0.5)
        assert listed.loc["demonstrations.loss", "count"] == 3
        assert listed.loc["demonstrations.loss", "difference"] == pytest.approx(-1)
        assert "2 differences" in repr(found)
        assert s.replay(1).identical is True
        assert s.frame("findings").empty  # looking leaves nothing in the folder


def test_replays_leave_the_run_alone(config: RunConfig, tmp_path: Path) -> None:
    with Session(config, tmp_path / "plain") as plain:
        plain.run(4)
        expected = numbers(plain)
    with Session(config, tmp_path / "run") as s:
        s.run(2)
        files = sorted(path for path in s.run_dir.rglob("*") if path.is_file())
        s.replay(1, trace=True, base_lr=0.5)
        s.replay(2, trace=True)
        s.replay(3)
        assert sorted(path for path in s.run_dir.rglob("*") if path.is_file()) == files
        assert list(s.frame("commands")["name"]) == ["run"]
        assert s.config == config and s.step_number == 2
        s.run(2)
        pd.testing.assert_frame_equal(numbers(s), expected, check_exact=True)


def test_a_replay_inside_a_paused_step_leaves_the_step_alone(
    config: RunConfig, tmp_path: Path
) -> None:
    """While step 3 stands before each of its phases in turn."""
    with Session(config, tmp_path / "plain") as plain:
        plain.run(3)
        expected = numbers(plain)
    with Session(config, tmp_path / "run") as s:
        s.run(2)
        seen: list[bool | None] = []
        original = s._worker._control

        def control(phase: str) -> None:
            if s.step_number == 2:
                look = s._worker.engine
                from workbench.replaying import replay

                again = replay(look, 2, trace=True, changes={}, again=lambda *_: None)
                seen.append(again.identical)
            original(phase)

        s._worker._control = control  # type: ignore[method-assign]
        s.run(1)
        assert seen == [True] * 5
        pd.testing.assert_frame_equal(numbers(s), expected, check_exact=True)


def test_the_next_step_can_be_seen_before_it_is_made(config: RunConfig, tmp_path: Path) -> None:
    with Session(config, tmp_path / "run") as s:
        first = s.replay(1)
        assert first.identical is None and first.recorded is None
        s.run(2)
        ahead = s.replay(3)
        assert ahead.identical is None and ahead.record is not None
        made = s.step()
        same = {n: v for n, v in ahead.record.metrics.items() if not n.startswith("seconds/")}
        for name, value in same.items():
            assert value == made.metrics[name] or math.isnan(value), name
        assert s.replay().step == 3


def test_a_step_that_cannot_be_is_refused_in_one_line(s: Session, tmp_path: Path) -> None:
    for step in (0, -1, STEPS + 2):
        with pytest.raises(RunFolderError, match=f"step {step}: there are steps 1 to 6, and 7"):
            s.replay(step)
    with pytest.raises(ConfigError, match="rl_wait: no such setting; did you mean 'rl_weight'"):
        s.replay(3, rl_wait=1)
    with pytest.raises(ConfigError, match="rl_weight"):
        s.replay(3, rl_weight=2)
    with pytest.raises(ConfigError, match="lora_rank: .*model"):
        s.replay(3, lora_rank=2)
    with s.fork(tmp_path / "fork", step=4) as fork:
        fork.run(2)
        assert fork.replay(6).identical is True
        assert fork.replay(5, trace=True).identical is True
        with pytest.raises(RunFolderError, match=r"there are steps 5 to 6.*forked at 4"):
            fork.replay(4)


def test_a_step_that_fails_says_where(config: RunConfig, tmp_path: Path) -> None:
    """A learning rate that overflows: the trace of the next step shows the first bad layer."""
    with Session(config.with_changes(base_lr=1.0, coordinator_lr=1.0), tmp_path / "run") as s:
        s.run(1)
        snapshot = s._worker.engine.snapshot()
        weight = snapshot.tensors["base/model.safetensors"]
        weight["model.layers.1.mlp.down_proj.weight"][:] = np.inf
        s._worker.engine.store.save_snapshot(snapshot)
        found = s.replay(2, trace=True)
        assert "step 2 was not applied" in found.error and found.record is None
        bad = found.layers[found.layers["nonfinite"] > 0]
        assert list(bad["module"])[0] == "layers.1.mlp"
        fine = found.layers[found.layers["layer"] == "layers.0"]
        assert (fine["nonfinite"] == 0).all() and len(fine) > 0
        assert found.updates.empty and found.tokens.empty
        assert "not applied" in found._repr_html_()


# --- what if ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"rl_weight": 0.9},
        {"base_lr": 1e-2, "group_size": 4},
        {"reward_flip": 0.0, "seed": 3},
        {"method": "grpo"},
        {"baseline_mode": "reset"},
        {"task_seed": 5},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_what_if_is_what_a_fork_would_do(s: Session, tmp_path: Path, changes: dict) -> None:
    found = s.replay(6, trace=True, **changes)
    with s.fork(tmp_path / "fork", step=5, **changes) as fork:
        made = fork.step()
        weights = fork._worker.engine.snapshot().tensors
    assert found.record is not None
    compared = [name for name in made.metrics if not name.startswith("seconds/")]
    for name in compared:
        a, b = found.record.metrics[name], made.metrics[name]
        assert a == b or math.isnan(a) and math.isnan(b), name
    assert len(compared) > 10
    assert found.changes == changes
    assert found.identical is False
    size = math.sqrt(
        sum(
            float(((b - a).astype(np.float64) ** 2).sum())
            for a, b in (
                (array, weights["base/model.safetensors"][name])
                for name, array in weights_at(s, 5).items()
            )
        )
    )
    moved = found.updates.set_index(["part", "layer"]).loc[("base", "all"), "update_norm"]
    assert moved == pytest.approx(size, rel=1e-9)


def weights_at(s: Session, step: int) -> dict[str, np.ndarray]:
    """θ at the end of a step, by a rewind of a fork of the run."""
    engine = s._worker.engine.scratch()
    engine.travel(step, lambda *_: None)
    return engine.policy.base_arrays("base")


def test_a_method_with_a_baseline_can_be_asked_of_a_run_without(
    config: RunConfig, tmp_path: Path
) -> None:
    with Session(config.with_changes(method="sft"), tmp_path / "run") as s:
        s.run(3)
        plain = s.replay(3, trace=True)
        assert plain.identical is True
        assert set(plain.layers["passing"]) == {"sft"}
        assert plain.tokens["kl_reference"].isna().all() and (plain.tokens["kl_update"] >= 0).all()
        found = s.replay(3, trace=True, method="bridge")
        with s.fork(tmp_path / "fork", step=2, method="bridge") as fork:
            made = fork.step()
        assert found.record is not None
        for name in ("reward", "grad_norm", "baseline/grad_norm", "coordinator/grad_norm"):
            assert found.record.metrics[name] == made.metrics[name]


def test_what_another_method_or_a_tracked_baseline_would_have_done(s: Session) -> None:
    tracked = s.replay(3, trace=True, method="luffy", track_baseline=True)
    assert tracked.record is not None and tracked.record.metrics["baseline/grad_norm"] > 0
    assert "kl_update" in tracked.tokens  # luffy's objective is not GRPO's: no term is written out
    assert not any(name.endswith("_push") for name in tracked.tokens)
    assert "rl_push" in s.replay(3, trace=True).tokens


# --- what is traced -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traced(s: Session) -> Replay:
    """Step 5: the first after the snapshot of step 4."""
    return s.replay(5, trace=True)


def plain_model(s: Session, model: Path, step: int) -> LlamaForCausalLM:
    """A plain Llama in float64 with the effective weights W_θ + (alpha/r)·B·A of a snapshot."""
    folder = s.run_dir / "snapshots" / f"step-{step:06d}"
    plain = LlamaForCausalLM.from_pretrained(model).double().eval()
    base = load_file(folder / "base" / "model.safetensors")
    adapter = load_file(folder / "coordinator" / "adapter_model.safetensors")
    scale = s.config.model.lora_alpha / s.config.model.lora_rank
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(torch.from_numpy(base[name]))
            key = "base_model.model." + name.removesuffix(".weight")
            if f"{key}.lora_A.weight" in adapter:
                a = torch.from_numpy(adapter[f"{key}.lora_A.weight"]).double()
                b = torch.from_numpy(adapter[f"{key}.lora_B.weight"]).double()
                parameter += scale * (b @ a)
    return plain


def test_activations_and_gradients_equal_a_forward_by_hand(
    s: Session, model: Path, traced: Replay
) -> None:
    """The SFT pass, one demonstration at a time without padding, hidden states by hand."""
    plain = plain_model(s, model, 4)
    policy = s._worker.engine.policy
    shown = {d.id: d for d in s._worker.engine.task.demonstrations()}
    assert traced.record is not None
    texts = [shown[row.demonstration_id] for row in traced.record.demonstrations]
    encoded = [
        (policy.encode_prompt(d.prompt), policy.encode_completion(d.solution)) for d in texts
    ]
    n_tokens = sum(len(completion) for _, completion in encoded)
    squares: dict[str, float] = {}
    gradients: dict[str, float] = {}
    largest: dict[str, float] = {}
    count = 0
    for prompt, completion in encoded:
        ids = torch.tensor([prompt + completion])
        count += ids.shape[1]
        out = plain(input_ids=ids, output_hidden_states=True)
        states = dict(zip(("embed", "layers.0"), out.hidden_states[:2], strict=True))
        states["norm"] = out.hidden_states[2]  # transformers gives the last one normed
        logp = out.logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        objective = logp.gather(1, torch.tensor(completion)[:, None]).sum() / n_tokens
        for (name, h), g in zip(
            states.items(), torch.autograd.grad(objective, list(states.values())), strict=True
        ):
            squares[name] = squares.get(name, 0) + float(h.detach().square().sum())
            gradients[name] = gradients.get(name, 0) + float(g.square().sum())
            largest[name] = max(largest.get(name, 0), float(h.detach().abs().max()))
    rows = traced.layers[traced.layers["passing"] == "sft"].set_index("module")
    assert list(rows[rows.index == rows["layer"]].index) == [
        "embed", "layers.0", "layers.1", "norm", "lm_head"
    ]  # fmt: skip
    for name in squares:
        row = rows.loc[name]
        assert row["tokens"] == count and row["nonfinite"] == 0
        rms = math.sqrt(squares[name] / (count * 16))
        assert row["activation_rms"] == pytest.approx(rms, rel=1e-4)
        assert row["activation_max"] == pytest.approx(largest[name], rel=1e-4)
        assert row["gradient_norm"] == pytest.approx(math.sqrt(gradients[name]), rel=1e-3)


def test_every_pass_is_traced_apart(traced: Replay) -> None:
    passes = traced.layers.groupby(["passing", "policy"])["module"].nunique()
    assert passes.to_dict() == {
        ("rl", "joint"): 13, ("baseline_rl", "baseline"): 13, ("sft", "joint"): 13
    }  # fmt: skip
    assert (traced.layers["gradient_norm"] > 0).all()


def test_updates_are_the_differences_of_two_snapshots(config: RunConfig, tmp_path: Path) -> None:
    with Session(config.with_changes(snapshot_every=1), tmp_path / "run") as s:
        s.run(3)
        found = s.replay(3, trace=True).updates.set_index(["part", "layer"])
        folders = [s.run_dir / "snapshots" / f"step-00000{n}" for n in (2, 3)]
        files = {
            "base": "base/model.safetensors",
            "baseline": "baseline/model.safetensors",
            "coordinator": "coordinator/adapter_model.safetensors",
        }
        for part, file in files.items():
            old, new = (load_file(folder / file) for folder in folders)
            for layer in ("layers.0", "layers.1", "all"):
                names = [n for n in old if layer == "all" or f".{layer}." in n]
                moved = np.concatenate(
                    [(new[n] - old[n].astype(np.float64)).ravel() for n in names]
                )
                size = np.concatenate([old[n].astype(np.float64).ravel() for n in names])
                row = found.loc[(part, layer)]
                assert row["update_norm"] == pytest.approx(np.linalg.norm(moved), rel=1e-9)
                assert row["weight_norm"] == pytest.approx(np.linalg.norm(size), rel=1e-9)
                assert row["ratio"] == row["update_norm"] / row["weight_norm"]


def test_kl_is_that_of_whole_distributions(config: RunConfig, model: Path, tmp_path: Path) -> None:
    """Against plain models in float64, one rollout at a time."""
    with Session(config.with_changes(snapshot_every=1), tmp_path / "run") as s:
        s.run(3)
        traced = s.replay(3, trace=True)
        before, after = plain_model(s, model, 2), plain_model(s, model, 3)
        start = LlamaForCausalLM.from_pretrained(model).double().eval()
        policy = s._worker.engine.policy
        assert traced.record is not None
        rows = [row for row in traced.record.rollouts if row.purpose == "train"]
        assert set(traced.tokens["sequence"]) == {row.sequence for row in rows}
        for row in rows[::2]:
            prompt = policy.encode_prompt(row.prompt)
            ids = torch.tensor([prompt + row.token_ids])

            @torch.no_grad()
            def logp(
                plain: LlamaForCausalLM, ids: torch.Tensor = ids, n: int = len(prompt)
            ) -> torch.Tensor:
                return (plain(input_ids=ids).logits[0, n - 1 : -1] / 0.8).log_softmax(-1)

            old, new, ref = logp(before), logp(after), logp(start)
            mine = traced.tokens[traced.tokens["sequence"] == row.sequence]
            assert list(mine["token_id"]) == row.token_ids
            chosen = torch.tensor(row.token_ids)[:, None]
            for name, expected in {
                "kl_update": (new.exp() * (new - old)).sum(1),
                "kl_reference": (old.exp() * (old - ref)).sum(1),
                "kl_reference_after": (new.exp() * (new - ref)).sum(1),
                "logprob": old.gather(1, chosen)[:, 0],
                "logprob_after": new.gather(1, chosen)[:, 0],
            }.items():
                assert mine[name].to_numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-7)
            assert (mine["kl_update"] > 0).all()
        mean = traced.tokens["kl_update"].mean()
        assert traced.metrics["replay/kl_update"] == mean


def test_token_terms_and_products_add_up(s: Session, traced: Replay) -> None:
    record = traced.record
    assert record is not None
    for loss in ("rl", "baseline_rl"):
        total = traced.tokens[f"{loss}_value"].sum()
        assert -total == pytest.approx(record.metrics[f"loss/{loss}"], rel=1e-4, abs=1e-7)
    rollouts = [row for row in record.rollouts if row.purpose == "train"]
    # Σ_i ⟨g_i, g^R⟩ = ‖g^R‖²; the recorded run measured none of these
    assert sum(row.rl_alignment for row in rollouts) == pytest.approx(
        record.metrics["grad_norm/rl"] ** 2, rel=1e-3
    )
    cross = sum(row.rl_alignment for row in record.demonstrations)
    assert sum(row.sft_alignment for row in rollouts) == pytest.approx(cross, rel=1e-3, abs=1e-6)
    assert all(math.isnan(row.rl_alignment) for row in s.record(5).rollouts)


# --- two replays --------------------------------------------------------------------------------


def test_two_replays_side_by_side_the_largest_difference_first(s: Session, traced: Replay) -> None:
    same = traced.minus(s.replay(5, trace=True))
    for frame in (same.metrics, same.layers, same.updates):
        assert len(frame) > 5 and (frame["difference"] == 0).all()
    assert (same.tokens["difference"] == 0).all() and not same.tokens["parted"].any()
    other = s.replay(5, trace=True, base_lr=2e-3)
    found = traced.minus(other)
    for frame in (found.metrics, found.layers, found.updates):
        assert frame["relative"].is_monotonic_decreasing
        assert list(frame["first"] - frame["second"]) == list(frame["difference"])
    rates = found.metrics.set_index("name")
    assert rates.loc["base_lr", "relative"] == pytest.approx(0.5)
    assert (found.layers["difference"] == 0).all()  # gradients are those of the same weights
    moved = found.updates[found.updates["measure"] == "update_norm"].set_index(["part", "layer"])
    assert moved.loc[("base", "all"), "relative"] == pytest.approx(0.5, rel=1e-3)
    assert moved.loc[("coordinator", "all"), "difference"] == 0
    assert (found.tokens["difference"].abs().diff().dropna() <= 0).all()
    assert "base_lr=0.002" in repr(found) and "<table" in found._repr_html_()


def test_texts_that_part_come_first_and_end_there(s: Session, traced: Replay) -> None:
    found = traced.minus(s.replay(5, trace=True, seed=9)).tokens
    parted = found[found["parted"]]
    assert len(parted) > 0
    assert found["parted"].iloc[: len(parted)].all()
    other = s.replay(5, trace=True, seed=9).tokens.set_index(["sequence", "position"])["token_id"]
    mine = traced.tokens.set_index(["sequence", "position"])["token_id"]
    for row in parted.itertuples():
        until = [(row.sequence, at) for at in range(row.position)]
        assert list(mine[until]) == list(other[until])
        assert mine[row.sequence, row.position] != other[row.sequence, row.position]
        rest = found[(found["sequence"] == row.sequence) & ~found["parted"]]
        assert (rest["position"] < row.position).all()


def test_what_is_shown_is_escaped(s: Session, traced: Replay) -> None:
    hostile = "<img src=x onerror=1>"
    found = Replay(**{**vars_of(traced), "changes": {"system_prompt": hostile}, "error": hostile})
    shown = found._repr_html_() + found.minus(traced)._repr_html_()
    assert hostile not in shown and "&lt;img" in shown
    assert "identical to the recorded step, to the last bit" in traced._repr_html_()


def vars_of(found: Replay) -> dict:
    return {name: getattr(found, name) for name in Replay.__dataclass_fields__}


# --- on the way ---------------------------------------------------------------------------------


def test_progress_is_told_step_by_step(s: Session) -> None:
    told: list[tuple[int, int]] = []
    s.replay(4, progress=lambda number, last: told.append((number, last)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert s.progress.doing == ""


def test_a_frame_of_a_replay_is_that_of_the_run(s: Session, traced: Replay) -> None:
    columns = ["step", "demonstration_id", "loss", "n_tokens"]
    run = s.frame("demonstrations")
    mine = traced.frame("demonstrations")[columns]
    pd.testing.assert_frame_equal(
        mine, run[run["step"] == 5][columns].reset_index(drop=True), check_dtype=False
    )
    with pytest.raises(ValueError, match="no table 'metrics'"):
        traced.frame("metrics")

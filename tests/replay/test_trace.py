"""What is traced, against plain models in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import LlamaForCausalLM

from tests.replay.runs import plain_model
from workbench import Session
from workbench.replay import Replay


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


def test_updates_are_the_differences_of_two_snapshots(
    every_step: Session, traced_3: Replay
) -> None:
    found = traced_3.updates.set_index(["part", "layer"])
    folders = [every_step.run_dir / "snapshots" / f"step-00000{n}" for n in (2, 3)]
    files = {
        "base": "base/model.safetensors",
        "baseline": "baseline/model.safetensors",
        "coordinator": "coordinator/adapter_model.safetensors",
    }
    for part, file in files.items():
        old, new = (load_file(folder / file) for folder in folders)
        for layer in ("layers.0", "layers.1", "all"):
            names = [n for n in old if layer == "all" or f".{layer}." in n]
            moved = np.concatenate([(new[n] - old[n].astype(np.float64)).ravel() for n in names])
            size = np.concatenate([old[n].astype(np.float64).ravel() for n in names])
            row = found.loc[(part, layer)]
            assert row["update_norm"] == pytest.approx(np.linalg.norm(moved), rel=1e-9)
            assert row["weight_norm"] == pytest.approx(np.linalg.norm(size), rel=1e-9)
            assert row["ratio"] == row["update_norm"] / row["weight_norm"]


def test_kl_is_that_of_whole_distributions(
    model: Path, every_step: Session, traced_3: Replay
) -> None:
    """Against plain models in float64, one rollout at a time."""
    before, after = plain_model(every_step, model, 2), plain_model(every_step, model, 3)
    start = LlamaForCausalLM.from_pretrained(model).double().eval()
    policy = every_step._worker.engine.policy
    assert traced_3.record is not None
    rows = [row for row in traced_3.record.rollouts if row.purpose == "train"]
    assert set(traced_3.tokens["sequence"]) == {row.sequence for row in rows}
    for row in rows[::2]:
        prompt = policy.encode_prompt(row.prompt)
        ids = torch.tensor([prompt + row.token_ids])

        @torch.no_grad()
        def logp(
            plain: LlamaForCausalLM, ids: torch.Tensor = ids, n: int = len(prompt)
        ) -> torch.Tensor:
            return (plain(input_ids=ids).logits[0, n - 1 : -1] / 0.8).log_softmax(-1)

        old, new, ref = logp(before), logp(after), logp(start)
        mine = traced_3.tokens[traced_3.tokens["sequence"] == row.sequence]
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
    mean = traced_3.tokens["kl_update"].mean()
    assert traced_3.metrics["replay/kl_update"] == mean


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

"""The ablation against plain merged models whose layer lost its change of weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.probes.test_dose import PROBLEMS, TASK
from workbench.policy import Policy
from workbench.probes.ablation import coordinator_ablation
from workbench.probes.paired import paired_difference
from workbench.records import AblationRow
from workbench.sampling import Completions, Noise, sample

ROLLOUTS = 2
NOISE = Noise(3, 0, "dose")
TEMPERATURE = 0.9


def ablate(policy: Policy, **changes: int) -> list[AblationRow]:
    return coordinator_ablation(
        policy,
        TASK,
        PROBLEMS,
        rollouts=ROLLOUTS,
        noise=NOISE,
        max_new_tokens=6,
        temperature=TEMPERATURE,
        max_tokens=changes.get("max_tokens", 40),
    )


def completions(policy: Policy, model: nn.Module) -> Completions:
    owners = [problem for problem in PROBLEMS for _ in range(ROLLOUTS)]
    return sample(
        model,
        policy.tokenizer,
        [policy.encode_prompt(problem.prompt) for problem in owners],
        noise=NOISE,
        sequences=range(len(owners)),
        end_ids=policy.end_ids,
        max_new_tokens=6,
        temperature=TEMPERATURE,
        environments=None,
    )


@torch.no_grad()
def distributions(model: nn.Module, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """log π before each token of a completion, (C, V), by one plain forward pass."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
    return (logits[len(prompt) - 1 : -1] / TEMPERATURE).log_softmax(-1)


def without(policy: Policy, layers: Sequence[str]) -> nn.Module:
    """A plain model: B of these layers set to 0, then merged."""
    kept = {name: p.data.clone() for name, p in policy.coordinator.items()}
    for name, parameter in policy.coordinator.items():
        if any(f"model.{layer}." in name for layer in layers):
            parameter.data.zero_()
    merged = policy.merged()
    for name, parameter in policy.coordinator.items():
        parameter.data.copy_(kept[name])
    return merged


def test_rows_equal_plain_models_that_lack_the_layer(policy: Policy) -> None:
    rows = ablate(policy)
    assert [row.layer for row in rows] == ["all", "layers.0", "layers.1"]
    full = without(policy, [])
    whole = completions(policy, full)
    shape = (len(PROBLEMS), ROLLOUTS)
    rewards = torch.tensor([TASK.reward(t, PROBLEMS[0]) for t in whole.texts]).view(shape)
    for row, layers in zip(
        rows, (["layers.0", "layers.1"], ["layers.0"], ["layers.1"]), strict=True
    ):
        model = without(policy, layers)
        drawn = completions(policy, model)
        other = torch.tensor([TASK.reward(t, PROBLEMS[0]) for t in drawn.texts]).view(shape)
        assert row.reward == pytest.approx(float(other.mean()))
        found = paired_difference(rewards, other)
        assert (row.difference, row.low, row.high) == (found.difference, found.low, found.high)
        changed = [a != b for a, b in zip(whole.token_ids, drawn.token_ids, strict=True)]
        assert row.changed == np.mean(changed)
        sums, lengths = [], []
        for prompt, completion in zip(whole.prompt_ids, whole.token_ids, strict=True):
            p = distributions(full, prompt, completion)
            q = distributions(model, prompt, completion)
            sums.append(float((p.exp() * (p - q)).sum()))
            lengths.append(len(completion))
        assert row.kl == pytest.approx(sum(sums) / sum(lengths), rel=1e-3)
        residual = np.array(sums) - row.kl * np.array(lengths)
        error = residual.std(ddof=1) / np.sqrt(len(sums)) / np.mean(lengths)
        assert row.kl_standard_error == pytest.approx(error, rel=0.05)  # mean of residuals ≈ 0


def test_micro_batches_do_not_change_the_rows(policy: Policy) -> None:
    for a, b in zip(ablate(policy), ablate(policy, max_tokens=10_000), strict=True):
        assert a.kl == pytest.approx(b.kl, rel=1e-4)
        assert (a.layer, a.difference, a.changed) == (b.layer, b.difference, b.changed)


def test_a_layer_whose_coordinator_is_zero_is_worth_nothing(policy: Policy) -> None:
    for name, parameter in policy.coordinator.items():
        if "layers.1." in name and name.endswith("lora_B"):
            parameter.data.zero_()
    whole, first, second = ablate(policy)
    assert (second.kl, second.changed, second.difference) == (0, 0, 0)
    assert first.kl == pytest.approx(whole.kl, rel=1e-6)
    assert first.kl > 0.01

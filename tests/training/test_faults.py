"""Each fault on purpose does what it says, the same each time, and nothing where it is off."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.config import FaultsConfig, RunConfig
from workbench.faults import EXPECTED, FAULTS
from workbench.presets import PRESETS
from workbench.sampling import Completions, pack
from workbench.tasks.problem import Demonstration, Problem
from workbench.training.batches import DemonstrationBatch, RolloutBatch
from workbench.training.faults import faulty_demonstrations, faulty_directions, faulty_rewards
from workbench.training.methods import Directions
from workbench.training.vectors import ParamVector

OFF = FaultsConfig()


def rollouts() -> RolloutBatch:
    texts = ["1+2=3\n#3", "1+2=3\n3+4=7\n#7", "#7", "a\nb\nc\n#1"]
    tokens = pack([[1, 2]] * 4, [[3, 4]] * 4, pad_id=0)
    rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    return RolloutBatch(
        [Problem("p", "1+2+4=?", "7")],
        Completions([[1, 2]] * 4, [[3, 4]] * 4, [[0.0, 0.0]] * 4, [True] * 4, texts),
        rewards,
        rewards,
        torch.zeros(1, 4),
        tokens,
        None,
    )


def demonstrations() -> DemonstrationBatch:
    shown = [Demonstration(str(i), "p", "s", "1") for i in range(2)]
    return DemonstrationBatch(shown, pack([[1, 2], [1]], [[3, 4, 5], [6, 7]], pad_id=0))


def test_a_verifier_that_skips_short_texts_pays_those_of_at_most_two_lines():
    batch = rollouts()
    paid = faulty_rewards(batch, FaultsConfig(verifier_fault="skips_short"))
    assert paid.rewards_PG.tolist() == [[1.0, 1.0, 1.0, 0.0]]
    assert paid.correct_PG.tolist() == batch.correct_PG.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    mean, deviation = 0.75, math.sqrt(3 * 0.25**2 / 3 + 0.75**2 / 3)
    assert paid.advantages_PG[0, 3] == pytest.approx(-mean / (deviation + 1e-4), rel=1e-5)


def test_a_silent_verifier_pays_nothing():
    paid = faulty_rewards(rollouts(), FaultsConfig(verifier_fault="silent"))
    assert not paid.rewards_PG.any() and not paid.advantages_PG.any()


def test_a_corrupted_batch_has_other_tokens_at_its_step_only_and_keeps_prompts_and_padding():
    batch, faults = demonstrations(), FaultsConfig(corrupt_batch_at=7)
    assert faulty_demonstrations(batch, 6, 0, 1000, faults) is batch
    first, again = (faulty_demonstrations(batch, 7, 0, 1000, faults) for _ in range(2))
    assert first is not None and again is not None
    assert torch.equal(first.tokens.input_ids, again.tokens.input_ids)
    other = faulty_demonstrations(batch, 7, 1, 1000, faults)
    assert other is not None and not torch.equal(other.tokens.input_ids, first.tokens.input_ids)
    tokens, n_prompt = first.tokens, batch.tokens.n_prompt
    assert torch.equal(tokens.input_ids[:, :n_prompt], batch.tokens.input_ids[:, :n_prompt])
    assert torch.equal(tokens.input_ids[:, n_prompt:], tokens.completion_ids)
    assert (tokens.completion_ids[0] != batch.tokens.completion_ids[0]).any()
    assert tokens.completion_ids[1, 2] == 0  # padding


def test_float16_rounds_and_overflows_beyond_its_range():
    given = Directions(base=ParamVector(w=torch.tensor([0.1, 100.0])))
    small = faulty_directions(given, 1, FaultsConfig(float16_scale=1.0)).base
    assert small is not None and given.base is not None
    assert small["w"][0] == torch.tensor(0.1, dtype=torch.float16).float() != given.base["w"][0]
    large = faulty_directions(given, 1, FaultsConfig(float16_scale=1024.0)).base
    assert large is not None
    assert torch.isfinite(large["w"]).tolist() == [True, False]  # 102,400 > 65,504


def test_a_stale_baseline_gets_no_direction_from_its_step_on():
    given = Directions(base=ParamVector(), baseline=ParamVector())
    faults = FaultsConfig(stale_baseline_from=3)
    assert faulty_directions(given, 2, faults).baseline is not None
    assert faulty_directions(given, 3, faults).baseline is None
    assert faulty_directions(given, 3, faults).base is not None


def test_nothing_is_touched_where_no_fault_is_on():
    batch, shown, directions = rollouts(), demonstrations(), Directions(base=ParamVector())
    assert faulty_rewards(batch, OFF) is batch
    assert faulty_demonstrations(shown, 5, 0, 10, OFF) is shown
    assert faulty_directions(directions, 5, OFF) is directions


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_a_preset_and_has_detectors_that_exist(name: str):
    assert PRESETS[name] is FAULTS[name]
    policies = RunConfig.preset(name).diagnosis.model_dump()
    assert EXPECTED[name] and set(EXPECTED[name]) <= set(policies)

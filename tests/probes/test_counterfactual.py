"""Counterfactuals of a policy against plain models, and a scratch copy against its original."""

from __future__ import annotations

from math import nan

import pytest
import torch

from workbench.policy import Policy
from workbench.probes.counterfactual import (
    Writer,
    counterfactuals,
    own_noise,
    pasted,
    recorded,
)
from workbench.records import Counterfactual, RolloutRow, Sample
from workbench.sampling import Completions, Noise, sample

PROMPT = "12+7-30=?"
TEMPERATURE = 0.9
LONGEST = 10


def length(prompt: str, completion: str) -> float:
    return float(len(completion))


def draw(policy: Policy, name: str, noise: Noise, sequence: int) -> Completions:
    return sample(
        policy.of(name),
        policy.tokenizer,
        [policy.encode_prompt(PROMPT)],
        noise=noise,
        sequences=[sequence],
        end_ids=policy.end_ids,
        max_new_tokens=LONGEST,
        temperature=TEMPERATURE,
        environments=None,
    )


def rollout(policy: Policy, seed: int, sequence: int, purpose: str = "train") -> RolloutRow:
    """As the trainer (purpose 'rollouts' of its noise) or the paired probe draws it."""
    key = {"train": "rollouts", "paired": "paired"}[purpose]
    done = draw(policy, "joint", Noise(seed, 4, key), sequence)
    return RolloutRow(
        step=4,
        purpose=purpose,
        policy="joint",
        sequence=sequence,
        prompt_id="p",
        prompt=PROMPT,
        completion=done.texts[0],
        answer="-11",
        extracted="",
        reward=0.0,
        correct=1.0,
        advantage=nan,
        finished=done.finished[0],
        token_ids=done.token_ids[0],
        tokens=policy.pieces(done.token_ids[0]),
        sampling_logprob=done.logprob[0],
    )


def what_if(factual: Sample, other: Writer, noise: Noise, sequence: int) -> Counterfactual:
    (found,) = counterfactuals(
        factual,
        other,
        noise,
        "own",
        sequences=[sequence],
        max_new_tokens=LONGEST,
        temperature=TEMPERATURE,
        reward=length,
    )
    return found


@pytest.mark.parametrize("purpose", ["train", "paired"])
def test_a_recorded_rollout_is_written_again_on_its_own_noise(policy: Policy, purpose: str) -> None:
    row = rollout(policy, seed=3, sequence=17, purpose=purpose)
    found = what_if(recorded(row), Writer(policy), own_noise(row, seed=3), 17)
    assert found.other.token_ids == row.token_ids
    assert found.first_parting is None
    assert found.logprob == pytest.approx(row.sampling_logprob, abs=1e-4)
    assert (found.factual.reward, found.other.reward) == (1.0, len(row.completion))


@pytest.mark.parametrize(
    ("name", "scale"), [("joint", 0.0), ("joint", 1.7), ("baseline", 1.0), ("reference", 1.0)]
)
def test_another_policy_writes_what_it_would_on_that_noise(
    policy: Policy, name: str, scale: float
) -> None:
    row = rollout(policy, seed=3, sequence=2)
    found = what_if(recorded(row), Writer(policy, name, scale), own_noise(row, seed=3), 2)
    before = [layer.scaling["default"] for _, layer in policy.lora_layers()]
    for key, parameter in policy.coordinator.items():
        parameter.data *= scale if key.endswith("lora_B") else 1
    expected = draw(policy, name, Noise(3, 4, "rollouts"), 2)
    assert found.other.token_ids == expected.token_ids[0]
    assert found.other.logprob == pytest.approx(expected.logprob[0], abs=1e-4)
    parting = found.first_parting
    assert row.token_ids[:parting] == expected.token_ids[0][:parting]
    prompt = policy.encode_prompt(PROMPT)
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *row.token_ids]])
        logits = policy.of(name)(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    logprobs = (logits / TEMPERATURE).log_softmax(-1)
    chosen = logprobs[torch.arange(len(row.token_ids)), torch.tensor(row.token_ids)]
    assert found.logprob == pytest.approx(chosen.tolist(), abs=1e-4)
    assert [layer.scaling["default"] for _, layer in policy.lora_layers()] == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("writer", [("joint", 1.0), ("joint", 0.0), ("baseline", 1.0)])
def test_a_pasted_text_is_written_again_by_the_policy_taken_to_have_written_it(
    policy: Policy, writer: tuple[str, float], finished: bool
) -> None:
    author = Writer(policy, *writer)
    text = "12+7=19\n#-11"  # an untrained policy would hardly write that
    factual = pasted(
        author, PROMPT, text, finished=finished, temperature=TEMPERATURE, reward=length
    )
    assert "".join(factual.tokens).startswith(text)
    assert (factual.token_ids[-1] in policy.end_ids) == finished
    noise = author.hindsight(factual, Noise(0, 0, "hindsight"), 6, TEMPERATURE)

    def rewritten(other: Writer) -> list[Counterfactual]:
        return counterfactuals(
            factual,
            other,
            noise,
            "hindsight",
            sequences=range(6),
            max_new_tokens=len(factual.token_ids),
            temperature=TEMPERATURE,
            reward=length,
        )

    assert all(found.first_parting is None for found in rewritten(author))
    others = rewritten(Writer(policy, "reference"))
    assert any(found.first_parting is not None for found in others)
    assert len({tuple(found.other.token_ids) for found in others}) > 1  # each on its own noise


def test_a_scratch_copy_has_weights_of_its_own_and_shares_w_inside(policy: Policy) -> None:
    copy = policy.scratch()
    ids = torch.tensor([[1, 40, 41]])
    with torch.no_grad():
        before = {name: policy.of(name)(input_ids=ids).logits for name in ("joint", "baseline")}
        for name, logits in before.items():
            assert torch.equal(copy.of(name)(input_ids=ids).logits, logits)
        for part in (copy.base, copy.baseline_base, copy.coordinator):
            for parameter in part.values():
                parameter.zero_()
        for name, logits in before.items():
            assert torch.equal(policy.of(name)(input_ids=ids).logits, logits)
            assert not copy.of(name)(input_ids=ids).logits.any()
    lora = dict(copy.baseline.named_modules())
    for name, module in copy.lora_layers():
        twin = lora[f"base_model.model.{name}"]
        assert twin.lora_A["default"].weight is module.lora_A["default"].weight
        assert copy.coordinator[f"{name}.lora_A"] is module.lora_A["default"].weight
    assert copy.reference is policy.reference

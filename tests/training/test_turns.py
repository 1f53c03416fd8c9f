"""Rollouts that an environment takes part in: who writes what, what is learned of it, replays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isnan
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

from tests.training.tiny import (
    ChanceTask,
    disturb,
    float64_everywhere,
    make_policy,
    same_bits,
    save_tiny_llama,
    small_config,
    to_float64,
)
from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions, Noise, pack, sample
from workbench.session import Session
from workbench.tasks.environment import (
    ENVIRONMENT,
    POLICY,
    Environment,
    Interactive,
    Reply,
    Span,
    spans,
)
from workbench.tasks.problem import Demonstration, Problem
from workbench.training.batches import RolloutBatch, Rollouts, opening, pack_demonstrations
from workbench.training.gradients import rl_pass, sft_pass
from workbench.training.methods import METHODS, make_method
from workbench.training.methods.actguide import plan_steps
from workbench.training.objectives import group_advantages
from workbench.training.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


class Echo:
    """Answers some letters with the number of the turn, three times in a completion."""

    ends = "aeiouAEIOUbcdghBCDGHtnrsTNRS"

    def reply(self, turns: Sequence[str]) -> Reply | None:
        asked = set(turns[-1]) & set(self.ends)
        return Reply(f"<{len(turns)}>") if asked and len(turns) <= 3 else None


class EchoTask(ChanceTask, Interactive):
    """A task whose environment an untrained model happens to ask."""

    def __init__(self) -> None:
        super().__init__(["xa<1>\nye<2>\nx", "e<1>\ny", "zz", "o<1>o<2>\nq"])
        self.shown = [replace(d, spans=tuple(spans(Echo(), d.solution))) for d in self.shown]
        self.train = [Problem(d.id, d.prompt, d.answer) for d in self.shown]

    def environment(self, prompt: str) -> Environment:
        return Echo()


def config(folder: Path, **changes: object) -> RunConfig:
    return small_config(folder, **{"max_new_tokens": 20, "temperature": 1.0, **changes})


def begin(c: RunConfig, task: ChanceTask | None = None) -> Trainer:
    policy = make_policy(c, baseline=make_method(c).baseline)
    disturb(policy.base, 0.05, seed=2)
    return Trainer(c, policy, task or EchoTask())


# --- drawing ------------------------------------------------------------------------------------


def drawn(policy: Policy, n: int = 24, **changes: object) -> Completions:
    settings = {"batch": 256, "environments": [Echo()] * n, "sequences": range(n), **changes}
    return sample(
        policy.model,
        policy.tokenizer,
        [[1, 40 + i % 3] * (1 + i % 2) for i in range(n)],
        noise=Noise(0, 1, "rollouts"),
        end_ids=[2],
        max_new_tokens=20,
        **settings,  # type: ignore[arg-type]
    )


def test_each_turn_is_what_the_policy_writes_on_its_noise_behind_all_before(folder: Path) -> None:
    """Token by token, each the argmax of log-probs and noise at its own position."""
    policy = make_policy(config(folder), baseline=False)
    done = drawn(policy)
    replied = [i for i, who in enumerate(done.writers) if ENVIRONMENT in who]
    assert len(replied) > 5 and any(row.count(ENVIRONMENT) > 3 for row in done.writers)
    for i, (prompt, ids, who) in enumerate(
        zip(done.prompt_ids, done.token_ids, done.writers, strict=True)
    ):
        rows = policy.model(torch.tensor([prompt + ids])).logits[0].detach().float()
        for t, token in enumerate(ids):
            logits = rows[len(prompt) - 1 + t]
            if who[t] == POLICY:
                noise = Noise(0, 1, "rollouts").at(torch.tensor([i]), t, len(logits))[0]
                assert int((logits + noise).argmax()) == token
                expected = float(logits.log_softmax(-1)[token])
                assert done.logprob[i][t] == pytest.approx(expected, abs=1e-4)
            else:
                assert done.logprob[i][t] == 0.0
        assert len(ids) <= 20 and done.finished[i] == (ids[-1] == 2)
        told = [Span(*each) for each in spans(Echo(), done.texts[i])]
        assert sum(len(s.text) for s in told if s.writer == ENVIRONMENT) == who.count(ENVIRONMENT)


def test_a_rollout_with_turns_does_not_depend_on_its_batch(folder: Path) -> None:
    policy = make_policy(config(folder), baseline=False)
    together = drawn(policy)
    assert drawn(policy, batch=5).token_ids == together.token_ids
    assert drawn(policy).logprob == together.logprob
    silent = drawn(policy, environments=None)
    for ids, who, alone in zip(together.token_ids, together.writers, silent.token_ids, strict=True):
        first = who.index(ENVIRONMENT) if ENVIRONMENT in who else len(ids)
        assert ids[:first] == alone[:first]


# --- learning -----------------------------------------------------------------------------------


def test_no_gradient_comes_from_what_the_environment_wrote(folder: Path) -> None:
    with float64_everywhere():
        c = config(folder, method="grpo", kl_coef=0.0)
        policy = make_policy(c, baseline=False)
        to_float64(policy)
        disturb(policy.base, 0.05, seed=2)
        prompts, tokens = [[1, 40]] * 3, [[5, 6, 7, 8, 2], [8, 9], [10, 11, 12]]
        writers = [
            [POLICY, ENVIRONMENT, ENVIRONMENT, POLICY, POLICY],
            [POLICY] * 2,
            [POLICY, POLICY, ENVIRONMENT],
        ]
        rewards = torch.tensor([[1.0, 0.0, 0.0]])
        batch = RolloutBatch(
            [Problem("p", "x", "")], Completions(prompts, tokens, [], [], []), rewards, rewards,
            group_advantages(rewards), pack(prompts, tokens, 0, writers=writers), None,
            Rollouts(writers=writers),
        )  # fmt: skip
        found = rl_pass(
            "rl", policy.model, policy.base, {}, batch, c.training, 1.0, None,
            objective_of=partial(make_method(c).rl_terms, c=c),
        )  # fmt: skip
        objective = torch.zeros(())
        for i, (ids, who) in enumerate(zip(tokens, writers, strict=True)):
            group = rewards[0].tolist()
            a = (group[i] - fmean(group)) / (stdev(group) + 1e-4)
            rows = policy.model(torch.tensor([prompts[i] + ids])).logits[0, 1:-1].log_softmax(-1)
            for t, token in enumerate(ids):
                if who[t] == POLICY:
                    objective = objective + a * (rows[t, token] - rows[t, token].detach()).exp()
        objective = objective / 7  # tokens of the policy
        expected = torch.autograd.grad(objective, list(policy.base.values()))
        for value, (name, gradient) in zip(expected, found.gradient.base.items(), strict=True):
            assert torch.allclose(gradient, value, rtol=1e-8, atol=1e-12), name
        assert batch.own_P == [0]


def test_sft_learns_the_policys_part_of_a_demonstration(folder: Path) -> None:
    with float64_everywhere():
        policy = make_policy(config(folder), baseline=False)
        to_float64(policy)
        shown = EchoTask().shown
        batch = pack_demonstrations(policy, shown)
        found, _ = sft_pass(policy, {}, batch.tokens, None, 4096)
        total, n = torch.zeros(()), 0
        for demo in shown:
            prompt, ids = policy.encode_prompt(demo.prompt), policy.encode_completion(demo.solution)
            rows = policy.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            given = "".join("x" * len(s.text) if s.writer == ENVIRONMENT else "." * len(s.text)
                            for s in demo.spans) or "." * len(demo.solution)  # fmt: skip
            for t, token in enumerate(ids):  # a token a character, and the end
                if t == len(given) or given[t] == ".":
                    total, n = total + rows.log_softmax(-1)[t, token], n + 1
        assert found.objective == pytest.approx(float(total.detach()) / n, rel=1e-9)
        expected = torch.autograd.grad(total / n, list(policy.base.values()))
        for value, (name, gradient) in zip(expected, found.gradient.base.items(), strict=True):
            assert torch.allclose(gradient, value, rtol=1e-8, atol=1e-12), name


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_through_the_environment_and_on_bit_identically(
    folder: Path, method: str
) -> None:
    c = config(folder, method=method, relift_buffer=2, shared_gain_every=1, cold_start_steps=1)
    going = begin(c)
    going.step(1)
    resumed = begin(c)
    adapter = going.policy.adapter_files()[0]
    baseline = going.policy.base_arrays("baseline")
    resumed.policy.load_arrays(going.policy.base_arrays("base"), baseline, adapter)
    resumed.load_optimizer_arrays(going.optimizer_arrays())
    record = going.step(2)
    again = resumed.step(2)
    assert [r.token_ids for r in record.rollouts] == [r.token_ids for r in again.rollouts]
    assert same_bits(going.policy.base, resumed.policy.base)
    rows = record.rollouts
    if method == "sft":
        assert not rows
        return
    assert any(ENVIRONMENT in row.written_by for row in rows)
    assert record.metrics["environment/replies"] > 0
    for row in rows:
        arrays_of_row = (row.logprob, row.entropy, row.reference_logprob, row.sampling_logprob)
        for values in arrays_of_row:
            assert len(values) == len(row.token_ids)
            for t, who in enumerate(row.written_by):
                assert who != ENVIRONMENT or values[t] == 0.0 or isnan(values[t])


# --- plans --------------------------------------------------------------------------------------


def test_a_plan_is_the_list_of_actions(folder: Path) -> None:
    policy = make_policy(config(folder), baseline=False)
    acts, plain = EchoTask().shown[0], Demonstration("d", "p", "one\ntwo\nthree", "3")
    assert plan_steps(acts, "prompt") == ["xa", "\nye"]
    assert plan_steps(acts, "answer") == ["xa<1>", "ye<2>"]
    assert plan_steps(plain, "prompt") == ["one", "two", "three"]
    assert plan_steps(plain, "answer") == ["one", "two"]
    ids, writers = opening(policy, acts, 1, "plan")
    assert policy.tokenizer.decode(ids) == "xa<1>\n"
    assert writers == ["plan"] * 2 + [ENVIRONMENT] * 3 + ["plan"]
    assert opening(policy, plain, 2, "hint")[1] == ["hint"] * 8


def test_guided_groups_say_who_wrote_what(folder: Path) -> None:
    class Hopeless(EchoTask):
        def reward(self, completion: str, problem: Problem) -> float:
            return float(completion.startswith(("xa<1>", "e<1>", "o<1>o<2>")))

    task = Hopeless()
    task.shown = [d for d in task.shown if d.spans]
    record = begin(config(folder, method="actguide"), task).step(1)
    guided = [row for row in record.rollouts if not isnan(row.plan_length)]
    assert guided
    for row in guided:
        demo = next(d for d in task.shown if d.id == row.prompt_id)
        line = demo.solution.splitlines()[0] + "\n"
        assert row.completion.startswith(line) and row.plan_length == 1
        opened = row.written_by[: len(line)]
        assert [w == ENVIRONMENT for w in opened] == [c in "<12>" for c in line]
        assert set(opened) == {"plan", ENVIRONMENT}


# --- looks --------------------------------------------------------------------------------------


def test_every_look_goes_through_the_tools_and_replays_are_bit_identical(tmp_path: Path) -> None:
    """On the pocket model, whose own way of working is a call of the calculator."""
    small = {
        "tools_terms": [2], "tools_prompts": 8, "tools_validation": 2, "tools_hard": 1,
        "tools_demonstrations": 8, "prompts_per_step": 2, "demonstrations_per_step": 2,
        "group_size": 3, "max_new_tokens": 24, "evaluation_max_new_tokens": 24,
        "paired_prompts": 2, "paired_rollouts": 2, "device": "cpu", "base_lr": 1e-6,
    }  # fmt: skip
    with Session(RunConfig.preset("tools", **small), tmp_path / "run") as session:
        record = session.step()
        session.step()
        for rows in (record.rollouts, session.record(2).rollouts):
            assert any(ENVIRONMENT in row.written_by for row in rows)
        assert {row.purpose for row in record.rollouts if row.written_by} == {"train", "paired"}
        assert session.replay(2).identical
        row = next(r for r in record.rollouts if r.purpose == "train" and r.written_by)
        terms = session.token_terms(1, row.sequence)
        assert all((t[0].value == 0.0) for t, who in zip(terms, row.written_by, strict=True)
                   if who == ENVIRONMENT)  # fmt: skip
        trained = [r for r in record.rollouts if r.purpose == "train"]
        total = sum(t[0].value for r in trained for t in session.token_terms(1, r.sequence))
        assert total == pytest.approx(-record.metrics["loss/rl"], abs=1e-6)
        told = [each for each in session.sample([row.prompt], rollouts=16) if each.written_by]
        assert told and all(len(each.written_by) == len(each.token_ids) for each in told)
        for found in session.coordinator_effect(row.prompt, rollouts=4):
            writers = found.other.written_by or [POLICY] * len(found.kl)
            zero = [kl == 0 for kl, who in zip(found.kl, writers, strict=True) if who != POLICY]
            assert all(zero)
        (now,) = session.counterfactual(1, row.sequence, snapshot_step=0)
        assert now.other.token_ids == row.token_ids and now.other.written_by == row.written_by
        (pasted,) = session.counterfactual(
            prompt=row.prompt, text=row.completion, finished=row.finished
        )
        assert pasted.factual.written_by == pasted.other.written_by == row.written_by
        assert pasted.other.token_ids == row.token_ids  # the same policy on noise that fits

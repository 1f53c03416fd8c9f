"""What a Session can be asked about its policy without changing it.

Each call posts a "look" to the worker: it is done at the next control point, also inside a step,
and is not recorded. All noise is keyed by what is asked, never drawn from a generator, so the step
after a look is bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isnan
from typing import Literal

from workbench.measuring import Measuring
from workbench.policy import PolicyName
from workbench.probes.coordinator import Against, draw_samples, effect
from workbench.probes.counterfactual import (
    Writer,
    counterfactuals,
    own_noise,
    pasted,
    recorded,
)
from workbench.probes.tokens import n_learned, terms_known, token_terms
from workbench.records import (
    CoordinatorEffect,
    Counterfactual,
    RolloutRow,
    Sample,
    TokenTerm,
)
from workbench.sampling import Noise
from workbench.store import Run
from workbench.tasks import environments
from workbench.tasks.environment import ENVIRONMENT, POLICY
from workbench.tasks.problem import Problem
from workbench.worker import SessionError


class Looking(Measuring):
    """The looks of a Session at single prompts and texts; they share its worker."""

    reader: Run

    def sample(
        self,
        prompts: str | Sequence[str],
        coordinator: float = 1.0,
        policy: PolicyName = "joint",
        rollouts: int = 1,
        greedy: bool = False,
        seed: int = 0,
        max_new_tokens: int | None = None,
    ) -> list[Sample]:
        """Complete each prompt `rollouts` times. Changes nothing in the run.

        coordinator: scale of w, 0 off, 1 as trained. Equal seeds give equal noise, whatever the
        scale or policy. Rewards are NaN unless the prompt is one of the task's.
        """
        engine = self._worker.engine

        def look() -> list[Sample]:
            self._check_policy(policy)
            return draw_samples(
                engine.policy,
                [prompts] if isinstance(prompts, str) else list(prompts),
                coordinator=coordinator,
                policy_name=policy,
                rollouts=rollouts,
                greedy=greedy,
                seed=seed,
                max_new_tokens=max_new_tokens or engine.config.sampling.max_new_tokens,
                temperature=engine.config.sampling.temperature,
                reward=self._reward,
                environments=partial(environments, engine.task),
            )

        return self._worker.post("sample", "look", look)

    def coordinator_effect(
        self,
        prompt: str,
        scales: Sequence[float] = (1.0,),
        answer: str | None = None,
        rollouts: int = 1,
        greedy: bool = False,
        seed: int = 0,
        against: Against = 0.0,
    ) -> list[CoordinatorEffect]:
        """The same prompt and noise with the coordinator at `against` and at each of `scales`.

        against: a scale, or "start": the policy that the run started from. One entry for each
        scale and rollout. Changes nothing in the run.
        """
        engine = self._worker.engine

        def reward(prompt: str, completion: str) -> float:
            if answer is None:
                return self._reward(prompt, completion)
            return engine.task.reward(completion, Problem("typed", prompt, answer))

        def look() -> list[CoordinatorEffect]:
            if against == "start":
                self._check_policy("reference")
            return effect(
                engine.policy,
                prompt,
                scales=list(scales),
                against=against,
                rollouts=rollouts,
                greedy=greedy,
                seed=seed,
                max_new_tokens=engine.config.sampling.max_new_tokens,
                temperature=engine.config.sampling.temperature,
                reward=reward,
                environments=partial(environments, engine.task),
            )

        return self._worker.post("coordinator_effect", "look", look)

    def counterfactual(
        self,
        step: int | None = None,
        sequence: int | None = None,
        *,
        purpose: Literal["train", "paired"] = "train",
        prompt: str | None = None,
        text: str | None = None,
        answer: str | None = None,
        finished: bool = True,
        written_by: PolicyName = "joint",
        policy: PolicyName = "joint",
        coordinator: float = 1.0,
        snapshot_step: int | None = None,
        rollouts: int = 1,
        seed: int = 0,
    ) -> list[Counterfactual]:
        """What another policy makes of a text, and would have written on the same noise.

        The text is a recorded rollout, by `step` and `sequence` (of `purpose`; `written_by` tells
        paired rollouts apart), on its own noise; or any `text` behind a `prompt`, taken to be
        written by `written_by` as it is now, on `rollouts` draws of noise that fit it (`finished`:
        it ended by itself). The other policy is `policy` with the coordinator at scale
        `coordinator`, as it is now or as in the snapshot of `snapshot_step`. One entry a rollout.

        Changes nothing in the run. Raises SessionError, and RunFolderError where there is no such
        step or snapshot.
        """
        engine = self._worker.engine
        temperature = engine.config.sampling.temperature
        longest = engine.config.sampling.max_new_tokens

        def reward(asked: str, completion: str) -> float:
            if answer is None:
                return self._reward(asked, completion)
            return engine.task.reward(completion, Problem("typed", asked, answer))

        def look() -> list[Counterfactual]:
            self._check_policy(policy)
            self._check_policy(written_by)
            weights = engine.policy if snapshot_step is None else engine.policy_at(snapshot_step)
            other = Writer(weights, policy, coordinator, snapshot_step)
            if rollouts < 1:
                raise SessionError(f"counterfactual: rollouts must be at least 1 (got {rollouts})")
            if step is not None and sequence is not None and prompt is None and text is None:
                if rollouts > 1:
                    raise SessionError(
                        "counterfactual: a rollout's own noise gives one completion, "
                        f"not {rollouts}"
                    )
                row = self._recorded(step, sequence, purpose, written_by)
                asked_for = Problem(row.prompt_id, row.prompt, row.answer)

                def own_reward(asked: str, completion: str) -> float:
                    found = reward(
                        asked, completion
                    )  # NaN: a demonstration's prompt, not a split's
                    return engine.task.reward(completion, asked_for) if isnan(found) else found

                return counterfactuals(
                    recorded(row),
                    other,
                    own_noise(row, engine.config.seed),
                    "own",
                    sequences=[row.sequence],
                    max_new_tokens=longest,
                    temperature=temperature,
                    reward=own_reward,
                    environments=partial(environments, engine.task),
                )
            if prompt is None or text is None or step is not None or sequence is not None:
                raise SessionError("counterfactual: give step and sequence, or prompt and text")
            if not text and not finished:
                raise SessionError("counterfactual: an unfinished text must not be empty")
            writer = Writer(engine.policy, written_by)
            factual = pasted(
                writer,
                prompt,
                text,
                finished=finished,
                temperature=temperature,
                reward=reward,
                environments=partial(environments, engine.task),
            )
            prior = Noise(seed, 0, "hindsight")
            noise = writer.hindsight(factual, prior, rollouts, temperature)
            return counterfactuals(
                factual,
                other,
                noise,
                "hindsight",
                sequences=range(rollouts),
                max_new_tokens=max(longest, len(factual.token_ids)),
                temperature=temperature,
                reward=reward,
                environments=partial(environments, engine.task),
            )

        return self._worker.post("counterfactual", "look", look)

    def token_terms(self, step: int, sequence: int) -> list[list[TokenTerm]]:
        """For each token of a training rollout, what it added to each RL loss, and why.

        Read from the record alone. Raises RunFolderError, SessionError where there is no such one.
        """
        run = self.reader.config_at(step)
        if not terms_known(run):
            raise SessionError(
                f"token_terms: written out for the objective of GRPO; method {run.method!r} with "
                f"rl_loss {run.training.rl_loss!r} has another"
            )
        config = run.training
        rows = [row for row in self.reader.record(step).rollouts if row.purpose == "train"]
        n_tokens = n_learned(rows)
        for row in rows:
            if row.sequence == sequence:
                positions = range(len(row.token_ids))
                return [token_terms(row, position, config, n_tokens) for position in positions]
        raise SessionError(f"token_terms: step {step} has no train rollout {sequence}")

    def _recorded(
        self, step: int, sequence: int, purpose: str, written_by: PolicyName
    ) -> RolloutRow:
        """A rollout whose noise this run can make again."""
        forked = int(self.reader.meta.get("forked_from", {}).get("step", 0))
        if step <= forked:
            raise SessionError(
                f"counterfactual: step {step} was drawn by the run that this one was forked from; "
                "ask that run, or give prompt and text"
            )
        for row in self.reader.record(step).rollouts:
            if (row.sequence, row.purpose, row.policy) == (sequence, purpose, written_by):
                if set(row.written_by) - {POLICY, ENVIRONMENT} or not isnan(row.plan_length):
                    raise SessionError(
                        f"counterfactual: rollout {sequence} of step {step} had help, so its noise "
                        "says nothing; give prompt and text"
                    )
                return row
        raise SessionError(
            f"counterfactual: step {step} has no {purpose} rollout {sequence} of {written_by}"
        )

    def _reward(self, prompt: str, completion: str) -> float:
        for problem in self._all_problems():
            if problem.prompt == prompt:
                return self._worker.engine.task.reward(completion, problem)
        return float("nan")

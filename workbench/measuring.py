"""What a Session can measure on a set of problems without changing its run.

Looks, as in looking.py: done at the next control point, not recorded, all noise keyed by what is
asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import pandas as pd

from workbench.policy import PolicyName
from workbench.probes.ablation import coordinator_ablation
from workbench.probes.agreement import answer_rows
from workbench.probes.dose import dose_response
from workbench.probes.evaluation import greedy_accuracy
from workbench.probes.gain import draw_paired
from workbench.probes.ghost import skipped_weights
from workbench.records import AblationRow, AnswerRow, DoseRow, GainRow
from workbench.sampling import Noise, pack
from workbench.tasks.problem import Problem, Split
from workbench.training.measure import probe_set
from workbench.worker import SessionError, Worker

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
"""Scales of a dose–response curve, unless others are asked for."""


class Measuring:
    """The looks of a Session that are about many problems; they share its worker."""

    _worker: Worker

    def problems(self, split: Split = "train") -> list[Problem]:
        """The problems of a split. Raises SessionError where there is no such split."""
        if split not in get_args(Split):
            raise SessionError(f"no split {split!r}; there are {', '.join(get_args(Split))}")
        return list(self._worker.engine.task.problems(split))

    def dose_response(
        self,
        scales: Sequence[float] = SCALES,
        prompt_ids: Sequence[str] | None = None,
        n: int | None = None,
        rollouts: int = 4,
        seed: int = 0,
    ) -> list[DoseRow]:
        """Reward as a function of the coordinator's scale, with paired differences against off.

        On the probe set, its first `n`, or the problems of `prompt_ids`; each is drawn `rollouts`
        times at every scale, and by the policy the run started from, on the same noise. For
        `plots.dose_response`. Changes nothing in the run. Raises SessionError.
        """
        engine = self._worker.engine

        def look() -> list[DoseRow]:
            return dose_response(
                engine.policy,
                engine.task,
                self._asked("dose_response", prompt_ids, n, rollouts),
                list(scales),
                rollouts=rollouts,
                noise=Noise(seed, 0, "dose"),
                max_new_tokens=engine.config.sampling.max_new_tokens,
                temperature=engine.config.sampling.temperature,
                batch=engine.config.sampling.sampling_batch,
            )

        return self._worker.post("dose_response", "look", look)

    def coordinator_ablation(
        self,
        prompt_ids: Sequence[str] | None = None,
        n: int | None = None,
        rollouts: int = 4,
        seed: int = 0,
    ) -> list[AblationRow]:
        """Reward and distributions with one layer's coordinator switched off at a time.

        Problems and noise as in `dose_response`; for `plots.coordinator_ablation`. Changes nothing
        in the run. Raises SessionError.
        """
        engine = self._worker.engine

        def look() -> list[AblationRow]:
            return coordinator_ablation(
                engine.policy,
                engine.task,
                self._asked("coordinator_ablation", prompt_ids, n, rollouts),
                rollouts=rollouts,
                noise=Noise(seed, 0, "dose"),
                max_new_tokens=engine.config.sampling.max_new_tokens,
                temperature=engine.config.sampling.temperature,
                max_tokens=engine.config.training.micro_batch_tokens,
                batch=engine.config.sampling.sampling_batch,
            )

        return self._worker.post("coordinator_ablation", "look", look)

    def paired_gain(
        self, prompt_ids: Sequence[str] | None = None, rollouts: int | None = None
    ) -> list[GainRow]:
        """Cooperative gain now, from paired rollouts; by default on the probe set.

        Raises SessionError where the method keeps no RL-only baseline.
        """
        engine = self._worker.engine

        def look() -> list[GainRow]:
            self._check_policy("baseline")
            config = engine.config
            asked = config.probes.paired_rollouts if rollouts is None else rollouts
            rows, _ = draw_paired(
                engine.policy,
                self._asked("paired_gain", prompt_ids, None, asked),
                engine.task,
                Noise(config.seed, engine.step_number, "paired on demand"),
                asked,
                config.sampling.max_new_tokens,
                config.sampling.temperature,
                config.sampling.sampling_batch,
            )
            return rows

        return self._worker.post("paired_gain", "look", look)

    def evaluate(
        self, split: Split = "validation", policy: PolicyName = "joint", n: int | None = None
    ) -> float:
        """Greedy accuracy on the first `n` problems of a split (default: all)."""
        engine = self._worker.engine

        def look() -> float:
            self._check_policy(policy)
            problems = self.problems(split)[:n]
            if not problems:
                raise SessionError(f"evaluate: the task has no problems in split {split!r}")
            return greedy_accuracy(engine.policy, policy, engine.task, problems, engine.config)

        return self._worker.post("evaluate", "look", look)

    def check_answers(
        self,
        demonstration_ids: Sequence[str] | None = None,
        rollouts: int = 8,
        policy: PolicyName | None = None,
        seed: int = 0,
    ) -> list[AnswerRow]:
        """Do a policy's own rollouts come to the answers that the demonstrations show?

        All demonstrations, or those of `demonstration_ids`, `rollouts` completions of each one's
        prompt; `Session.ledger(answers)` ranks by it. policy: None: the RL-only baseline, which saw
        no demonstration, where the run has one, else the joint policy. Changes nothing in the run.
        Raises SessionError.
        """
        engine = self._worker.engine

        def look() -> list[AnswerRow]:
            judge = policy or ("baseline" if engine.policy.baseline is not None else "joint")
            self._check_policy(judge)
            if rollouts < 1:
                raise SessionError(f"check_answers: rollouts must be at least 1 (got {rollouts})")
            known = {shown.id: shown for shown in engine.task.demonstrations()}
            ids = list(known) if demonstration_ids is None else list(demonstration_ids)
            for asked in ids:
                if asked not in known:
                    raise SessionError(f"check_answers: the task has no demonstration {asked!r}")
            return answer_rows(
                engine.policy,
                judge,
                engine.task,
                [known[asked] for asked in ids],
                rollouts=rollouts,
                noise=Noise(seed, 0, "answers"),
                max_new_tokens=engine.config.sampling.max_new_tokens,
                temperature=engine.config.sampling.temperature,
                batch=engine.config.sampling.sampling_batch,
            )

        return self._worker.post("check_answers", "look", look)

    def skipped_weights(self) -> pd.DataFrame:
        """Weights that the numbers per demonstration and per rollout leave out; no rows: none.

        Columns: parameter, numbers (how many it holds), share (of all trained weights).
        """
        engine = self._worker.engine

        def look() -> pd.DataFrame:
            policy = engine.policy
            trained = {**policy.base, **policy.coordinator}
            shown = [(d.prompt, d.solution) for d in engine.task.demonstrations()[:2]]
            shown = shown or [(p.prompt, p.answer) for p in self.problems()[:2]]
            tokens = pack(
                [policy.encode_prompt(prompt) for prompt, _ in shown],
                [policy.encode_completion(text) for _, text in shown],
                policy.pad_id,
                policy.device,
            )
            found = skipped_weights(policy.of("joint"), trained, tokens)
            rows = [(name, trained[name].numel(), share) for name, share in found.items()]
            return pd.DataFrame(rows, columns=["parameter", "numbers", "share"])

        return self._worker.post("skipped_weights", "look", look)

    def _asked(
        self, name: str, prompt_ids: Sequence[str] | None, n: int | None, rollouts: int
    ) -> list[Problem]:
        """The problems a paired look is about."""
        if rollouts < 2:
            raise SessionError(f"{name}: rollouts must be at least 2 (got {rollouts})")
        if n is not None and n < 1:
            raise SessionError(f"{name}: n must be at least 1 (got {n})")
        engine = self._worker.engine
        if prompt_ids is None:
            return probe_set(engine.task, engine.config, n)
        known = {problem.id: problem for problem in self._all_problems()}
        for prompt_id in prompt_ids:
            if prompt_id not in known:
                raise SessionError(f"{name}: the task has no problem {prompt_id!r}")
        return [known[prompt_id] for prompt_id in prompt_ids[:n]]

    def _check_policy(self, name: PolicyName) -> None:
        try:
            self._worker.engine.policy.of(name)
        except (KeyError, ValueError):
            raise SessionError(
                f"policy: method {self._worker.engine.config.method!r} keeps no {name!r} policy"
            ) from None

    def _all_problems(self) -> Iterator[Problem]:
        for split in get_args(Split):
            yield from self._worker.engine.task.problems(split)

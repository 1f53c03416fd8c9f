"""ActGuide-RL: plans for the prompts that nothing else solves (arXiv 2605.12004).

    8 unguided rollouts of each prompt. A group with no success is hard: search for the shortest
    opening of the plan with which 2 rollouts have any success (binary search, at most 5 trials);
    8 rollouts guided by it replace the group.

    J = 1/n Σ_t [ min(ρA, clip(ρ, 0.8, 1.2)A), where A < 0 at least 3·A ] − kl_coef·k3
    ρ = π_θ(y_t | UNGUIDED prompt) / π_old(y_t | prompt as it was sampled)

The plan is the demonstration's steps, one a line. `guide_in` says where it stands [infer]:
"answer": it opens the answer, so y contains it, given with behaviour probability 1; for models that
only answer. "prompt": it is written into the prompt, and y is what the model makes of it; for
models that follow instructions. In "answer" all steps may be given but the last, the answer itself.
Where no plan of the search helped, the unguided group stays. KL is on the unguided prompt.
Published: lr 1e-6, n = 8, KL 1e-3, clip 0.2, dual clip 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions
from workbench.tasks.problem import Demonstration
from workbench.training.batches import POLICY, DemonstrationBatch, RolloutBatch, Rollouts
from workbench.training.methods.method import Method
from workbench.training.methods.uft import opening
from workbench.training.objectives import RLTerms, RolloutTokens, grpo_terms
from workbench.training.scene import Scene


@dataclass(frozen=True)
class _Draft:
    """One rollout, guided or not, as the loss wants it: behind the unguided prompt."""

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finished: bool
    logprob: list[float]
    behaviour: Sequence[float] = ()
    n_plan: int = 0
    """Tokens of the plan that open the answer."""
    plan_length: float = nan


PLAN = "\nPlan:\n{plan}\n"
"""How a plan is written into the prompt."""


def shortest(n_steps: int, max_trials: int, helps: Callable[[int, int], bool]) -> int | None:
    """The fewest plan steps of 1 … n_steps that help, by binary search; None: none was found.

    helps(n, trial): whether n steps brought any success. Longer plans are taken to help where
    shorter ones do. At most `max_trials` trials; then the shortest that has helped so far.
    """
    low, high, found = 1, n_steps, None
    for trial in range(max_trials):
        if low > high:
            break
        middle = (low + high) // 2
        if helps(middle, trial):
            found, high = middle, middle - 1
        else:
            low = middle + 1
    return found


def _guided(
    scene: Scene, p: int, n_steps: int, streams: Sequence[int], purpose: str
) -> list[_Draft]:
    """A rollout of prompt p for each noise stream, guided by the first steps of its plan."""
    problem, solution = scene.problems_P[p], scene.shown_P[p].solution
    plain = scene.prompt_ids(p)
    if scene.config.training.guide_in == "prompt":
        plan = "\n".join(solution.splitlines()[:n_steps])
        seen = scene.policy.encode_prompt(problem.prompt + PLAN.format(plan=plan))
        done = scene.sample([seen] * len(streams), streams, purpose)
        return [
            _Draft(plain, ids, text, finished, logprob, logprob, 0, float(n_steps))
            for ids, text, finished, logprob in zip(
                done.token_ids, done.texts, done.finished, done.logprob, strict=True
            )
        ]
    plan_ids = opening(scene.policy, solution, n_steps)
    n = len(plan_ids)
    done = scene.sample([[*plain, *plan_ids]] * len(streams), streams, purpose)
    return [
        _Draft(
            plain,
            [*plan_ids, *ids],
            scene.text([*plan_ids, *ids]),
            finished,
            [0.0] * n + logprob,
            [0.0] * n + [nan] * len(ids),
            n,
            float(n_steps),
        )
        for ids, finished, logprob in zip(done.token_ids, done.finished, done.logprob, strict=True)
    ]


class ActGuide(Method):
    """GRPO with guided groups."""

    name = "actguide"
    demonstrations = True
    paired = True

    def roll_out(self, scene: Scene) -> tuple[Completions, Rollouts]:
        """Unguided groups; guided ones in place of those without success."""
        c = scene.config
        size = c.training.group_size
        done = scene.plain(size)
        drafts = [
            _Draft(prompt, ids, text, finished, logprob)
            for prompt, ids, text, finished, logprob in zip(
                done.prompt_ids,
                done.token_ids,
                done.texts,
                done.finished,
                done.logprob,
                strict=True,
            )
        ]
        hard = guided = 0
        for p, problem in enumerate(scene.problems_P):
            group = slice(p * size, (p + 1) * size)
            if any(scene.task.reward(d.text, problem) > 0 for d in drafts[group]):
                continue
            hard += 1
            length = self._search(scene, p)
            if length is not None:
                guided += 1
                drafts[group] = _guided(scene, p, length, range(p * size, (p + 1) * size), "guided")
        n = len(scene.problems_P)
        return (
            Completions(
                [d.prompt_ids for d in drafts],
                [d.token_ids for d in drafts],
                [d.logprob for d in drafts],
                [d.finished for d in drafts],
                [d.text for d in drafts],
            ),
            Rollouts(
                writers=[
                    ["plan"] * d.n_plan + [POLICY] * (len(d.token_ids) - d.n_plan) for d in drafts
                ],
                behaviour=[d.behaviour or [nan] * len(d.token_ids) for d in drafts],
                plan_length=[d.plan_length for d in drafts],
                metrics={"guide/hard": hard / n, "guide/guided": guided / n},
            ),
        )

    def _search(self, scene: Scene, p: int) -> int | None:
        t = scene.config.training
        steps = len(scene.shown_P[p].solution.splitlines())
        streams = range(p * t.guide_probe_rollouts, (p + 1) * t.guide_probe_rollouts)

        def helps(length: int, trial: int) -> bool:
            drawn = _guided(scene, p, length, streams, f"guide trial {trial}")
            return any(scene.task.reward(d.text, scene.problems_P[p]) > 0 for d in drawn)

        last = steps - 1 if t.guide_in == "answer" else steps
        return shortest(last, t.guide_probes, helps)

    def learn_from(
        self,
        policy: Policy,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        step: int,
        c: RunConfig,
    ) -> DemonstrationBatch | None:
        """Plans guide; they are not learned by SFT."""
        return None

    def judge(self, batch: RolloutBatch, c: RunConfig) -> RolloutBatch:
        """GRPO's advantages; say how guided groups did."""
        batch = super().judge(batch, c)
        lengths = batch.rollouts.plan_length[:: batch.group_size]
        guided = [p for p, length in enumerate(lengths) if length == length]
        if not guided:
            return batch
        found = {
            "guide/plan_length": sum(lengths[p] for p in guided) / len(guided),
            "guide/reward": float(batch.correct_PG[guided].mean()),
        }
        rollouts = replace(batch.rollouts, metrics={**batch.rollouts.metrics, **found})
        return replace(batch, rollouts=rollouts)

    def rl_terms(self, t: RolloutTokens, c: RunConfig) -> RLTerms:
        """GRPO with the dual clip."""
        return grpo_terms(
            t.logprobs_NC,
            t.old_logprobs_NC,
            t.advantages_N,
            t.mask_NC,
            c.training.clip_range,
            t.reference_logprobs_NC,
            c.training.kl_coef,
            dual_clip=c.training.guide_dual_clip,
        )

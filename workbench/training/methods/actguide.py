"""ActGuide-RL: plans for the prompts that nothing else solves (arXiv 2605.12004).

    8 unguided rollouts of each prompt. A group with no success is hard: search for the shortest
    opening of the plan with which 2 rollouts have any success (binary search, at most 5 trials);
    8 rollouts guided by it replace the group.

    J = 1/n Σ_t [ min(ρA, clip(ρ, 0.8, 1.2)A), where A < 0 at least 3·A ] − kl_coef·k3
    ρ = π_θ(y_t | UNGUIDED prompt) / π_old(y_t | prompt as it was sampled)

The plan is the demonstration's steps, one a line; on a task with tools it is the list of its
actions. `guide_in` says where it stands [infer]: "answer": it opens the answer, so y contains it,
given with behaviour probability 1; for models that only answer. "prompt": it is written into the
prompt, and y is what the model makes of it; for models that follow instructions. In "answer" all
steps may be given but the last, the answer itself; what a given action brought about stands behind
it, and is learned no more than what the policy's own actions bring about.
Where no plan of the search helped, the unguided group stays, and where the trials ran out, the
shortest that did help is taken [infer]; the released code takes the length its search came to.
KL is on the unguided prompt.
Published: lr 1e-6, n = 8, KL 1e-3, clip 0.2, dual clip 3.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import nan

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions
from workbench.tasks.environment import ENVIRONMENT, POLICY
from workbench.tasks.problem import Demonstration
from workbench.training.batches import DemonstrationBatch, RolloutBatch, Rollouts, opening
from workbench.training.methods.method import Method
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
    writers: list[str]
    behaviour: Sequence[float] = ()
    plan_length: float = nan


PLAN = "\nPlan:\n{plan}\n"
"""How a plan is written into the prompt."""


def shortest(n_steps: int, max_trials: int) -> Generator[int, bool, int | None]:
    """The fewest plan steps of 1 … n_steps that help, by binary search; None: none was found.

    Yields a number of steps to try, and is sent whether they brought any success. Longer plans are
    taken to help where shorter ones do. At most `max_trials` trials; then the shortest that has
    helped so far.
    """
    low, high, found = 1, n_steps, None
    for _ in range(max_trials):
        if low > high:
            break
        middle = (low + high) // 2
        if (yield middle):
            found, high = middle, middle - 1
        else:
            low = middle + 1
    return found


def plan_steps(demonstration: Demonstration, guide_in: str) -> list[str]:
    """A demonstration's plan: the lines of its solution, or its actions, where it acts.

    An action stands for the line it begins; what it brought about is not part of the plan in a
    prompt, and is in an answer, as it would be there. The answer itself is no action.
    """
    lines = demonstration.solution.splitlines()
    if not demonstration.spans:
        return lines[:-1] if guide_in == "answer" else lines
    acted = [
        said.text
        for said, after in zip(demonstration.spans, demonstration.spans[1:], strict=False)
        if after.writer == ENVIRONMENT
    ]
    return acted if guide_in == "prompt" else lines[: len(acted)]


def _drafts(done: Completions) -> list[_Draft]:
    """Completions of the plain prompts."""
    writers = done.writers or [[POLICY] * len(ids) for ids in done.token_ids]
    return [
        _Draft(*each)
        for each in zip(
            done.prompt_ids,
            done.token_ids,
            done.texts,
            done.finished,
            done.logprob,
            writers,
            strict=True,
        )
    ]


def _guided(
    scene: Scene, steps: Mapping[int, int], n_each: int, purpose: str
) -> dict[int, list[_Draft]]:
    """`n_each` rollouts of some prompts, each guided by the first steps[p] steps of its plan."""
    owners = [p for p in steps for _ in range(n_each)]
    streams = [p * n_each + i for p in steps for i in range(n_each)]
    guided: dict[int, list[_Draft]] = {p: [] for p in steps}
    if scene.config.training.guide_in == "prompt":
        seen = {p: _with_plan(scene, p, n) for p, n in steps.items()}
        done = scene.sample(owners, streams, purpose, prompt_ids=[seen[p] for p in owners])
        for p, d in zip(owners, _drafts(done), strict=True):
            plain, length = scene.prompt_ids(p), float(steps[p])
            guided[p].append(replace(d, prompt_ids=plain, behaviour=d.logprob, plan_length=length))
        return guided
    plans = {p: opening(scene.policy, scene.shown_P[p], n, "plan") for p, n in steps.items()}
    done = scene.sample(owners, streams, purpose, given_ids=[plans[p][0] for p in owners])
    for p, d in zip(owners, _drafts(done), strict=True):
        plan_ids, writers = plans[p]
        n = len(plan_ids)
        guided[p].append(
            _Draft(
                scene.prompt_ids(p),
                [*plan_ids, *d.token_ids],
                scene.text([*plan_ids, *d.token_ids]),
                d.finished,
                [0.0] * n + d.logprob,
                [*writers, *d.writers],
                [0.0] * n + [nan] * len(d.token_ids),
                float(steps[p]),
            )
        )
    return guided


def _with_plan(scene: Scene, p: int, n_steps: int) -> list[int]:
    """Prompt p with the first steps of its plan written into it."""
    plan = "\n".join(plan_steps(scene.shown_P[p], "prompt")[:n_steps])
    return scene.policy.encode_prompt(scene.problems_P[p].prompt + PLAN.format(plan=plan))


def _solved(scene: Scene, p: int, drafts: Sequence[_Draft]) -> bool:
    return any(scene.task.reward(d.text, scene.problems_P[p]) > 0 for d in drafts)


def _search(scene: Scene, hard: Sequence[int]) -> dict[int, int]:
    """The shortest plan that helps of each of some prompts, where one does; all side by side."""
    t = scene.config.training
    found: dict[int, int] = {}
    searches = {
        p: shortest(len(plan_steps(scene.shown_P[p], t.guide_in)), t.guide_probes) for p in hard
    }
    answers: dict[int, bool | None] = dict.fromkeys(hard)  # None: not begun
    for trial in count():
        steps: dict[int, int] = {}
        for p, answer in answers.items():
            try:
                steps[p] = next(searches[p]) if answer is None else searches[p].send(answer)
            except StopIteration as ended:
                if ended.value is not None:
                    found[p] = ended.value
        if not steps:
            break
        drawn = _guided(scene, steps, t.guide_probe_rollouts, f"guide trial {trial}")
        answers = {p: _solved(scene, p, drawn[p]) for p in steps}
    return dict(sorted(found.items()))


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
        drafts = _drafts(done)
        groups = [drafts[i : i + size] for i in range(0, len(drafts), size)]
        hard = [p for p, group in enumerate(groups) if not _solved(scene, p, group)]
        found = _search(scene, hard)
        if found:
            for p, group in _guided(scene, found, size, "guided").items():
                drafts[p * size : (p + 1) * size] = group
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
                writers=[d.writers for d in drafts],
                behaviour=[d.behaviour or [nan] * len(d.token_ids) for d in drafts],
                plan_length=[d.plan_length for d in drafts],
                metrics={"guide/hard": len(hard) / n, "guide/guided": len(found) / n},
            ),
        )

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

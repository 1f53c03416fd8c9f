"""Do a policy's own rollouts come to the answer that a demonstration shows?

K rollouts on the prompt of demonstration j vote, each with the answer extracted from it. With n_a
the votes for answer a, and a_j the answer extracted from the demonstration's own solution,

    disagreement_j = ( max over a ≠ a_j of n_a − n_(a_j) ) / K        in [−1, 1]

1: all rollouts agree on another answer. −1: all come to its own. Where the policy is lost its
rollouts scatter, and the value stays near 0: no evidence either way. What the right answer is, is
not used, and neither is how the solution is written, which the loss and the gradients mostly see.

The RL-only baseline is the better judge: it saw no demonstration, so what is wrong with them is no
habit of its own, and where they are written strangely it does not begin to write so itself.

Blind to a wrong way to the right answer, to a demonstration without an answer, and to mistakes that
the policy makes too. It costs K rollouts a demonstration, so it is asked for and on no schedule.

Sources: votes over one's own samples are Wang et al., "Self-consistency improves chain of thought
reasoning" (arXiv 2203.11171); finding wrong labels where a model's predictions contradict them is
Northcutt, Jiang, Chuang, "Confident learning" (arXiv 1911.00068). [for demonstrations: ours]
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from workbench.policy import Policy, PolicyName
from workbench.probes.drawing import complete_each
from workbench.records import AnswerRow
from workbench.sampling import Noise
from workbench.tasks.problem import Demonstration, Task
from workbench.tasks.rewards import same_answer


def answer_row(
    demonstration_id: str, own: str | None, answers_K: Sequence[str | None]
) -> AnswerRow:
    """The vote of K rollouts on one demonstration.

    own: the answer its solution shows; None where it shows none. A rollout without an answer (None)
    votes for nothing, and counts in K.
    """
    k = len(answers_K)
    agree = sum(own is not None and same_answer(found, own) for found in answers_K)
    votes: dict[str, int] = {}
    for found in answers_K:
        if found is None or (own is not None and same_answer(found, own)):
            continue
        alike = next((known for known in votes if same_answer(found, known)), found)
        votes[alike] = votes.get(alike, 0) + 1
    other = max(votes, key=votes.__getitem__, default="")
    most = votes.get(other, 0)
    return AnswerRow(
        demonstration_id=demonstration_id,
        answer=own or "",
        agree=agree / k,
        other_answer=other,
        other=most / k,
        disagreement=nan if own is None else (most - agree) / k,
        n_rollouts=k,
    )


def answer_rows(
    policy: Policy,
    name: PolicyName,
    task: Task,
    demonstrations: Sequence[Demonstration],
    *,
    rollouts: int,
    noise: Noise,
    max_new_tokens: int,
    temperature: float,
    batch: int = 256,
) -> list[AnswerRow]:
    """Draw K = `rollouts` completions of each demonstration's prompt and count their answers."""
    done = complete_each(
        policy,
        name,
        task,
        [demonstration.prompt for demonstration in demonstrations],
        rollouts=rollouts,
        noise=noise,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch=batch,
    )
    answers = [task.extract(text) for text in done.texts]
    return [
        answer_row(d.id, task.extract(d.solution), answers[i * rollouts : (i + 1) * rollouts])
        for i, d in enumerate(demonstrations)
    ]

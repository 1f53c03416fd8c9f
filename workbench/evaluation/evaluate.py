"""Draw and score completions of every policy on every set, and say what they are worth.

Greedy completions give pass@1; `samples` of them at a temperature give avg@k and the unbiased
pass@k. All policies answer the same problems, on the same noise (common random numbers), so that
differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from workbench.evaluation.statistics import bootstrap, compare, pass_at_k
from workbench.evaluation.subjects import Subject
from workbench.sampling import Noise, sample
from workbench.tasks import Problem, environments
from workbench.tasks.sets import RIGHT, EvaluationSet


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; frames with a row a completion, a number, a comparison."""

    completions: pd.DataFrame
    """set, policy, problem_id, prompt, completion, answer, extracted, reward, correct, sample (−1:
    greedy, else its number), finished, n_tokens, reward_error."""
    scores: pd.DataFrame
    """set, policy, metric ('pass@1 greedy', 'avg@8', 'pass@8', …), value, low, high, n_problems."""
    comparisons: pd.DataFrame
    """set, metric, first, second, difference (first − second), low, high, p_value, test."""

    @classmethod
    def nothing(cls) -> Evaluation:
        """An evaluation without sets."""
        return cls(pd.DataFrame(), pd.DataFrame(), pd.DataFrame())


def evaluate(
    subject: Subject,
    sets: Sequence[EvaluationSet],
    *,
    samples: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Evaluate each policy of `subject` on each set; `samples` a problem beside the greedy one."""
    rows: list[dict[str, object]] = []
    each = 1 + samples
    total = each * len(subject.names) * sum(len(s.problems) for s in sets)
    with tqdm(total=total, unit="completion", disable=not progress, dynamic_ncols=True) as bar:
        for chosen in sets:
            for name in subject.names:
                bar.set_description(f"{chosen.name}, {name}")
                rows += _greedy(subject, name, chosen, max_new_tokens, bar)
                if samples:
                    noise = Noise(seed, 0, f"evaluation/{chosen.name}")
                    rows += _sampled(
                        subject, name, chosen, samples, noise, temperature, max_new_tokens, bar
                    )
    completions = pd.DataFrame(rows)
    return Evaluation(
        completions, score_frame(completions), comparison_frame(completions, subject.names)
    )


def _greedy(
    subject: Subject, name: str, chosen: EvaluationSet, longest: int, bar: tqdm[None]
) -> list[dict[str, object]]:
    owners = [(problem, -1) for problem in chosen.problems]
    return _draw(subject, name, chosen, owners, None, 1.0, longest, bar)


def _sampled(
    subject: Subject,
    name: str,
    chosen: EvaluationSet,
    samples: int,
    noise: Noise,
    temperature: float,
    longest: int,
    bar: tqdm[None],
) -> list[dict[str, object]]:
    owners = [(problem, i) for problem in chosen.problems for i in range(samples)]
    return _draw(subject, name, chosen, owners, noise, temperature, longest, bar)


def _draw(
    subject: Subject,
    name: str,
    chosen: EvaluationSet,
    owners: Sequence[tuple[Problem, int]],
    noise: Noise | None,
    temperature: float,
    longest: int,
    bar: tqdm[None],
) -> list[dict[str, object]]:
    """One completion for each owner, in batches; `noise=None` decodes greedily."""
    policy, rows = subject.policy, []
    batch = subject.config.sampling.sampling_batch
    for at in range(0, len(owners), batch):
        part = owners[at : at + batch]
        with subject.using(name) as which:
            done = sample(
                policy.of(which),
                policy.tokenizer,
                [policy.encode_prompt(problem.prompt) for problem, _ in part],
                noise=noise,
                sequences=range(at, at + len(part)),
                end_ids=policy.end_ids,
                max_new_tokens=longest,
                temperature=temperature,
                batch=batch,
                environments=environments(chosen.task, [problem.prompt for problem, _ in part]),
            )
        for i, (problem, number) in enumerate(part):
            found = chosen.score(done.texts[i], problem)
            rows.append(
                {
                    "set": chosen.name,
                    "policy": name,
                    "problem_id": problem.id,
                    "prompt": problem.prompt,
                    "completion": done.texts[i],
                    "answer": problem.answer,
                    "extracted": found.extracted,
                    "reward": found.reward,
                    "correct": found.reward >= RIGHT,
                    "sample": number,
                    "finished": done.finished[i],
                    "n_tokens": len(done.token_ids[i]),
                    "reward_error": found.error,
                }
            )
        bar.update(len(part))
    return rows


def problem_values(completions: pd.DataFrame) -> dict[str, pd.Series]:
    """Of one set and policy: one number a problem (in the set's order) for each metric."""
    right = completions.assign(correct=completions["correct"].astype(float))
    greedy = right[right["sample"] < 0].set_index("problem_id")["correct"]
    values = {"pass@1 greedy": greedy}
    drawn = right[right["sample"] >= 0]
    if len(drawn):
        groups = drawn.groupby("problem_id", sort=False)["correct"]
        n = int(groups.size().iloc[0])
        values[f"avg@{n}"] = groups.mean()
        ks = sorted({2**i for i in range(1, n.bit_length()) if 2**i <= n} | {n} - {1})
        for k in ks:
            values[f"pass@{k}"] = groups.sum().map(lambda c, k=k: pass_at_k(n, int(c), k))
    return values


def score_frame(completions: pd.DataFrame) -> pd.DataFrame:
    """Every metric of every set and policy, with its 95 % interval."""
    rows = []
    for (chosen, policy), part in completions.groupby(["set", "policy"], sort=False):
        for metric, values in problem_values(part).items():
            found = bootstrap(values.to_numpy(dtype=np.float64), f"{chosen}/{policy}/{metric}")
            rows.append((chosen, policy, metric, found.value, found.low, found.high, len(values)))
    names = ["set", "policy", "metric", "value", "low", "high", "n_problems"]
    return pd.DataFrame(rows, columns=names)


def comparison_frame(completions: pd.DataFrame, policies: Sequence[str]) -> pd.DataFrame:
    """The first policy against each other one, metric by metric, on the same problems."""
    rows = []
    first, *others = policies
    for chosen, part in completions.groupby("set", sort=False):
        found = {p: problem_values(part[part["policy"] == p]) for p in policies}
        for other in others:
            for metric, values in found[first].items():
                d = compare(
                    values.to_numpy(dtype=np.float64),
                    found[other][metric].reindex(values.index).to_numpy(dtype=np.float64),
                    f"{chosen}/{first}/{other}/{metric}",
                )
                rows.append((chosen, metric, first, other, *vars(d).values()))
    names = ["set", "metric", "first", "second", "difference", "low", "high", "p_value", "test"]
    return pd.DataFrame(rows, columns=names)

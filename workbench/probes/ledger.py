"""The demonstration ledger: what each demonstration has done so far, and which look flawed.

One update moves θ by α(1−λ) g_j for demonstration j, which changes J_RL by α(1−λ) ⟨g_j, g^R⟩ to
first order. That inner product, `rl_alignment`, is the demonstration's contribution at one visit;
summed over its visits it is the in-run data value of Wang et al., "Data Shapley in One Training
Run", ICLR 2025 (arXiv 2406.11011), with J_RL in place of a validation loss. [ours: the paper of
BRIDGE measures nothing per demonstration]

Beside it stands what the policy's own rollouts say of the answer a demonstration shows, where that
was asked for (probes/agreement.py): it finds wrong solutions among right ones that look unfamiliar,
where gradients and loss do not (benchmarks/results/suspects.md).

A pure function of the frame "demonstrations" and such answers: no model, no run folder.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from workbench.records import AnswerRow

COLUMNS = (
    "demonstration_id",
    "prompt",
    "solution",
    "quality",
    "visits",
    "measured",
    "last_step",
    "contribution",
    "contribution_mean",
    "standard_error",
    "cosine",
    "loss",
    "loss_drop",
    "grad_norm",
    "score",
    "disagreement",
    "rank",
)
"""Columns of a ledger."""


def ledger(demonstrations: pd.DataFrame, answers: Sequence[AnswerRow] = ()) -> pd.DataFrame:
    """One row a demonstration, the most suspect first.

    demonstrations: the frame of that name; one row a visit, in any order. answers: what the
    policy's rollouts say of some of them.

    Columns, after the demonstration's own (`quality` is carried along and used nowhere):
        visits: times it was drawn; measured: visits with an alignment. The others are NaN and
            count in nothing but `visits`, `last_step`, `loss` and `loss_drop`.
        contribution: Σ over visits of rl_alignment, signed. [ours]
        contribution_mean, standard_error: its mean, and the sample standard deviation over visits
            divided by √measured; NaN with a single visit. The sum's error is `measured` times that.
            The spread holds what changed between the visits (the policy, the other
            demonstrations, the rollouts that g^R is made of), not only noise. [infer]
        cosine: mean of rl_cosine. [ours]
        loss, loss_drop: token-mean loss at the last visit, nats, and what it fell by since the
            first; NaN with a single visit.
        grad_norm: mean of ‖g_j‖.
        score: how suspect it is, higher is more; see `suspicion`.
        disagreement: of the rollouts with its answer; NaN where that was not asked for.
        rank: 1 is the most suspect, by `score`, NaN last; equals share the better rank. With
            `answers` by `disagreement` first, NaN as 0, no evidence, and by `score` among equals.
    """
    visits = demonstrations.sort_values("step", kind="stable")
    by_id = visits.groupby("demonstration_id", sort=True)
    found = by_id.agg(
        prompt=("prompt", "last"),
        solution=("solution", "last"),
        quality=("quality", "last"),
        visits=("step", "size"),
        measured=("rl_alignment", "count"),
        last_step=("step", "last"),
        contribution_mean=("rl_alignment", "mean"),
        standard_error=("rl_alignment", "sem"),
        cosine=("rl_cosine", "mean"),
        first_loss=("loss", "first"),
        loss=("loss", "last"),
        grad_norm=("grad_norm", "mean"),
    )
    found["contribution"] = found["contribution_mean"] * found["measured"]
    drop = found["first_loss"] - found["loss"]
    found["loss_drop"] = drop.where(found["visits"] > 1)
    found["score"] = suspicion(visits).reindex(found.index)
    votes = pd.Series({row.demonstration_id: row.disagreement for row in answers}, dtype="float64")
    found["disagreement"] = votes.reindex(found.index)
    order = found["score"].rank(ascending=False, method="min", na_option="bottom")
    if len(votes):
        order += (len(found) + 1) * found["disagreement"].fillna(0).rank(
            ascending=False, method="min"
        )
    found["rank"] = order.rank(method="min").astype("int64")
    ordered = found.sort_values(["rank", "demonstration_id"]).reset_index()
    return ordered[list(COLUMNS)]


def suspects(
    ledger: pd.DataFrame, n: int | None = None, threshold: float | None = None
) -> pd.DataFrame:
    """Rows of a ledger: the `n` most suspect, or those whose score is at least `threshold`.

    Where both are given, at most `n` of the latter. Those of which nothing is known are none.
    """
    found = ledger[ledger["score"].notna() | ledger["disagreement"].notna()]
    if threshold is not None:
        found = found[found["score"] >= threshold]
    return found.nsmallest(len(found) if n is None else n, "rank")


def suspicion(visits: pd.DataFrame) -> pd.Series:
    """The default score, by demonstration id: minus the mean of rl_cosine over the visits."""
    return -visits.groupby("demonstration_id")["rl_cosine"].mean()

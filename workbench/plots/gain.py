"""Cooperative gain: what the coordinator adds over RL alone, prompt by prompt."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.plots._theme import (
    AGAINST,
    COORDINATOR,
    DIVERGING,
    JOINT,
    MUTED,
    SFT,
    empty,
    figure,
    newest,
    paragraph,
    room_for_labels,
    show,
    thinned,
    whole_steps,
)

Verdict = Literal["helped", "hurt", "undecided", "blanked"]

_MARKS: dict[Verdict, tuple[str, str]] = {
    "helped": (JOINT, "triangle-up"),
    "hurt": (AGAINST, "triangle-down"),
    "undecided": (MUTED, "circle-open"),
}
_MISSING = {
    "paired": "No paired gain yet: it runs every few steps (paired_gain_every), or on demand.",
    "shared": "No shared gain yet: it comes with each step (shared_gain_every).",
}


def verdicts(gain: pd.DataFrame) -> pd.Series:
    """'helped', 'hurt', 'undecided' or 'blanked' for each row of frame "gain".

    Helped (hurt): the gain is above (below) zero, and the prompt is among those of its step and
    estimator that Benjamini and Hochberg's procedure passes at a false discovery rate of 5 %. Where
    a run holds no p-values: by more than 1.96 standard errors. The rate is as good as the p-values:
    approximate for paired, too small for shared, whose verdicts are hints. Blanked: the importance
    weights were too uneven to say anything.
    """
    p = gain["p_value"]
    together = [gain["step"], gain["estimator"]]
    allowed = (
        0.05 * p.groupby(together).rank(method="first") / p.groupby(together).transform("count")
    )
    limit = p.where(p <= allowed).groupby(together).transform("max")
    clear = (p <= limit) | (p.isna() & (gain["gain"].abs() > 1.96 * gain["standard_error"]))
    verdict = pd.Series("undecided", index=gain.index, dtype=object)
    verdict[clear & (gain["gain"] > 0)] = "helped"
    verdict[clear & (gain["gain"] < 0)] = "hurt"
    verdict[gain["gain"].isna()] = "blanked"
    return verdict


def newest_gain(
    gain: pd.DataFrame, estimator: Literal["paired", "shared"] = "paired", most_steps: int = 150
) -> pd.DataFrame:
    """The newest gain of each prompt with its column `verdict`, the largest first.

    `gain`: frame "gain". Only of prompts measured in the newest `most_steps` measured steps, like
    the heat map: a gain before them is of a policy long gone.
    """
    chosen, _ = newest(gain[gain["estimator"] == estimator], most_steps)
    chosen = chosen.assign(verdict=verdicts(chosen)).sort_values("step", kind="stable")
    chosen = chosen.drop_duplicates("prompt_id", keep="last")
    return chosen.sort_values("gain", ascending=False, kind="stable")


def _hover(row: Any) -> str:
    text = (
        f"<b>{paragraph(row.prompt, 48, 3)}</b><br>step {row.step}"
        f" · joint {row.joint_reward:.2f} · RL-only {row.baseline_reward:.2f}"
    )
    if np.isnan(row.gain):
        return f"{text}<br>blanked: ESS {row.ess:.1f} of {row.n_rollouts} rollouts"
    text += f"<br>gain {row.gain:+.3f} ± {row.standard_error:.3f} (standard error)"
    if not np.isnan(row.low):
        text += f"<br>95 % interval {row.low:+.3f} to {row.high:+.3f}, p = {row.p_value:.2g}"
    if row.estimator == "shared":
        text += f"<br>ESS {row.ess:.1f} of {row.n_rollouts} rollouts"
    return text


def gain_heatmap(
    gain: pd.DataFrame,
    estimator: Literal["paired", "shared"] = "paired",
    rows: Literal["prompt", "rank"] = "prompt",
    most_prompts: int = 60,
    most_steps: int = 150,
) -> go.Figure:
    """Gain as prompt × step, vermilion below zero and blue above; × where it was blanked.

    `gain`: frame "gain". `rows="prompt"`: one row a prompt, the highest mean gain on top; at most
    `most_prompts` of them, those measured most often. `rows="rank"`: each column sorted by itself,
    which shows the distribution over time where prompts seldom come back. Only the newest
    `most_steps` measured steps are drawn. The custom data of a cell is its prompt_id, empty where
    nothing was measured.
    """
    title = f"Gain by prompt and step ({estimator})"
    chosen = gain[gain["estimator"] == estimator].reset_index(drop=True)
    if chosen.empty:
        return empty(title, _MISSING[estimator])
    chosen, cut = newest(chosen, most_steps)
    title += cut
    if rows == "prompt":
        order = chosen.groupby("prompt_id")["gain"].agg(["size", "mean"])
        kept = order.sort_values("size", ascending=False, kind="stable").head(most_prompts)
        kept = kept.sort_values("mean", kind="stable", na_position="first")
        if len(order) > len(kept):
            title += f", {len(kept)} of {len(order)} prompts"
        chosen = chosen[chosen["prompt_id"].isin(kept.index)]
        place = {prompt_id: at for at, prompt_id in enumerate(kept.index)}
        height = chosen["prompt_id"].map(place).to_numpy()
        prompts = chosen.drop_duplicates("prompt_id").set_index("prompt_id")["prompt"]
        labels = [show(prompts[prompt_id].strip(), 24) for prompt_id in kept.index]
    else:
        height = chosen.groupby("step")["gain"].rank(method="first", na_option="top")
        height = height.to_numpy().astype(int) - 1
        labels = []
    steps = sorted(chosen["step"].unique())
    column = chosen["step"].map({step: at for at, step in enumerate(steps)}).to_numpy()
    n_rows = int(height.max()) + 1
    z = np.full((n_rows, len(steps)), np.nan)
    text = np.full(z.shape, "", dtype=object)
    ids = np.full(z.shape, "", dtype=object)
    z[height, column] = chosen["gain"]
    text[height, column] = [_hover(row) for row in chosen.itertuples()]
    ids[height, column] = chosen["prompt_id"]
    drawn = figure(title)
    largest = np.nanmax(np.abs(z)) if np.isfinite(z).any() else 0.0
    bound = max(float(largest), 0.05)
    drawn.add_trace(
        go.Heatmap(
            x=[str(step) for step in steps],
            y=list(range(n_rows)),
            z=z,
            zmin=-bound,
            zmax=bound,
            colorscale=DIVERGING,
            xgap=1,
            ygap=1,
            text=text,
            customdata=ids,
            hovertemplate="%{text}<extra></extra>",
            colorbar={"thickness": 10, "title": {"text": "gain", "side": "right"}},
        )
    )
    blanked = chosen["gain"].isna().to_numpy()
    drawn.add_trace(
        go.Scatter(
            x=[str(step) for step in chosen["step"][blanked]],
            y=height[blanked],
            mode="markers",
            marker={"symbol": "x-thin", "size": 7, "line": {"width": 1.2, "color": MUTED}},
            text=[_hover(row) for row in chosen[blanked].itertuples()],
            customdata=chosen["prompt_id"][blanked].to_numpy(),
            hovertemplate="%{text}<extra></extra>",
            name="blanked: too few effective rollouts",
            showlegend=bool(blanked.any()),
        )
    )
    room_for_labels(drawn)
    drawn.update_xaxes(type="category", tickangle=0, nticks=12, showgrid=False)
    drawn.update_yaxes(showgrid=False)
    if rows == "prompt":
        drawn.update_yaxes(
            tickmode="array", tickvals=list(range(n_rows)), ticktext=labels, tickfont={"size": 10}
        )
    else:
        drawn.update_yaxes(title={"text": "prompts of the step, sorted by gain"}, tickvals=[])
    return drawn


def gain_by_prompt(
    gain: pd.DataFrame,
    step: int | None = None,
    estimator: Literal["paired", "shared"] = "paired",
) -> go.Figure:
    """Distribution over prompts at one step: each prompt's gain, sorted, with its 95 % interval.

    `gain`: frame "gain". `step`: the newest measurement at or before it (None: the newest). A
    triangle up is a prompt helped, down hurt, an open circle undecided. Blanked prompts are counted
    in the title. Custom data: prompt_id.
    """
    chosen = gain[gain["estimator"] == estimator]
    if step is not None:
        chosen = chosen[chosen["step"] <= step]
    if chosen.empty:
        return empty("Gain of each prompt", _MISSING[estimator])
    chosen = chosen[chosen["step"] == chosen["step"].max()]
    at = int(chosen["step"].iloc[0])
    verdict = verdicts(chosen)
    n_blanked = int((verdict == "blanked").sum())
    known = chosen[verdict != "blanked"].assign(verdict=verdict)
    known = known.sort_values("gain", kind="stable").reset_index(drop=True)
    title = f"Gain of each prompt at step {at} ({estimator})"
    if n_blanked:
        title += f", {n_blanked} blanked"
    if known.empty:
        return empty(title, "Every prompt was blanked: too few effective rollouts to say anything.")
    drawn = figure(title, x="prompts, sorted", y="gain, 95 % interval")
    for name, (colour, symbol) in _MARKS.items():
        part = known[known["verdict"] == name]
        drawn.add_trace(
            go.Scatter(
                x=part.index.to_numpy(),
                y=part["gain"].to_numpy(),
                error_y=_whiskers(part),
                mode="markers",
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": 9,
                    "line": {"width": 1.5, "color": colour},
                },
                name=f"{name} ({len(part)})",
                text=[_hover(row) for row in part.itertuples()],
                customdata=part["prompt_id"].to_numpy(),
                hovertemplate="%{text}<extra></extra>",
            )
        )
    drawn.add_hline(y=0, line={"color": MUTED, "width": 1})
    drawn.update_layout(showlegend=True)
    drawn.update_xaxes(tickvals=[], showgrid=False)
    return drawn


def _whiskers(rows: pd.DataFrame) -> dict[str, Any]:
    """The 95 % intervals of rows of frame "gain"; ±1.96 SE in a run that holds none."""
    reach = 1.96 * rows["standard_error"]
    above = (rows["high"] - rows["gain"]).fillna(reach)
    below = (rows["gain"] - rows["low"]).fillna(reach)
    return {"array": above.to_numpy(), "arrayminus": below.to_numpy(), "width": 3}


def gain_over_time(gain: pd.DataFrame) -> go.Figure:
    """Mean gain a step with ±1.96 SE over its prompts, both estimators. `gain`: frame "gain"."""
    title = "Mean gain over time, with 95 % interval"
    known = gain[gain["gain"].notna()]
    if known.empty:
        return empty(title, _MISSING["shared"])
    drawn = figure(title, y="mean reward difference")
    looks = (("shared", COORDINATOR, 5), ("paired", SFT, 9))
    for estimator, colour, size in looks:
        part = known[known["estimator"] == estimator]
        # prompts are independent, so the error of the mean is the root of summed squares over n
        mean = part.groupby("step").agg(
            gain=("gain", "mean"),
            error=("standard_error", lambda se: float(np.sqrt((se**2).sum())) / len(se)),
            prompts=("gain", "size"),
        )
        if mean.empty:
            continue
        mean, _ = thinned(mean, ["gain"])
        drawn.add_trace(
            go.Scatter(
                x=mean.index.to_numpy(),
                y=mean["gain"].to_numpy(),
                error_y={
                    "array": 1.96 * mean["error"].to_numpy(),
                    "width": 2,
                    "thickness": 1.2,
                },
                mode="lines+markers",
                line={"color": colour, "width": 1.5},
                marker={"size": size},
                name=f"{estimator} estimate",
                customdata=mean["prompts"].to_numpy(),
                hovertemplate="%{y:+.3f} over %{customdata} prompts",
            )
        )
    drawn.add_hline(y=0, line={"color": MUTED, "width": 1})
    drawn.update_layout(hovermode="x unified")
    whole_steps(drawn, int(known["step"].min()), int(known["step"].max()))
    return drawn


def gain_shares(
    gain: pd.DataFrame, estimator: Literal["paired", "shared"] = "paired", most_steps: int = 150
) -> go.Figure:
    """Share of prompts helped, hurt, undecided and blanked at each step. `gain`: frame "gain"."""
    title = f"Prompts helped and hurt ({estimator})"
    chosen = gain[gain["estimator"] == estimator]
    if chosen.empty:
        return empty(title, _MISSING[estimator])
    chosen, cut = newest(chosen, most_steps)
    title += cut
    shares = pd.crosstab(chosen["step"], verdicts(chosen), normalize="index")
    drawn = figure(title, y="share of prompts")
    looks = {
        "helped": JOINT,
        "undecided": "rgba(139,147,161,0.45)",
        "blanked": "rgba(139,147,161,0.2)",
        "hurt": AGAINST,
    }
    for name, colour in looks.items():
        if name in shares.columns:
            drawn.add_trace(
                go.Bar(
                    x=[str(step) for step in shares.index],
                    y=shares[name].to_numpy(),
                    name=name,
                    marker={"color": colour, "line": {"width": 0}},
                    hovertemplate="%{y:.0%}",
                )
            )
    drawn.update_layout(barmode="stack", bargap=0.1, hovermode="x unified")
    drawn.update_xaxes(type="category", tickangle=0, nticks=12)
    drawn.update_yaxes(range=[0, 1], tickformat=".0%")
    return drawn


def gain_estimates(shared: pd.DataFrame, paired: pd.DataFrame) -> go.Figure:
    """Each prompt's shared estimate against its paired one, with both 95 % intervals.

    `shared`, `paired`: rows of frame "gain", or GainRows as a frame, of the same prompts at the
    same weights. On the diagonal the two agree. Blanked prompts stand in a strip below the others,
    at their paired value: they are those on which the two policies differ most.
    """
    title = "Shared estimate against paired, prompt by prompt"
    both = shared.merge(paired, on="prompt_id", suffixes=("", "_paired"))
    if both.empty:
        return empty(title, "No prompt has both estimates.")
    both = both.assign(prompt=both["prompt"].str.strip())
    known, blanked = both[both["gain"].notna()], both[both["gain"].isna()]
    drawn = figure(title, x="paired gain (the truth, with its noise)", y="shared gain")
    ends = both[["low_paired", "high_paired", "low", "high"]].to_numpy(dtype=float)
    reach = float(np.nanmax(np.abs(ends))) if np.isfinite(ends).any() else 1.0
    line = {"color": MUTED, "width": 1, "dash": "dot"}
    drawn.add_shape(type="line", x0=-reach, y0=-reach, x1=reach, y1=reach, line=line)
    across = _whiskers(
        both.assign(
            gain=both["gain_paired"],
            low=both["low_paired"],
            high=both["high_paired"],
            standard_error=both["standard_error_paired"],
        )
    )
    for rows, y, colour, symbol, name in (
        (known, known["gain"], JOINT, "circle", "both known"),
        (blanked, blanked["gain"].fillna(-1.1 * reach), AGAINST, "x", "shared blanked"),
    ):
        at = both.index.isin(rows.index)
        drawn.add_trace(
            go.Scatter(
                x=rows["gain_paired"].to_numpy(),
                y=y.to_numpy(),
                mode="markers",
                error_x={
                    "array": across["array"][at],
                    "arrayminus": across["arrayminus"][at],
                    "color": "rgba(139,147,161,0.5)",
                    "thickness": 1,
                },
                error_y=_whiskers(rows) | {"color": "rgba(139,147,161,0.5)", "thickness": 1},
                marker={"color": colour, "symbol": symbol, "size": 8},
                name=f"{name} ({len(rows)})",
                text=[
                    f"{paragraph(row.prompt, 48, 2)}<br>paired {row.gain_paired:+.3f}, shared "
                    f"{row.gain:+.3f}, ESS {row.ess:.1f} of {row.n_rollouts}"
                    for row in rows.itertuples()
                ],
                customdata=rows["prompt_id"].to_numpy(),
                hovertemplate="%{text}<extra></extra>",
            )
        )
    drawn.update_layout(showlegend=True)
    return drawn

"""From the gradients of a step to its rows of alignment, with what their errors are made of."""

from __future__ import annotations

from math import isnan, nan
from typing import Literal

from workbench.probes.alignment import Shares, alignment_rows, block_shares, conflict_share
from workbench.records import AlignmentRow
from workbench.training.gradients import Blocks
from workbench.training.methods import Sides
from workbench.training.passes import Passes
from workbench.training.vectors import ParamVector

Part = Literal["base", "coordinator"]


def aligned(step: int, passes: Passes) -> tuple[list[AlignmentRow], dict[str, float]]:
    """Rows and metrics of a step with g^S, g^R and the demonstrations' products."""
    rl, sft = passes.rl, passes.sft
    assert rl is not None and sft is not None
    base = alignment_rows(
        step,
        "base",
        sft.gradient.base,
        rl.gradient.base,
        _sft_shares(passes, "base"),
        _rl_shares(passes, "base"),
    )
    overall = base[-1]
    metrics = {
        "alignment/cosine": overall.cosine,
        "alignment/noise": overall.noise,
        "alignment/conflict_share": conflict_share(base),
        "alignment/norm_ratio": overall.first_norm / overall.second_norm
        if overall.second_norm
        else nan,
    }
    if not isnan(overall.dof):
        metrics["alignment/dof"] = overall.dof
    if passes.baseline_rl is None or not passes.trains_coordinator:
        return base, metrics
    w = alignment_rows(
        step,
        "coordinator",
        sft.gradient.coordinator,
        rl.gradient.coordinator,
        _sft_shares(passes, "coordinator"),
        _rl_shares(passes, "coordinator"),
    )
    gain = alignment_rows(
        step, "gain", rl.gradient.coordinator, passes.baseline_rl.gradient.coordinator
    )
    metrics |= {
        "alignment/coordinator_cosine": w[-1].cosine,
        "alignment/gain_cosine": gain[-1].cosine,
        "alignment/gain_signal": gain[-1].difference_norm,
    }
    return [*base, *w, *gain], metrics


def _sft_shares(passes: Passes, part: Part) -> Shares | None:
    """⟨·, g^R⟩ of the demonstrations, or of their two halves where not all could be followed."""
    rl, sft, per, batch = passes.rl, passes.sft, passes.per_demonstration, passes.demonstrations
    assert rl is not None and sft is not None and per is not None and batch is not None
    if per.skipped == 0 and per.inner[part] and len(per.base_norm_D) > 1:
        return Shares(per.inner[part], batch.tokens.completion_mask.sum(1).cpu())
    return _shares(sft.blocks, sft.gradient, rl.gradient, part)


def _rl_shares(passes: Passes, part: Part) -> Shares | None:
    """⟨·, g^S⟩ of the prompts where rollouts were measured, else of the blocks."""
    rl, sft, per, batch = passes.rl, passes.sft, passes.per_rollout, passes.batch
    assert rl is not None and sft is not None and batch is not None
    n_prompts = len(batch.problems_P)
    if part == "base" and per is not None and per.skipped == 0 and n_prompts > 1:
        by_prompt = {
            layer: values.view(n_prompts, -1).sum(1) for layer, values in per.sft_inner.items()
        }
        tokens_N = batch.tokens.completion_mask.sum(1).cpu()
        return Shares(by_prompt, tokens_N.view(n_prompts, -1).sum(1))
    return _shares(rl.blocks, rl.gradient, sft.gradient, part)


def _shares(blocks: Blocks | None, whole: Sides, other: Sides, part: Part) -> Shares | None:
    def of(sides: Sides) -> ParamVector:
        return sides.base if part == "base" else sides.coordinator

    if blocks is None:
        return None
    so_far = [of(sides) for sides in (*blocks.so_far, whole)]
    return block_shares(so_far, blocks.tokens, of(other))


def alignment_seconds(passes: Passes) -> float:
    """What the alignment probe added to the backward passes of the phase 'gradients'."""
    both = (passes.rl, passes.sft)
    blocks = sum(found.blocks.seconds for found in both if found and found.blocks)
    return blocks + (passes.per_demonstration.seconds if passes.per_demonstration else 0.0)

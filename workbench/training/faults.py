"""Faults on purpose (config section [faults]): a run with something wrong, to try detectors on.

Each function returns its argument itself where its fault is off. [ours]
"""

from __future__ import annotations

from dataclasses import replace

import torch

from workbench.config import FaultsConfig
from workbench.sampling import TokenBatch
from workbench.training.batches import DemonstrationBatch, RolloutBatch
from workbench.training.methods import Directions
from workbench.training.objectives import group_advantages
from workbench.training.vectors import ParamVector


def faulty_rewards(batch: RolloutBatch, faults: FaultsConfig) -> RolloutBatch:
    """The rollouts as a broken verifier pays them; what the task says stays in `correct_PG`.

    silent: 0 each. skips_short: 1 for each text of at most two lines.
    """
    if faults.verifier_fault == "none":
        return batch
    rewards_PG = torch.zeros_like(batch.rewards_PG)
    if faults.verifier_fault == "skips_short":
        short = [len(text.strip().splitlines()) <= 2 for text in batch.completions_N.texts]
        short_PG = torch.tensor(short, device=rewards_PG.device).view(rewards_PG.shape)
        rewards_PG = torch.where(short_PG, torch.ones_like(rewards_PG), batch.rewards_PG)
    return replace(batch, rewards_PG=rewards_PG, advantages_PG=group_advantages(rewards_PG))


def faulty_demonstrations(
    batch: DemonstrationBatch | None, step: int, seed: int, vocab_size: int, faults: FaultsConfig
) -> DemonstrationBatch | None:
    """At `corrupt_batch_at`: each solution's tokens replaced by others, drawn evenly."""
    if batch is None or step != faults.corrupt_batch_at:
        return batch
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    tokens = batch.tokens
    drawn = torch.randint(vocab_size, tokens.completion_ids.shape, generator=generator)
    drawn = drawn.to(tokens.completion_ids.device)
    completion_ids = torch.where(tokens.completion_mask > 0, drawn, tokens.completion_ids)
    input_ids = torch.cat([tokens.input_ids[:, : tokens.n_prompt], completion_ids], dim=1)
    corrupted: TokenBatch = replace(tokens, input_ids=input_ids, completion_ids=completion_ids)
    return replace(batch, tokens=corrupted)


def faulty_directions(directions: Directions, step: int, faults: FaultsConfig) -> Directions:
    """Directions through float16, and none for θ̂ from `stale_baseline_from` on."""
    if faults.float16_scale:
        scale = faults.float16_scale
        directions = replace(
            directions,
            **{
                part: _through_float16(direction, scale)
                for part, direction in vars(directions).items()
                if direction is not None
            },
        )
    if faults.stale_baseline_from and step >= faults.stale_baseline_from:
        directions = replace(directions, baseline=None)
    return directions


def _through_float16(direction: ParamVector, scale: float) -> ParamVector:
    return ParamVector({n: (v * scale).half().float() / scale for n, v in direction.items()})

"""An optimizer's state as arrays, and as something to go back to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn import Parameter

CHUNK = 1 << 28
"""Entries of a part's weights that are updated at once: 1 GiB of gradient. [ours]"""


def chunks(parameters: Mapping[str, Parameter]) -> Iterator[dict[str, Parameter]]:
    """The parameters in order, so many at once as have CHUNK entries, but one at least."""
    chunk: dict[str, Parameter] = {}
    size = 0
    for name, parameter in parameters.items():
        if chunk and size + parameter.numel() > CHUNK:
            yield chunk
            chunk, size = {}, 0
        chunk[name] = parameter
        size += parameter.numel()
    if chunk:
        yield chunk


def moments(
    part: str, optimizer: torch.optim.AdamW, parameters: Mapping[str, Parameter]
) -> dict[str, np.ndarray]:
    """Adam's moments and step counts, copied: '<part>/exp_avg/<parameter>', …"""
    return {
        f"{part}/{key}/{name}": value.detach().cpu().numpy().copy()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(
    part: str,
    optimizer: torch.optim.AdamW,
    parameters: Mapping[str, Parameter],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Restore what `moments` gave; parameters without arrays start fresh."""
    optimizer.state.clear()
    for name, parameter in parameters.items():
        state = {
            key: torch.from_numpy(arrays[f"{part}/{key}/{name}"].copy())
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{part}/{key}/{name}" in arrays
        }
        if state:
            device = parameter.device
            optimizer.state[parameter] = {
                k: v if k == "step" else v.to(device) for k, v in state.items()
            }


@contextmanager
def put_back(
    parts: Sequence[tuple[Mapping[str, Parameter], torch.optim.AdamW]],
) -> Iterator[None]:
    """Undo what the block did to weights and optimizers, if it raises."""
    kept = [
        (
            {name: p.detach().clone() for name, p in parameters.items()},
            copy.deepcopy(optimizer.state_dict()),
        )
        for parameters, optimizer in parts
    ]
    try:
        yield
    except BaseException:
        for (parameters, optimizer), (weights, state) in zip(parts, kept, strict=True):
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(weights[name])
            optimizer.load_state_dict(state)
        raise

"""Do two gradients pull the same way? Cosine, noise band and conflict, per layer and overall.

g^S (SFT) and g^R (RL) are each known only from a batch, as g + e. In millions of dimensions a
cosine near 0 is what noise alone gives, so every cosine comes with the half-width of a band around
0 inside which it says nothing.

Noise band [ours]. Each batch was backpropagated in two halves with contributions h_1 + h_2 = g and
n_1 + n_2 = n tokens; m_i = h_i·n/n_i is half i's own mean gradient. The scaled difference

    d = (m_1 − m_2)·√(n_1 n_2)/n        (equal halves: (m_1 − m_2)/2)

has mean 0 and the covariance of the error e of g, whatever g is. The error of the inner product is
⟨e_S, g_R⟩ + ⟨g_S, e_R⟩ + ⟨e_S, e_R⟩, three uncorrelated terms, so

    var ≈ ⟨d_S, g_R⟩² + ⟨g_S, d_R⟩² + ⟨d_S, d_R⟩²,    noise = 2·√var / (‖g_S‖‖g_R‖)

Weaknesses. Each square estimates its variance from ONE draw, so the band is itself noisy (by a
factor of two either way is common) and one step is one look: look at several. Where
the true inner product is 0, |cosine| stays inside the band in 96 % of cases if both gradients are
mostly noise, in 82 % if both are mostly signal with errors alike, in 70 % if one has all the
error (Student's t with 3, 2 and 1 degrees of freedom). `conflict` looks at one side only, so it is
wrong in half of what is left: 2, 9 and 15 %. Errors shared by both batches, such as one prompt in
both, are not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan, nan, sqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workbench.policy import layer_of
from workbench.records import AlignmentRow

Gradient = Mapping[str, Tensor]
"""One tensor a parameter, by name."""

GradientHalves = tuple[Gradient, Gradient, int, int]
"""Contributions h_1 and h_2 of a batch's halves (h_1 + h_2 is its gradient), tokens n_1 and n_2."""


class _Sums(NamedTuple):
    """Inner products over some parameters."""

    inner: float
    first: float
    second: float
    difference: float
    noise_first: float  # ⟨d_S, g_R⟩
    noise_second: float  # ⟨g_S, d_R⟩
    noise_both: float  # ⟨d_S, d_R⟩


def alignment_rows(
    step: int,
    part: Literal["base", "coordinator", "gain"],
    first: Gradient,
    second: Gradient,
    first_halves: GradientHalves | None = None,
    second_halves: GradientHalves | None = None,
) -> list[AlignmentRow]:
    """Alignment of two gradients over the same parameters: one row a layer, then one for 'all'.

    first, second: g^S and g^R (gain: g^R_w and ĝ_w). Without both halves the noise is NaN and
    nothing counts as a conflict. The cosine is NaN where either gradient is 0.
    """
    layers: dict[str, list[_Sums]] = {}
    for name in first:
        found = _sums(name, first, second, first_halves, second_halves)
        layers.setdefault(layer_of(name), []).append(found)
    everything = [found for of_layer in layers.values() for found in of_layer]
    return [
        _row(step, part, layer, _Sums(*(sum(column) for column in zip(*found, strict=True))))
        for layer, found in (*layers.items(), ("all", everything))
    ]


def conflict_share(rows: list[AlignmentRow]) -> float:
    """Share of the layers (not 'all') in conflict; NaN without layers."""
    layers = [row for row in rows if row.layer != "all"]
    return sum(row.conflict for row in layers) / len(layers) if layers else nan


def _dot(a: Tensor, b: Tensor) -> float:
    return (a * b).sum(dtype=torch.float64).item()


def _sums(
    name: str,
    first: Gradient,
    second: Gradient,
    first_halves: GradientHalves | None,
    second_halves: GradientHalves | None,
) -> _Sums:
    a, b = first[name], second[name]
    difference = a - b
    noise = (nan, nan, nan)
    if first_halves is not None and second_halves is not None:
        noise_a, noise_b = _noise(name, first_halves), _noise(name, second_halves)
        noise = (_dot(noise_a, b), _dot(a, noise_b), _dot(noise_a, noise_b))
    return _Sums(_dot(a, b), _dot(a, a), _dot(b, b), _dot(difference, difference), *noise)


def _noise(name: str, halves: GradientHalves) -> Tensor:
    """d: as large and as oriented as the gradient's error."""
    h_1, h_2, n_1, n_2 = halves
    return (h_1[name] / n_1 - h_2[name] / n_2) * sqrt(n_1 * n_2)


def _row(
    step: int, part: Literal["base", "coordinator", "gain"], layer: str, sums: _Sums
) -> AlignmentRow:
    norms = sqrt(sums.first) * sqrt(sums.second)
    cosine = max(-1.0, min(1.0, sums.inner / norms)) if norms > 0 else nan
    noise = nan
    if norms > 0:
        variance = sums.noise_first**2 + sums.noise_second**2 + sums.noise_both**2
        noise = 2 * sqrt(variance) / norms
    return AlignmentRow(
        step=step,
        part=part,
        layer=layer,
        cosine=cosine,
        noise=noise,
        conflict=not isnan(noise) and cosine < -noise,
        first_norm=sqrt(sums.first),
        second_norm=sqrt(sums.second),
        difference_norm=sqrt(sums.difference),
    )

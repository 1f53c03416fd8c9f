"""Alignment rows against flat float64 vectors, and the noise band against synthetic gradients."""

from __future__ import annotations

from math import isnan

import pytest
import torch
from torch import Tensor

from workbench.policy import layer_of
from workbench.probes.alignment import alignment_rows, conflict_share

SHAPES = {
    "model.embed_tokens.weight": (40, 8),
    "model.layers.0.self_attn.q_proj.weight": (30, 30),
    "model.layers.0.input_layernorm.weight": (30,),
    "model.layers.11.mlp.up_proj.weight": (20, 30),
    "model.norm.weight": (30,),
    "lm_head.weight": (40, 30),
}
SIZE = sum(torch.Size(shape).numel() for shape in SHAPES.values())


def named(flat: Tensor) -> dict[str, Tensor]:
    """One long vector as a gradient of SHAPES."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    parts = zip(SHAPES.items(), flat.split(sizes), strict=True)
    return {name: part.view(shape) for (name, shape), part in parts}


def halves_of(mean: Tensor, noise: float, generator: torch.Generator, n_1: int, n_2: int):
    """(gradient, halves) of a batch: the true mean plus noise that shrinks with the batch."""

    def contribution(n: int) -> Tensor:
        error = noise * torch.randn(SIZE, generator=generator) / n**0.5
        return (mean + error) * n / (n_1 + n_2)

    first, second = contribution(n_1), contribution(n_2)
    return named(first + second), (named(first), named(second), n_1, n_2)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.embed_tokens.weight", "embed"),
        ("model.layers.3.self_attn.q_norm.weight", "layers.3"),
        ("model.layers.12.mlp.down_proj.lora_A", "layers.12"),
        ("model.norm.weight", "norm"),
        ("lm_head.weight", "lm_head"),
        ("transformer.wte.weight", "embed"),
        ("transformer.wpe.weight", "embed"),
        ("transformer.h.5.ln_1.bias", "layers.5"),
        ("transformer.h.5.attn.c_attn.lora_B", "layers.5"),
        ("transformer.ln_f.weight", "norm"),
        ("model.rotary.scale", "other"),
    ],
)
def test_layer_of(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_rows_equal_flat_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, SIZE, generator=generator)
    rows = alignment_rows(3, "gain", named(a), named(b))
    assert [row.layer for row in rows] == [
        "embed",
        "layers.0",
        "layers.11",
        "norm",
        "lm_head",
        "all",
    ]
    whole = rows[-1]
    a, b = a.double(), b.double()
    assert whole.cosine == pytest.approx(torch.cosine_similarity(a, b, dim=0).item())
    assert whole.first_norm == pytest.approx(a.norm().item())
    assert whole.second_norm == pytest.approx(b.norm().item())
    assert whole.difference_norm == pytest.approx((a - b).norm().item())
    second = rows[1]  # layers.0: two parameters side by side
    at = slice(320, 320 + 930)
    assert second.cosine == pytest.approx(torch.cosine_similarity(a[at], b[at], dim=0).item())
    assert all(isnan(row.noise) and not row.conflict for row in rows)
    assert {(row.step, row.part) for row in rows} == {(3, "gain")}


def test_equal_gradients_differ_by_nothing() -> None:
    a = named(torch.randn(SIZE, generator=torch.Generator().manual_seed(0)))
    for row in alignment_rows(1, "gain", a, a):
        assert row.difference_norm == 0
        assert row.cosine == pytest.approx(1)


def test_a_zero_gradient_has_no_cosine() -> None:
    zero, one = named(torch.zeros(SIZE)), named(torch.ones(SIZE))
    for row in alignment_rows(1, "base", zero, one, (zero, zero, 4, 4), (one, zero, 4, 4)):
        assert isnan(row.cosine) and isnan(row.noise) and not row.conflict
        assert row.first_norm == 0


def inside_and_conflicts(signal: float, noise: tuple[float, float], count: int):
    """Shares of repetitions with |cosine| inside the band, and flagged, at true inner product 0."""
    generator = torch.Generator().manual_seed(1)
    inside, flagged = 0, 0
    for _ in range(count):
        s, r = torch.randn(2, SIZE, generator=generator)
        r -= (r @ s) / (s @ s) * s
        first = halves_of(signal * s, noise[0], generator, 5, 11)
        second = halves_of(signal * r, noise[1], generator, 8, 8)
        row = alignment_rows(1, "base", first[0], second[0], first[1], second[1])[-1]
        inside += abs(row.cosine) <= row.noise
        flagged += row.conflict
    return inside / count, flagged / count


def test_noise_alone_stays_inside_its_band() -> None:
    inside, flagged = inside_and_conflicts(0.0, (4.0, 4.0), 600)
    assert 0.93 <= inside <= 0.99  # 96 % by Student's t, 3 degrees of freedom
    assert flagged <= 0.04


def test_orthogonal_signals_leave_the_band_as_often_as_documented() -> None:
    inside, flagged = inside_and_conflicts(50.0, (4.0, 4.0), 600)
    assert 0.77 <= inside <= 0.87  # 82 %, 2 degrees of freedom
    assert flagged <= 0.13
    inside, _ = inside_and_conflicts(50.0, (0.0, 4.0), 600)
    assert 0.65 <= inside <= 0.76  # 70 %, 1 degree of freedom


def test_a_strong_conflict_is_flagged_and_a_strong_agreement_is_not() -> None:
    generator = torch.Generator().manual_seed(2)
    flagged = {-1.0: 0, 1.0: 0}
    for sign in flagged:
        for _ in range(100):
            shared, own = torch.randn(2, SIZE, generator=generator)
            first = halves_of(shared, 2.0, generator, 8, 8)
            second = halves_of(sign * 0.7 * shared + own, 2.0, generator, 8, 8)
            row = alignment_rows(1, "base", first[0], second[0], first[1], second[1])[-1]
            flagged[sign] += row.conflict
    assert flagged[-1.0] >= 98
    assert flagged[1.0] == 0


def test_conflict_share_counts_layers_only() -> None:
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(SIZE, generator=generator)
    turned = shared.clone()
    turned[:320] *= -1  # the embedding pulls the other way
    first = halves_of(shared, 0.01, generator, 8, 8)
    second = halves_of(turned, 0.01, generator, 8, 8)
    rows = alignment_rows(1, "base", first[0], second[0], first[1], second[1])
    assert [row.layer for row in rows if row.conflict] == ["embed"]
    assert conflict_share(rows) == pytest.approx(1 / 5)

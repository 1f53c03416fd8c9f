"""Alignment rows against flat float64 vectors, and their errors against simulated batches."""

from __future__ import annotations

from math import isnan

import pytest
import torch
from torch import Tensor

from workbench.policy import layer_of
from workbench.probes.alignment import Shares, alignment_rows, block_shares, conflict_share
from workbench.records import AlignmentRow

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


Batch = tuple[dict[str, Tensor], list[Tensor], list[int]]
"""A gradient, and the contribution and tokens of each part of its batch."""


def batch_of(mean: Tensor, noise: float, generator: torch.Generator, tokens: list[int]) -> Batch:
    """A batch of parts, each the true mean plus noise that shrinks with its tokens."""
    n = sum(tokens)
    parts = [
        (mean + noise * torch.randn(SIZE, generator=generator) / n_i**0.5) * n_i / n
        for n_i in tokens
    ]
    return named(torch.stack(parts).sum(0)), parts, tokens


def shares(batch: Batch, other: Batch) -> Shares:
    """Each part's inner product with the other gradient, layer by layer, naively in float64."""
    layers: dict[str, Tensor] = {}
    parts = [named(part) for part in batch[1]]
    for name, v in other[0].items():
        products = [float((part[name].double() * v.double()).sum()) for part in parts]
        layer = layer_of(name)
        layers[layer] = layers.get(layer, 0) + torch.tensor(products, dtype=torch.float64)
    return Shares(layers, torch.tensor(batch[2]))


def aligned(first: Batch, second: Batch) -> list[AlignmentRow]:
    both = shares(first, second), shares(second, first)
    return alignment_rows(1, "base", first[0], second[0], *both)


DEMONSTRATIONS = [5, 11, 7, 3, 20, 9, 8, 8, 14, 6, 5, 12, 10, 4, 9, 8]
BLOCKS = [90, 110, 60, 120, 95]


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
    nothing = Shares({layer_of(n): torch.zeros(4) for n in SHAPES}, torch.ones(4))
    for row in alignment_rows(1, "base", zero, one, nothing, nothing):
        assert isnan(row.cosine) and isnan(row.noise) and not row.conflict
        assert row.first_norm == 0


def inside_and_conflicts(signal: float, noise: tuple[float, float], count: int):
    """Shares of repetitions with |cosine| inside the band, and flagged, at true inner product 0."""
    generator = torch.Generator().manual_seed(1)
    inside, flagged = 0, 0
    for _ in range(count):
        s, r = torch.randn(2, SIZE, generator=generator)
        r -= (r @ s) / (s @ s) * s
        first = batch_of(signal * s, noise[0], generator, DEMONSTRATIONS)
        second = batch_of(signal * r, noise[1], generator, BLOCKS)
        row = aligned(first, second)[-1]
        inside += abs(row.cosine) <= row.noise
        flagged += row.conflict
    return inside / count, flagged / count


def test_noise_alone_stays_inside_its_band() -> None:
    inside, flagged = inside_and_conflicts(0.0, (4.0, 4.0), 400)
    assert 0.975 <= inside  # the errors' product is in both variances: √2 too wide
    assert flagged <= 0.02


@pytest.mark.parametrize("noise", [(4.0, 4.0), (0.0, 4.0), (4.0, 0.0)])
def test_orthogonal_signals_leave_the_band_one_time_in_twenty(noise: tuple[float, float]) -> None:
    inside, flagged = inside_and_conflicts(50.0, noise, 400)
    assert 0.92 <= inside <= 0.98
    assert flagged <= 0.045


def test_the_standard_error_is_the_spread_of_the_cosine_over_batches() -> None:
    """One true pair of gradients, many batches: the mean square of what is claimed is what is."""
    generator = torch.Generator().manual_seed(4)
    s, r = torch.randn(2, SIZE, generator=generator)
    r += 0.1 * s
    rows = [
        aligned(batch_of(s, 2.0, generator, DEMONSTRATIONS), batch_of(r, 2.0, generator, BLOCKS))[
            -1
        ]
        for _ in range(400)
    ]
    products = torch.tensor([row.cosine * row.first_norm * row.second_norm for row in rows])
    claimed = torch.tensor([row.standard_error * row.first_norm * row.second_norm for row in rows])
    assert claimed.square().mean().sqrt() == pytest.approx(products.std().item(), rel=0.15)


def test_error_is_the_classical_one_for_parts_of_one_size() -> None:
    """A sum of B equal parts has B times the sample variance of one."""
    x = torch.randn(7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    variance, dof = Shares({"embed": x[:] - 1, "norm": torch.ones(7)}, torch.full((7,), 3)).error(
        "all"
    )
    assert variance == pytest.approx(7 * x.var().item())
    assert dof == 6


def test_blocks_are_told_apart_by_the_sums_after_them() -> None:
    generator = torch.Generator().manual_seed(6)
    one, other = (batch_of(torch.zeros(SIZE), 1.0, generator, BLOCKS) for _ in range(2))
    sums = torch.stack(one[1]).cumsum(0)
    found = block_shares([named(total) for total in sums], BLOCKS, other[0])
    expected = shares(one, other)
    for layer, inner in expected.inner.items():
        torch.testing.assert_close(found.inner[layer], inner, rtol=1e-4, atol=1e-4)


def test_a_strong_conflict_is_flagged_and_a_strong_agreement_is_not() -> None:
    generator = torch.Generator().manual_seed(2)
    flagged = {-1.0: 0, 1.0: 0}
    for sign in flagged:
        for _ in range(100):
            shared, own = torch.randn(2, SIZE, generator=generator)
            first = batch_of(shared, 2.0, generator, DEMONSTRATIONS)
            second = batch_of(sign * 0.7 * shared + own, 2.0, generator, BLOCKS)
            flagged[sign] += aligned(first, second)[-1].conflict
    assert flagged == {-1.0: 100, 1.0: 0}


def test_conflict_share_counts_layers_only() -> None:
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(SIZE, generator=generator)
    turned = shared.clone()
    turned[:320] *= -1  # the embedding pulls the other way
    first = batch_of(shared, 0.01, generator, DEMONSTRATIONS)
    second = batch_of(turned, 0.01, generator, BLOCKS)
    rows = aligned(first, second)
    assert [row.layer for row in rows if row.conflict] == ["embed"]
    assert conflict_share(rows) == pytest.approx(1 / 5)

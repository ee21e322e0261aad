"""Norms from sums in single precision: never less than the true ones, whatever a model was made to give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.client.privacy.dp.gradients.lengths import at_least_norms
from fedgraft.client.privacy.dp.gradients.patches import patches
from fedgraft.client.privacy.dp.gradients.trainer import clip_and_sum, clip_factors

NUMBERS = 5000
"""Of a row: more than are summed in double as they are, and no whole number of blocks."""


def true_norms(rows: Tensor) -> Tensor:
    return rows.double().norm(dim=1)


@pytest.mark.parametrize("far", [-37, -30, -25, -20, -12, 0, 12, 18])
def test_norms_of_any_size_are_a_few_millionths_above_the_true_ones(far: int) -> None:
    draw = torch.Generator().manual_seed(far + 100)
    sizes = 10.0 ** torch.empty(60, 1).uniform_(-2, 0, generator=draw)
    rows = (torch.randn(60, NUMBERS, generator=draw).double() * sizes * 10.0**far).float()
    got, want = at_least_norms(rows), true_norms(rows)
    assert bool((got >= want).all())
    if far > -12:
        assert float((got / want).max()) < 1 + 1e-5


@pytest.mark.parametrize("little", [2.0**-12.6, 2.0**-13, 2.0**-14, 2.0**-20])
@pytest.mark.parametrize("every", [2, 3, 4, 7, 8, 16, 31, 32, 64])
def test_what_single_precision_rounds_off_is_not_left_out(little: float, every: int) -> None:
    """A 1 and then squares that are less than half its last digit: each sum with them is 1."""
    row = torch.full((1, 128 * 64), little)
    row[0].view(64, 128)[:, :every] = 1.0
    assert float(at_least_norms(row)) >= float(true_norms(row))
    assert float(at_least_norms(row.flip(1))) >= float(true_norms(row))


def test_squares_that_are_lost_count() -> None:
    row = torch.full((1, NUMBERS), 1e-24)
    assert not row.square().any(), "the attack must work where nothing is done against it"
    assert float(at_least_norms(row)) >= float(true_norms(row)) > 0
    clipped = clip_and_sum([row], 1e-24, 1)[0].double()
    assert float(clipped.norm()) <= 1e-24


@pytest.mark.parametrize("numbers", [5, NUMBERS])
def test_no_units_have_no_norms_and_nothing_has_one_of_nearly_0(numbers: int) -> None:
    assert at_least_norms(torch.zeros(0, numbers)).shape == (0,)
    assert 0 <= float(at_least_norms(torch.zeros(1, numbers))) < 1e-15


@pytest.mark.parametrize("broken", [float("inf"), float("nan"), 3e38])
def test_a_unit_that_single_precision_cannot_square_counts_as_none(broken: float) -> None:
    rows = torch.ones(3, NUMBERS)
    rows[1, 4321] = broken
    assert not bool(at_least_norms(rows)[1] <= 1e20)
    (total,) = clip_and_sum([rows.clone()], 1.0, 3)
    assert bool(total.isfinite().all())
    assert float(total.norm()) == pytest.approx(2.0, rel=1e-4)


LAYERS = {
    "one place": (nn.Conv2d(3, 4, 3), 3),
    "few places": (nn.Conv2d(3, 4, 3, padding=1), 4),
    "many places": (nn.Conv2d(3, 4, 3, padding=1), 9),
    "strides": (nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(0, 2)), 13),
    "holes": (nn.Conv2d(4, 4, 3, dilation=(2, 3), padding=2), 17),
    "groups": (nn.Conv2d(6, 4, 3, groups=2, padding=1), 8),
    "points": (nn.Conv2d(5, 4, 1), 8),
    "points and strides": (nn.Conv2d(5, 4, 1, stride=2), 16),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_patches_are_those_that_a_convolution_multiplies(name: str, layout: torch.memory_format) -> None:
    layer, size = LAYERS[name]
    inputs = torch.randn(2, layer.in_channels, size, size).contiguous(memory_format=layout)
    seen = patches(layer, inputs)
    want = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    assert torch.equal(seen.flatten(1, 2), want)
    weights = layer.weight.view(layer.groups, layer.out_channels // layer.groups, -1)
    outputs = torch.einsum("goi,ngit->ngot", weights, seen).flatten(1, 2)
    assert layer.bias is not None
    assert torch.allclose(outputs + layer.bias[:, None], layer(inputs).flatten(2), atol=1e-5)


@pytest.mark.parametrize("numbers", [100, 3 * 128 * 20 + 5, 9 * 512 * 16])
def test_a_rows_norm_does_not_depend_on_how_many_there_are(numbers: int) -> None:
    rows = torch.randn(70, numbers, generator=torch.Generator().manual_seed(3))
    whole = at_least_norms(rows)
    for count in (1, 2, 3, 7, 10, 11, 16, 33, 69):
        assert torch.equal(at_least_norms(rows[:count]), whole[:count])
        assert torch.equal(at_least_norms(rows[-count:]), whole[-count:])


def test_factors_have_no_step_that_a_last_digit_could_decide() -> None:
    norms = 1e20 * torch.tensor([0.5, 1 - 1e-15, 1, 1 + 1e-15, 1.5, 2 - 1e-12, 2, 3, torch.inf, torch.nan]).double()
    found = clip_factors(norms, 1.0) * norms
    assert torch.allclose(found[:8], torch.tensor([1, 1, 1, 1, 0.5, 0, 0, 0]).double(), atol=1e-11)
    assert clip_factors(norms, 1.0)[8:].tolist() == [0, 0]

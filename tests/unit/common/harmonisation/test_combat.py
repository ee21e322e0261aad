"""ComBat from sums equals ComBat on all cases at one place, written out from the paper; what cannot be told is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.common.base.errors import RunError
from fedgraft.common.harmonisation.combat import common_from_sums, site_effects, sum_shapes, sums_of
from fedgraft.common.harmonisation.layer import HarmoniseColumns
from helpers.harmonised import Floats, pooled_combat

SIZES = (25, 60, 9)
COLUMNS = 12
NAMES = ["age", "sex: m"]


def sites(seed: int = 0) -> list[tuple[Floats, Floats]]:
    """Values (N, p) and covariates (N, 2) by site: older people, more men and other scanners at each next one."""
    rng = np.random.default_rng(seed)
    slopes = rng.normal(size=(2, COLUMNS)) * [[0.1], [2.0]]
    found = []
    for number, size in enumerate(SIZES):
        age = rng.normal(50 + 8 * number, 9, size)
        man = (rng.uniform(size=size) < 0.2 + 0.3 * number).astype(float)
        shift, factor = rng.normal(number, 2, COLUMNS), rng.uniform(0.5, 1.5 + number, COLUMNS)
        covariates = np.column_stack([age, man])
        found.append((100 + covariates @ slopes + shift + factor * rng.normal(size=(size, COLUMNS)), covariates))
    return found


def added(data: list[tuple[Floats, Floats]]) -> dict[str, Floats]:
    sums = [sums_of(*own) for own in data]
    return {key: np.sum([own[key] for own in sums], axis=0) for key in sums[0]}


def expected(common: dict[str, Floats], covariates: Floats) -> Floats:
    level = np.tile(common["level"], (len(covariates), 1))
    return level + (covariates - common["centre"]) @ common["slopes"].T if "slopes" in common else level


def from_sums(data: list[tuple[Floats, Floats]]) -> list[Floats]:
    common = common_from_sums(added(data), NAMES)
    found = []
    for values, covariates in data:
        mean = expected(common, covariates)
        effects = site_effects(values, mean, common["spread"])
        assert effects.told.all()
        found.append(mean + (values - mean - effects.shift) / effects.factor)
    return found


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("with_covariates", [True, False])
def test_it_equals_combat_on_all_cases_at_one_place(with_covariates: bool, missing: bool) -> None:
    """Sites of uneven size, whose patients differ in the covariates; cells and covariates missing here and there."""
    data = sites()
    if missing:
        rng = np.random.default_rng(9)
        for values, covariates in data:
            values[rng.uniform(size=values.shape) < 0.1] = np.nan
            covariates[rng.integers(len(covariates)), 0] = np.nan
    if not with_covariates:
        data = [(values, covariates[:, :0]) for values, covariates in data]
    for found, wanted in zip(from_sums(data), pooled_combat(data), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)
    shapes = {key: (array.shape, array.dtype.name) for key, array in added(data).items()}
    assert shapes == sum_shapes(COLUMNS, data[0][1].shape[1])


def test_a_site_with_few_or_equal_values_is_left_as_it_is_and_the_others_are_not() -> None:
    data = sites()
    lone, second = data[2][0][:1].copy(), data[1][0].copy()
    second[:, 3], second[1:, 4], second[:, 5] = 7.0, np.nan, np.nan
    data = [data[0], (second, data[1][1]), (lone, data[2][1][:1])]
    common = common_from_sums(added(data), NAMES)
    _, two, one = (site_effects(y, expected(common, x), common["spread"]) for y, x in data)
    assert not one.told.any()
    assert (one.shift == 0).all()
    assert (one.factor == 1).all()
    assert np.flatnonzero(~two.told).tolist() == [3, 4, 5]
    assert (two.factor[[0, 1, 2]] != 1).all()
    assert np.isfinite([*two.shift, *two.factor]).all()
    nobody = site_effects(lone[:0], expected(common, data[2][1][:0]), common["spread"])
    assert not nobody.told.any()


def test_a_single_column_or_a_single_site_is_no_error() -> None:
    data = [(y[:, :1], x) for y, x in sites()]
    common = common_from_sums(added(data), NAMES)
    y, x = data[0]
    z = (y - expected(common, x)) / common["spread"]
    effects = site_effects(y, expected(common, x), common["spread"])
    assert effects.shift == pytest.approx(z.mean() * common["spread"], rel=1e-12)
    assert effects.factor == pytest.approx(z.std(ddof=1), rel=1e-12)
    alone = common_from_sums(sums_of(*sites()[0]), NAMES)
    assert not site_effects(sites()[0][0], expected(alone, sites()[0][1]), alone["spread"]).told.any()


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (lambda site, x: np.full(len(x), float(site)), "age is the same for all cases of each site"),
        (lambda _, x: 3 * x[:, 1] + 1, "age, sex: m follow from each other within the sites"),
    ],
)
def test_a_covariate_that_cannot_be_told_from_the_sites_is_named(column: Any, words: str) -> None:
    data = sites()
    for number, (_, x) in enumerate(data):
        x[:, 0] = column(number, x)
    with pytest.raises(RunError, match=words) as refused:
        common_from_sums(added(data), NAMES)
    assert "input.harmonise.covariates" in str(refused.value)


def test_a_covariate_that_is_constant_at_one_site_is_told_from_the_others() -> None:
    data = sites()
    data[0][1][:, 0] = 60.0
    for found, wanted in zip(from_sums(data), pooled_combat(data), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("lie", [{"squares": -1.0}, {"sites": 1e6}, {"products": -1e3}, {"cross": 1e9}])
def test_sums_that_no_cases_have_are_no_numbers_to_work_with(lie: dict[str, float]) -> None:
    sums = added(sites())
    for key, amount in lie.items():
        sums[key] = sums[key] + amount if amount > 0 else sums[key] * amount
    with pytest.raises(ValueError, match="no cases"):
        common_from_sums(sums)


def test_the_layer_adjusts_by_numbers_and_words_and_leaves_what_is_missing() -> None:
    """Columns: value, age, other; then sex f, m, of which f is the first word."""
    layer = HarmoniseColumns(5, [0, 2], [(1, 2), (3, 5)])
    rows = torch.tensor([[10.0, 50, 1, 0, 1], [float("nan"), 40, 2, 1, 0], [12, float("nan"), 3, 0, 0]])
    assert torch.equal(layer(rows).nan_to_num(-1), rows.nan_to_num(-1))
    assert layer.covariates(rows).nan_to_num(-1).tolist() == [[50, 1], [40, 0], [-1, -1]]
    layer.level.copy_(torch.tensor([9.0, 2.0]))
    assert layer.slopes is not None
    assert layer.centre is not None
    layer.slopes.copy_(torch.tensor([[0.1, 2.0], [0, 0]]))
    layer.centre.copy_(torch.tensor([45.0, 0.5]))
    layer.shift.copy_(torch.tensor([1.0, 0]))
    layer.factor.copy_(torch.tensor([2.0, 1]))
    # 9 + 0.5 + 1 = 10.5 is expected of the first; of the third, of whom nothing is known, the level, 9.
    wanted = torch.tensor([[10.5 + (10 - 10.5 - 1) / 2, 50, 1, 0, 1], [-1, 40, 2, 1, 0], [9 + 2 / 2, -1, 3, 0, 0]])
    assert torch.allclose(layer(rows).nan_to_num(-1), wanted)

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from fedgraft.common.closed_form.closed_form import ridge_head, standard_scale


def sums(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    z = np.hstack([features, np.ones((len(features), 1))])
    return z.T @ z, z.T @ np.eye(classes)[labels]


def test_the_federated_solution_is_the_pooled_one():
    rng = np.random.default_rng(3)
    features = rng.normal(5, 3, (400, 24)) * rng.uniform(0.01, 20, 24)
    labels = rng.integers(0, 3, 400)
    cuts = [0, 7, 40, 41, 290, 400]
    parts = [sums(features[a:b], labels[a:b], 3) for a, b in pairwise(cuts)]
    gram, cross = sum(g for g, _ in parts), sum(c for _, c in parts)
    federated = ridge_head(gram, cross, 0.1)
    pooled = ridge_head(*sums(features, labels, 3), 0.1)
    for ours, theirs in zip(federated, pooled, strict=True):
        assert np.abs(ours - theirs).max() < 1e-10


def test_it_is_what_scikit_learn_solves_on_standardised_features():
    rng = np.random.default_rng(4)
    features = rng.normal(2, 4, (150, 10))
    labels = rng.integers(0, 4, 150)
    weight, bias = ridge_head(*sums(features, labels, 4), ridge_penalty=0.3)
    scaler = StandardScaler().fit(features)
    twin = Ridge(alpha=0.3 * len(features)).fit(scaler.transform(features), np.eye(4)[labels])
    expected = twin.predict(scaler.transform(features))
    assert np.abs(features @ weight.T + bias - expected).max() < 1e-10


def test_a_feature_without_spread_does_no_harm():
    rng = np.random.default_rng(5)
    features = rng.normal(size=(60, 4))
    features[:, 2] = 7.5
    labels = rng.integers(0, 2, 60)
    weight, bias = ridge_head(*sums(features, labels, 2), 0.1)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()
    assert (weight[:, 2] == 0).all()


@given(st.integers(0, 10_000), st.integers(2, 60), st.floats(0.0, 0.7))
@settings(max_examples=40, deadline=None)
def test_scale_from_sums_is_that_of_the_known_values(seed: int, rows: int, gone: float):
    rng = np.random.default_rng(seed)
    table = rng.normal(rng.uniform(-100, 100), rng.uniform(0.1, 50), (rows, 3))
    table[rng.random(table.shape) < gone] = np.nan
    known = ~np.isnan(table)
    mean, std = standard_scale(known.sum(0), np.nansum(table, 0), np.nansum(table**2, 0))
    for column in range(3):
        values = table[known[:, column], column]
        if len(values):
            assert mean[column] == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
        if len(values) > 1 and values.std() > 1e-3:
            assert std[column] == pytest.approx(values.std(), rel=1e-6)


def test_a_constant_or_empty_column_is_left_as_it_is():
    mean, std = standard_scale(np.array([4.0, 0.0]), np.array([12.0, 0.0]), np.array([36.0, 0.0]))
    assert mean.tolist() == [3.0, 0.0]
    assert std.tolist() == [1.0, 1.0]

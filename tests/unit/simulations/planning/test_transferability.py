"""LogME and H-score from sums are those of the cases themselves, and rank features as they deserve."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from fedgraft.simulations.planning.transferability import h_score, log_me


def sums(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    z = np.hstack([features, np.ones((len(features), 1))])
    return z.T @ z, z.T @ np.eye(classes)[labels]


def evidence(gram: np.ndarray, cross: np.ndarray) -> float:
    """LogME of one-hot labels, whose squares are themselves."""
    return log_me(gram, cross, cross[-1])


def cases(skill: float, n: int = 60, dim: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    centres = rng.normal(size=(3, dim))
    return rng.normal(size=(n, dim)) + skill * centres[labels], labels


@pytest.mark.parametrize(("n", "dim"), [(60, 5), (12, 20)])
def test_log_me_is_the_largest_evidence(n: int, dim: int) -> None:
    """Against a direct search over the marginal likelihood of a Gaussian."""
    features, labels = cases(1.0, n, dim)
    best = []
    for label in range(3):
        y = (labels == label).astype(float)

        def minus(logs: np.ndarray, y: np.ndarray = y) -> float:
            covariance = features @ features.T / np.exp(logs[0]) + np.eye(n) / np.exp(logs[1])
            return -float(multivariate_normal.logpdf(y, np.zeros(n), covariance)) / n

        starts = [minimize(minus, start, method="Nelder-Mead") for start in ([0.0, 0.0], [3.0, 1.0], [1.0, 2.0])]
        best.append(-min(one.fun for one in starts))
    assert evidence(*sums(features, labels, 3)) == pytest.approx(np.mean(best), abs=1e-3)


def test_log_me_of_values_is_the_largest_evidence_of_them() -> None:
    """Values have squares of their own, which no other sum tells."""
    features, labels = cases(1.0)
    y = features[:, 0] + 0.5 * labels + np.random.default_rng(3).normal(size=60)
    kernel = features @ features.T

    def minus(logs: np.ndarray) -> float:
        covariance = kernel / np.exp(logs[0]) + np.eye(60) / np.exp(logs[1])
        return -float(multivariate_normal.logpdf(y, np.zeros(60), covariance)) / 60

    best = -min(minimize(minus, start, method="Nelder-Mead").fun for start in ([0.0, 0.0], [1.0, 2.0]))
    z = np.hstack([features, np.ones((60, 1))])
    assert log_me(z.T @ z, z.T @ y[:, None], np.array([y @ y])) == pytest.approx(best, abs=1e-3)


def test_h_score_by_hand() -> None:
    features, labels = cases(1.0)
    covariance = np.cov(features.T, bias=True)
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / 5 * np.eye(5)
    expected = np.stack([features[labels == label].mean(0) for label in labels])
    between = np.cov(expected.T, bias=True)
    assert h_score(*sums(features, labels, 3)) == pytest.approx(np.trace(np.linalg.inv(covariance) @ between), rel=1e-6)


def test_better_features_score_higher() -> None:
    for score in (evidence, h_score):
        values = [score(*sums(*cases(skill, 300), 3)) for skill in (0.0, 0.5, 2.0)]
        assert values == sorted(values)
        assert values[2] > values[0] + 0.1


def test_sites_add_up_to_pooled_cases() -> None:
    features, labels = cases(1.0)
    parts = [sums(features[part], labels[part], 3) for part in (slice(0, 20), slice(20, 60))]
    added = [one + other for one, other in zip(*parts, strict=True)]
    for score in (evidence, h_score):
        assert score(*added) == pytest.approx(score(*sums(features, labels, 3)), rel=1e-9)

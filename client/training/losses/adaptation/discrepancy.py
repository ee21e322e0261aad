"""How far two sets of features are apart: CORAL and MMD between batches, or a batch and moments that were released."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedgraft.client.training.losses.base import LossFunction, StepContext, Visit
from fedgraft.common.closed_form.moments import COVARIANCE, MEAN, FeatureMoments
from fedgraft.common.study.stages.losses import Discrepancy

_WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the kernels, as multiples of the mean squared distance between all cases."""


def discrepancy_loss(spec: Discrepancy, visit: Visit) -> LossFunction:
    """The distance that `spec.measure` names, as a function of a step's features."""
    if spec.measure == "moments":
        released = visit.visit_context.came.get("", FeatureMoments)
        assert released is not None  # it came, or the instruction was refused
        mean, covariance = (visit.tensor(released.moments[name]) for name in (MEAN, COVARIANCE))
        return lambda step_context: to_moments(_features(step_context.target.features), mean, covariance)
    return _between({"coral": coral, "mmd": mmd}[spec.measure])


def _between(distance: Callable[[Tensor, Tensor], Tensor]) -> LossFunction:
    def loss(step_context: StepContext) -> Tensor:
        assert step_context.source is not None
        return distance(_features(step_context.source.features), _features(step_context.target.features))

    return loss


def coral(x: Tensor, y: Tensor) -> Tensor:
    """|C_x - C_y|^2 / (4 d^2), with the covariances C of the rows (Sun and Saenko 2016, equation 1)."""
    return _gap(_covariance(x), _covariance(y))


def to_moments(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """|m_x - m|^2 / d + |C_x - C|^2 / (4 d^2): mean and covariance of the rows against given ones."""
    return (x.mean(dim=0) - mean).square().mean() + _gap(_covariance(x), covariance)


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """The squared maximum mean discrepancy under a mean of Gaussian kernels: at least 0, and 0 for equal sets.

    Gretton et al. 2012, the biased estimate; the kernels' widths follow the batch (Long et al. 2015).
    """
    both = torch.cat([x, y])
    squared = torch.cdist(both, both).square()
    width = squared.detach().mean().clamp(min=1e-12)
    kernel = torch.stack([(-squared / (factor * width)).exp() for factor in _WIDTHS]).mean(dim=0)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    return centred.T @ centred / max(len(x) - 1, 1)


def _gap(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().sum() / (4 * len(one) ** 2)


def _features(found: Tensor | None) -> Tensor:
    assert found is not None
    return found.float()

"""Shortcuts for masks, as controls, counted and not trained: where findings usually lie, or how bright they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.training.model.errors import TooFewCases
from fedgraft.client.training.model.evaluate import BATCH, Predictions, nothing, of_masks
from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Segmentation
from fedgraft.simulations.compare.question import Shortcut

_SHADES, _CUTS = 64, 33
_LEAST, _PRIOR = 1e-6, 2.0
"""How many cases or pixels of the mean share are added to each count: a shade that was never seen says nothing."""


class MaskControl:
    """One shortcut for one task, from the training cases of a cohort whose mask is known.

    `mean_mask` knows of each pixel in how many of these masks it lies, `mean_shade` of each of 64 shades what share of
    its pixels lies in masks. A pixel is inside where that share is above the one by which the training masks' Dice is
    best: shares of rare findings are small everywhere, and a cut at one half would leave a control that anything beats.
    """

    def __init__(self, kind: Shortcut, task: str, loader: Loader) -> None:
        """Raises TooFewCases if no mask is known."""
        self._kind, self._task = kind, task
        self._low, self._high = self._ends(loader)
        inside, counted = torch.zeros(()), torch.zeros(())
        for x, mask in self._training(loader):
            own, of = self._counts(x, mask)
            inside, counted = inside + own, counted + of
        mean = float(inside.sum() / counted.expand_as(inside).sum())
        self._shares = ((inside + _PRIOR * mean) / (counted + _PRIOR)).clamp(_LEAST, 1 - _LEAST)
        levels = torch.linspace(0, 1, _CUTS, dtype=torch.float64)
        cuts = torch.unique(torch.quantile(self._shares.flatten().double(), levels))
        self._cut = float(cuts[self._dice(loader, cuts).argmax()])

    def logits(self, x: Tensor) -> Tensor:
        """Of images (N, C, H, W) as the model takes them: above 0 where a pixel is inside, (N, H, W)."""
        return torch.logit(self._said(x)) - torch.logit(torch.tensor(self._cut, dtype=torch.float64))

    def _training(self, loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader.batches(in_order(loader.labelled("train"), BATCH)):
            target = batch.targets[self._task]
            known = target[:, 0, 0] >= 0
            if known.any():
                yield batch.inputs[known], target[known] == 1

    def _ends(self, loader: Loader) -> tuple[float, float]:
        ends = [(float(shades.min()), float(shades.max())) for x, _ in self._training(loader) for shades in [x.mean(1)]]
        if not ends:
            raise TooFewCases
        return min(low for low, _ in ends), max(high for _, high in ends)

    def _counts(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """How many cases, or pixels, are inside, and how many there are: of each pixel, or of each shade."""
        if self._kind == "mean_mask":
            return mask.double().sum(0), torch.tensor(float(len(mask)), dtype=torch.float64)
        shades = self._shades(x).flatten()
        count = torch.bincount(shades, minlength=_SHADES).double()
        return torch.bincount(shades, mask.flatten().double(), minlength=_SHADES), count

    def _shades(self, x: Tensor) -> Tensor:
        place = (x.mean(1).double() - self._low) / max(self._high - self._low, 1e-12)
        return (place * _SHADES).long().clamp(0, _SHADES - 1)

    def _said(self, x: Tensor) -> Tensor:
        return self._shares.expand(len(x), -1, -1) if self._kind == "mean_mask" else self._shares[self._shades(x)]

    def _dice(self, loader: Loader, cuts: Tensor) -> Tensor:
        """By cut the sum of the training findings' Dice."""
        total = torch.zeros(len(cuts), dtype=torch.float64)
        for x, mask in self._training(loader):
            shares, true = self._said(x), mask.sum((1, 2))
            for at, cut in enumerate(cuts):
                guess = shares > cut
                dice = 2 * (guess & mask).sum((1, 2)) / (guess.sum((1, 2)) + true).clamp(min=1)
                total[at] += dice[true > 0].sum()
        return total


def shortcut_predictions(kind: Shortcut, study: Study, trainer: Cohort, cohorts: list[Cohort]) -> list[Predictions]:
    """What a shortcut from `trainer`'s training cases says of each cohort's test cases, in order; of masks alone.

    Raises TooFewCases if it has no mask to learn from.
    """
    cpu = torch.device("cpu")
    own = Loader(trainer, study.input, cpu)
    found: list[dict[str, tuple[np.ndarray, np.ndarray]]] = [{} for _ in cohorts]
    for task in study.tasks:
        if isinstance(task, Segmentation):
            control = MaskControl(kind, task.name, own)
            for said, cohort in zip(found, cohorts, strict=True):
                said[task.name] = _asked(control, task, Loader(cohort, study.input, cpu), study.evaluate.metrics)
    return list(found)


def _asked(
    control: MaskControl, task: Segmentation, loader: Loader, metrics: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    parts = [nothing(task, metrics)]
    for batch in loader.batches(in_order(loader.labelled("test"), BATCH)):
        spacings = loader.spacings[batch.indices].numpy()
        target = batch.targets[task.name].numpy()
        parts.append(of_masks(task, control.logits(batch.inputs).numpy(), target, (spacings, metrics)))
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([targets for _, targets in parts])

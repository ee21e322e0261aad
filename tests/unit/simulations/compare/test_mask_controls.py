"""Controls for masks against twins that count pixel by pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.training.model.errors import TooFewCases
from fedgraft.common.metrics.sums.mask_metrics import dice
from fedgraft.common.study.study import Study
from fedgraft.simulations.compare.running.mask_controls import shortcut_predictions
from helpers.work import MakeStudy, cohort

SIZE, CASES = 16, 24


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    given = {"kind": "image", "size": SIZE, "normalise": "fixed", "mean": [0.5], "std": [0.25]}
    return make_study(tasks=[{"name": "lesion", "kind": "segmentation"}], input=given)


def drawn(place: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Shades and masks, (cases, 16, 16): where a mask lies tells it by its `place`, or else by how bright it is.

    A finding is small and in a third of the images that have one at all, so that no share comes near one half.
    """
    draw = np.random.default_rng(seed)
    shades = draw.integers(-20000, 0, (CASES, SIZE, SIZE)).astype(np.int16)
    masks = np.zeros((CASES, SIZE, SIZE), np.int64)
    for at in range(0, CASES, 3):
        row, column = (5, 7) if place else draw.integers(0, SIZE - 3, 2)
        masks[at, row : row + 3, column : column + 3] = 1
        if not place:
            shades[at][masks[at] == 1] = draw.integers(15000, 20000, 9)
    return shades, masks


def of(shades: np.ndarray, masks: np.ndarray) -> Cohort:
    """The first half is for training, the other for testing."""
    half = len(shades) // 2
    made = cohort(torch.from_numpy(shades)[:, None], {"lesion": torch.from_numpy(masks)})
    splits = {"train": torch.arange(half), "val": torch.arange(0), "test": torch.arange(half, len(shades))}
    return replace(made, splits=splits)


def twin(shares: np.ndarray, masks: np.ndarray, cuts: np.ndarray) -> float:
    """The cut whose masks have the best Dice over findings, one pixel after the other."""
    best, chosen = -1.0, 0.0
    for cut in cuts:
        total = 0.0
        for share, mask in zip(shares, masks, strict=True):
            if mask.any():
                guess = share > cut
                total += 2 * int((guess & (mask == 1)).sum()) / (int(guess.sum()) + int(mask.sum()))
        if total > best:
            best, chosen = total, float(cut)
    return chosen


def test_a_mean_mask_is_where_findings_lie_cut_where_dice_is_best(study: Study) -> None:
    shades, masks = drawn(place=True)
    (said,) = shortcut_predictions("mean_mask", study, made := of(shades, masks), [made])
    half = CASES // 2
    shares = (masks[:half].sum(0) + 2 * masks[:half].mean()) / (half + 2)
    cut = twin(np.broadcast_to(shares, masks[:half].shape), masks[:half], np.unique(shares))
    assert shares.max() < 0.5, "a cut at one half would say nothing anywhere"
    rows, targets = said["lesion"]
    assert rows[:, 1].tolist() == [float((shares > cut).sum())] * half
    found = rows[:, 2] > 0
    np.testing.assert_allclose(dice(rows)[found], 1.0)
    assert targets.tolist() == [0] * half


def test_a_mean_shade_is_how_bright_findings_are_wherever_they_lie(study: Study) -> None:
    shades, masks = drawn(place=False)
    (said,) = shortcut_predictions("mean_shade", study, made := of(shades, masks), [made])
    rows, _ = said["lesion"]
    found = rows[:, 2] > 0
    assert dice(rows)[found].mean() > 0.9
    (other,) = shortcut_predictions("mean_mask", study, made, [made])
    assert dice(other["lesion"][0])[found].mean() < 0.3, "it looks at no image"


def test_test_cases_teach_nothing_and_unknown_masks_are_none(study: Study) -> None:
    shades, masks = drawn(place=True)
    half = CASES // 2
    (said,) = shortcut_predictions("mean_mask", study, made := of(shades, masks), [made])
    masks[half:] = np.roll(masks[half:], 5, axis=2)
    (moved,) = shortcut_predictions("mean_mask", study, made := of(shades, masks), [made])
    assert moved["lesion"][0][:, 1].tolist() == said["lesion"][0][:, 1].tolist()
    assert dice(moved["lesion"][0]).tolist() != dice(said["lesion"][0]).tolist()
    masks[:half] = -1
    with pytest.raises(TooFewCases):
        shortcut_predictions("mean_mask", study, of(shades, masks), [made])

"""Mergeable sums for masks: Dice, Hausdorff-95 in mm, findings missed and false alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.sums.hausdorff import hausdorff_95
from fedgraft.common.metrics.sums.more import WithMore
from fedgraft.common.metrics.sums.sum_arrays import (
    agree,
    count,
    exactly,
    ratio,
    total,
)
from fedgraft.common.study.tasks import UNKNOWN

Floats = NDArray[np.float64]

COLUMNS = ("both", "predicted", "true", "distance_mm", "loss")
"""Of one image: pixels inside both masks, inside the predicted, inside the true; Hausdorff-95 (NaN); and the loss."""

_COUNTS = ("cases", "findings", "missed", "alarms", "distances", "both", "predicted", "true")
_UNTOLD = _COUNTS[2:]
"""What noised and coarse sums do not tell."""
_SUMS = ("dice", "distance_mm", "loss")
_MOST_PIXELS = 1024 * 1024
_LARGEST_MM = 1e5
_SLACK = 1e-9


def mask_rows(logits: NDArray[Any], targets: NDArray[Any], spacings_mm: NDArray[Any]) -> Floats:
    """What counts of each image, (N, 5) as `COLUMNS` says, of logits (N, H, W) and targets (N, H, W).

    A pixel is predicted to be inside where its logit is above 0. `spacings_mm` (N,) is 0 where it is not known. An
    image whose mask is not known gives a row of NaN.
    """
    rows = np.full((len(logits), len(COLUMNS)), np.nan)
    for at in np.flatnonzero(targets[:, 0, 0] != UNKNOWN):
        score, true = logits[at].astype(np.float64), targets[at] == 1
        guess = score > 0
        loss = float((np.logaddexp(0, score) - score * true).mean())
        distance = hausdorff_95(guess, true, float(spacings_mm[at]))
        rows[at] = (int((guess & true).sum()), int(guess.sum()), int(true.sum()), distance, loss)
    return rows


def dice(rows: Floats) -> Floats:
    """The Dice coefficient of each image, 2 both / (predicted + true), (N,); 1 if both masks are empty."""
    whole = rows[:, 1] + rows[:, 2]
    return np.where(whole > 0, 2 * rows[:, 0] / np.maximum(whole, 1), 1.0)


@dataclass(frozen=True, eq=False)
class MaskSums(WithMore):
    """All that is needed of one task's predicted masks; `+` is exact for counts.

    `cases` are images with a known mask, `findings` those whose mask is not empty; `missed` of them have an empty
    prediction, and `alarms` are predictions that are not where there is no finding. `both`, `predicted` and `true`
    count pixels. `dice` is the sum over findings of their Dice coefficients, `distance_mm` that of `distances`
    Hausdorff-95, `loss` that of the mean binary cross-entropy per pixel, in nats. Of noised sums only findings and dice
    are known (and cases are findings).
    """

    cases: int
    findings: int
    missed: int
    alarms: int
    distances: int
    both: int
    predicted: int
    true: int
    dice: float
    distance_mm: float
    loss: float

    @property
    def n(self) -> int:
        """Number of images with a known mask."""
        return self.cases

    @classmethod
    def zero(cls) -> MaskSums:
        """The sums over no images: what `+` begins with."""
        return cls(0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0)

    @classmethod
    def of(cls, rows: Floats) -> MaskSums:
        """Sums over rows (N, 5 or more), whose first columns `COLUMNS` says; rows of NaN are left out."""
        if rows.ndim != 2 or rows.shape[1] < len(COLUMNS):
            raise InputError(f"Metrics of rows {rows.shape}: shapes do not fit.")
        rows = rows[~np.isnan(rows[:, 0])]
        there, drawn = rows[:, 2] > 0, rows[:, 1] > 0
        both, predicted, true = (int(rows[:, at].sum()) for at in range(3))
        return cls(
            cases=len(rows),
            findings=int(there.sum()),
            missed=int((there & ~drawn).sum()),
            alarms=int((~there & drawn).sum()),
            distances=int((~np.isnan(rows[:, 3])).sum()),
            both=both,
            predicted=predicted,
            true=true,
            dice=float(dice(rows)[there].sum()),
            distance_mm=float(np.nansum(rows[:, 3])),
            loss=float(rows[:, 4].sum()),
        )

    def __add__(self, other: MaskSums) -> MaskSums:
        both = {key: getattr(self, key) + getattr(other, key) for key in (*_COUNTS, *_SUMS)}
        if math.isnan(both["loss"]):  # what one of them does not say is not known of both together
            both |= dict.fromkeys(_UNTOLD, 0)
        return MaskSums(**both)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The sums as arrays (1,) by name, as `from_arrays` takes them."""
        counts = {key: np.array([getattr(self, key)], np.int64) for key in _COUNTS}
        return counts | {key: np.array([getattr(self, key)]) for key in _SUMS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> MaskSums:
        """From `arrays`, or from the same as lists; InputError for anything that no predictions could have given."""
        exactly(arrays, {*_COUNTS, *_SUMS}, "masks")
        counts = {key: int(count(arrays, key)[0]) for key in _COUNTS}
        floats = {key: float(total(arrays, key)[0]) for key in _SUMS}
        sums = cls(*(counts[key] for key in _COUNTS), *(floats[key] for key in _SUMS))
        hidden = [math.isnan(floats[key]) for key in ("distance_mm", "loss")]
        if math.isnan(sums.dice) or any(hidden) != all(hidden):
            raise InputError("Metric sums: what is said to be unknown is not that of masks.")
        found, drawn = sums.findings - sums.missed, sums.findings - sums.missed + sums.alarms
        agree(
            {
                "findings": sums.findings > sums.cases,
                "missed findings": sums.missed > sums.findings,
                "false alarms": sums.alarms > sums.cases - sums.findings,
                "distances": sums.distances > found or sums.distance_mm > sums.distances * _LARGEST_MM,
                "Dice coefficients": sums.dice > found * (1 + _SLACK),
                "losses": sums.cases == 0 and sums.loss > 0,
            }
        )
        if any(hidden):
            agree({"what is not told": any(counts[key] for key in _UNTOLD)})
            return sums
        agree(
            {
                "pixels of both masks": sums.both > min(sums.predicted, sums.true),
                "pixels of findings": not sums.findings <= sums.true <= sums.findings * _MOST_PIXELS,
                "predicted pixels": not drawn <= sums.predicted <= drawn * _MOST_PIXELS,
            }
        )
        return sums

    def values(self) -> dict[str, float | None]:
        """The metrics by name, plus `n`.

        dice is the mean over images with a finding, dice_pooled that of all their pixels together; hd95_mm the mean
        over images where both masks are not empty and the size of pixels is known; missed is the share of findings of
        which nothing was drawn, alarms that of images without one where something was; loss in nats per pixel.
        """
        told = not math.isnan(self.loss)
        return {
            "n": self.cases,
            "dice": ratio(self.dice, self.findings),
            "dice_pooled": ratio(2 * self.both, self.predicted + self.true) if told else None,
            "hd95_mm": ratio(self.distance_mm, self.distances),
            "missed": ratio(self.missed, self.findings) if told else None,
            "alarms": ratio(self.alarms, self.cases - self.findings) if told else None,
            "loss": ratio(self.loss, self.cases),
        }

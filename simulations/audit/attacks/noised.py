"""Noised sums under attack: is the noise what it is said to be, and does one patient change no more than that hides?

The site's own functions work on made-up patients. Without any patient what comes out is noise alone; with noise too
small to be seen, what comes out is the sums, with one patient and without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from fedgraft.client.attacks.attack_target import CPU
from fedgraft.client.attacks.measurement import Measurement
from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.privacy.dp.dp_statistics import (
    CONSTANT,
    bound,
    columns_bound,
    exits_bound,
    noised_columns,
    noised_exits,
    noised_sums,
)
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.survival import survival_sums
from fedgraft.common.closed_form.survival import EXITS, survival_of
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.plan import Stage, Statistics
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.stages.survival import Survival
from fedgraft.common.study.study import Study
from fedgraft.simulations.audit.findings import AttackAttempt

_PATIENTS, _LEFT_OUT, _QUIET = 24, 8, 1e-9
_LEAST = 3_000
"""So many numbers of noise at least: their deviation is then known to some 1.3 %."""
_OFF = 0.07


@dataclass(frozen=True)
class _Sums:
    """A stage of noised sums at a made-up site of images with features, or of a table."""

    study: Study
    stage: Stage
    noise_multiplier: float
    seed: int

    def released(self, patients: int, noise_multiplier: float, gone: int = -1) -> NDArray[np.float64]:
        """All numbers that leave, in the units of the noise and each once, flat; without the patient `gone`."""
        if self._survival is not None:
            return self._exits(self._survival, patients, noise_multiplier, gone)
        local_model, draw = LocalModel(self.study, CPU), torch.Generator().manual_seed(self.seed)
        two = torch.arange(2 * _PATIENTS) // 2  # cases of each patient
        kept = ((two < patients) & (two != gone)).nonzero()[:, 0]
        names = tuple(map(str, two.tolist()))
        asked = self._private.model_copy(update={"noise_multiplier": noise_multiplier, "epsilon": None})
        columns, spec = self._columns, self.study.input
        width = columns.width if columns is not None else local_model.model.feature_dim
        inputs = 1e3 * torch.randn(len(two), width, generator=draw)
        targets = {task.name: two % task.outputs for task in self.study.tasks}
        splits = {"train": kept, "val": kept[:0], "test": kept[:0]}
        shown = inputs if columns is not None else torch.zeros(len(two), 1)
        feed = Cohort("audit", shown, targets, names, splits, (), {})
        loader = Loader(feed, spec if columns is not None else TableInput(numeric=("a",)), CPU)
        if columns is not None:
            found = noised_columns(columns, loader, names, asked)
            count, total, squares = (found[key][: len(columns.numeric)] for key in ("count", "sum", "squares"))
            return np.concatenate([count * CONSTANT, total, squares - count * CONSTANT])
        found = noised_sums(local_model, loader.through(inputs), names, asked)
        back = np.append(np.full(width, asked.max_norm), 1 / CONSTANT)
        parts = []
        for task in self.study.tasks:
            gram, cross = found[f"{task.name}/gram"] / np.outer(back, back), found[f"{task.name}/cross"] / back[:, None]
            upper = np.triu_indices(len(gram), 1)  # each is the mean of two, so that it has half of the variance
            parts += [np.diag(gram), gram[upper] * math.sqrt(2), cross.ravel()]
        return np.concatenate(parts)

    def _exits(self, spec: Survival, patients: int, noise_multiplier: float, gone: int) -> NDArray[np.float64]:
        """Those of counts of who left when; each patient has two cases, the second of which is the last."""
        times = 2 * max(spec.ends) * torch.rand(2 * _PATIENTS, generator=torch.Generator().manual_seed(self.seed))
        two = torch.arange(2 * _PATIENTS) // 2
        kept = ((two < patients) & (two != gone)).nonzero()[:, 0]
        targets = {task.name: (two % task.outputs)[kept] for task in self.study.tasks} | {spec.time: times[kept]}
        names = tuple(map(str, two[kept].tolist()))
        feed = Cohort("audit", torch.zeros(len(kept), 1), targets, names, {"train": torch.arange(len(kept))}, (), {})
        loader = Loader(feed, TableInput(numeric=("a",)), CPU)
        exits = survival_sums(spec, self.study, loader, names)[EXITS]
        asked = self._private.model_copy(update={"noise_multiplier": noise_multiplier, "epsilon": None})
        return noised_exits(exits, asked)[EXITS].ravel()

    @property
    def _survival(self) -> Survival | None:
        return survival_of(self.stage)

    @property
    def _private(self) -> PrivateSums:
        assert isinstance(self.stage.local, Statistics)
        assert self.stage.local.private is not None
        return self.stage.local.private

    @property
    def _columns(self) -> TableInput | None:
        spec = self.study.input
        assert isinstance(self.stage.local, Statistics)
        return spec if self.stage.local.of == "columns" and isinstance(spec, TableInput) else None

    @property
    def _bound(self) -> float:
        """What one patient may change, all numbers together."""
        columns = self._columns
        if self._survival is not None:
            return exits_bound(self._private.unit)
        return bound(len(self.study.tasks)) if columns is None else columns_bound(len(columns.numeric))

    def noise(self) -> Measurement:
        """How far the noise's deviation is from what the accountant supposes."""
        drawn: list[NDArray[np.float64]] = []
        while sum(map(len, drawn)) < _LEAST:
            drawn.append(self.released(0, self.noise_multiplier))
        share = float(np.concatenate(drawn).std()) / (self.noise_multiplier * self._bound)
        again = repeats(drawn[0], self.released(0, self.noise_multiplier))
        words = f"noise of {share:.3f} times what is said{', and the same again' if again else ''}"
        return Measurement(math.inf if again else max(0.0, 1 - share), _OFF, words)

    def sensitivity(self) -> Measurement:
        """The most that a patient changes, in units of what the noise is for."""
        whole = self.released(_PATIENTS, _QUIET)
        most = max(
            float(np.linalg.norm(whole - self.released(_PATIENTS, _QUIET, gone))) / self._bound
            for gone in range(_LEFT_OUT)
        )
        return Measurement(most, 1.001, f"one patient changes all sums by at most {most:.3f} of what noise hides")


def repeats(noise: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two draws of noise are the same in more places than chance makes: one, and one more of 10,000.

    Noise lies on a grid (see `privacy.dp.noise`): sound draws agree in one place of 60 million, and a release of a wide
    network has millions of places.
    """
    return int(np.count_nonzero(noise == other)) > 1 + len(noise) // 10_000


def sums_under_attack(study: Study, stage: Stage, noise_multiplier: float, seed: int) -> Iterator[AttackAttempt]:
    """The attacks on one stage of noised sums, yet to be carried out."""
    target = _Sums(study, stage, noise_multiplier, seed)
    yield AttackAttempt(stage.name, "noise of sums", "noise is what the accountant supposes", partial(target.noise))
    yield AttackAttempt(stage.name, "one patient in sums", "sums hide every patient", partial(target.sensitivity))

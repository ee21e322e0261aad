"""ComBat at a site: the sums that it sends, and the effects of its own that it takes out of its columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.harmonisation.combat import site_effects, sums_of
from fedgraft.common.harmonisation.layer import HarmoniseColumns
from fedgraft.common.study.plan import Role

FEWEST_PATIENTS = 10
"""Of fewer patients with a value, or who differ from the others in a covariate, nothing is in the sums."""


def harmonisation_sums(local_model: LocalModel, loader: Loader, patients: Sequence[str]) -> dict[str, np.ndarray]:
    """The sums of `combat.sums_of` over the training cases, labelled or not; `patients` are whose each case is.

    Of each column only the cases that `_counted` lets in: see FEWEST_PATIENTS.
    """
    layer, rows = layer_of(local_model), _rows(loader)
    whose = np.array(patients, dtype=object)[loader.splits["train"].cpu().numpy()]
    values, covariates = rows[:, layer.columns.cpu()].numpy().copy(), layer.covariates(rows).numpy()
    whole, groups = ~np.isnan(covariates).any(axis=1), [_groups(rows[:, slice(*span)].numpy()) for span in layer.spans]
    for column in values.T:
        column[~_counted(whole & ~np.isnan(column), groups, whose)] = np.nan
    return {**sums_of(values, covariates)}


def _groups(columns: np.ndarray) -> np.ndarray:
    """By case (N,) which word of a category it has, or which number; equal ones are a group."""
    groups: np.ndarray = columns.argmax(axis=1) if columns.shape[1] > 1 else columns[:, 0]
    return groups


def _counted(use: np.ndarray, groups: Sequence[np.ndarray], whose: np.ndarray) -> np.ndarray:
    """Which of a column's cases are in its sums: none of a few patients with a word, or with another number than all.

    A product with such a covariate would be a sum over these few. Those who are left out can leave fewer of another
    word, so that it goes on until nobody is.
    """
    left = np.flatnonzero(use)
    before = len(left) + 1
    while len(left) < before:
        before = len(left)
        for group in groups:
            left = left[~_of_few(group[left], whose[left])]
    counted = np.zeros(len(use), dtype=bool)
    counted[left] = not _few(whose[left])
    return counted


def _of_few(group: np.ndarray, whose: np.ndarray) -> np.ndarray:
    """Which cases (N,) have a word that few patients have; of numbers all but the commonest, if few have others."""
    kinds, sizes = np.unique(group, return_counts=True)
    if group.dtype.kind == "f" and len(kinds):
        others: np.ndarray = group != kinds[sizes.argmax()]
        return others & _few(whose[others])
    return np.isin(group, [kind for kind in kinds if _few(whose[group == kind])])


def _few(whose: np.ndarray) -> bool:
    return len(set(whose)) < FEWEST_PATIENTS


def harmonise(local_model: LocalModel, loader: Loader) -> tuple[dict[str, float], list[int]]:
    """Put the site's own effects, from its training cases, into the model's layer; no other entry moves.

    Gives figures, and which of the adjusted columns, by number, are left as they are for lack of different values.
    """
    layer, rows = layer_of(local_model), _rows(loader)
    level, spread = layer.level, layer.spread.double().cpu().numpy()
    with torch.no_grad():
        expected = layer.expected(rows.to(level.device)).cpu().numpy()
        effects = site_effects(rows[:, layer.columns.cpu()].numpy(), expected, spread)
        layer.shift.copy_(torch.from_numpy(effects.shift))
        layer.factor.copy_(torch.from_numpy(effects.factor))
    return {"examples": float(len(rows))}, np.flatnonzero(~effects.told).tolist()


def own_effects(local_model: LocalModel, loader: Loader) -> dict[str, np.ndarray]:
    """The entries that `harmonise` finds, of a model that has such a layer; nothing of others."""
    if _found(local_model) is None:
        return {}
    keys = [key for key, tag in local_model.tags.items() if tag.role is Role.SITE_EFFECTS]
    local_model.touched(keys)
    harmonise(local_model, loader)
    return local_model.read(keys)


def harmonised(local_model: LocalModel | None, rows: Tensor) -> Tensor:
    """Rows (N, width) as the model's layer adjusts them, or as they are where it has none."""
    layer = None if local_model is None else _found(local_model)
    if layer is None:
        return rows
    with torch.no_grad():
        adjusted: Tensor = layer(rows)
    return adjusted


def layer_of(local_model: LocalModel) -> HarmoniseColumns:
    """The layer of the study's model; that there is one is checked before the first round."""
    layer = _found(local_model)
    assert layer is not None
    return layer


def _found(local_model: LocalModel) -> HarmoniseColumns | None:
    return next((part for part in local_model.model.backbone.modules() if isinstance(part, HarmoniseColumns)), None)


def _rows(loader: Loader) -> Tensor:
    """The training cases as they are, (N, width), in float64 on the CPU."""
    (batch,) = loader.batches([loader.splits["train"]])
    return batch.inputs.double().cpu()

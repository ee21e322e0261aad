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
"""Of fewer patients with a value, or with a word of a category, nothing is in the sums: they would tell of them."""


def harmonisation_sums(local_model: LocalModel, loader: Loader, patients: Sequence[str]) -> dict[str, np.ndarray]:
    """The sums of `combat.sums_of` over the training cases, labelled or not; `patients` are whose each case is.

    Cases with a word that few patients have are left out, and then columns that few patients have: see FEWEST_PATIENTS.
    """
    layer, rows = layer_of(local_model), _rows(loader)
    whose = np.array(patients, dtype=object)[loader.splits["train"].cpu().numpy()]
    values, covariates = rows[:, layer.columns.cpu()].numpy().copy(), layer.covariates(rows).numpy().copy()
    for start, stop in layer.spans:
        if stop - start > 1:
            words = rows[:, start:stop].numpy() > 0
            rare = [word for word in range(stop - start) if _few(whose[words[:, word]])]
            covariates[words[:, rare].any(axis=1)] = np.nan
    whole = ~np.isnan(covariates).any(axis=1)
    few = [_few(whose[whole & ~np.isnan(column)]) for column in values.T]
    values[:, few] = np.nan
    return {**sums_of(values, covariates)}


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

"""Whether images are prepared as those were that the weights have learnt from."""

from __future__ import annotations

import numpy as np

from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.study import Study


def input_faults(study: Study, wanted: ImageInput) -> list[str]:
    """How the images differ from those that the weights were trained on; size and channels are adapted, values not."""
    if not isinstance(study.input, ImageInput):
        return [f"input.kind: is table, but the weights {study.model.weights} are for images"]
    own, channels = study.input, study.input.channels
    if own.normalise != wanted.normalise:
        found, trained = own.normalise, wanted.normalise
        return [f"input.normalise: is {found}, but the weights {study.model.weights} were trained with {trained}"]
    if own.normalise != "fixed":
        return []
    faults = []
    for key, values, needed in (("mean", own.mean, wanted.mean), ("std", own.std, wanted.std)):
        asked = _for_channels(needed, channels)
        if not np.allclose(np.broadcast_to(values, channels), asked, atol=1e-3):
            faults.append(
                f"input.{key}: is {list(values)}, but the weights {study.model.weights} need {asked.tolist()}"
            )
    return faults


def _for_channels(values: tuple[float, ...], channels: int) -> np.ndarray:
    """Constants for another number of channels: grey images take the mean over colours, as the stem does."""
    return np.round(np.mean(values), 3) * np.ones(1) if channels == 1 else np.broadcast_to(values, channels)

"""Which DICOM objects can be asked for, of which model. Nothing here needs highdicom."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from typing import Literal, get_args

from fedgraft.client.inference.model import LoadedModel
from fedgraft.common.base.errors import InputError
from fedgraft.common.config.suggest import instead
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.tasks import Segmentation

Kind = Literal["seg", "sr", "sc"]
_KINDS: tuple[Kind, ...] = get_args(Kind)


def kinds_of(asked: Collection[str], reader: LoadedModel, *, heat: bool) -> tuple[Kind, ...]:
    """The kinds that were asked for; InputError if one does not exist, does not fit the model, or cannot be made."""
    found = tuple(kind for kind in _KINDS if kind in asked)
    if wrong := [name for name in asked if name not in found]:
        raise InputError(f"--dicom {wrong[0]}: there is no such kind{instead(wrong[0], _KINDS)}.")
    if found and isinstance(reader.input, TableInput):
        raise InputError("--dicom is for images, and this model is for tables.", fix="Leave it out.")
    masks = [isinstance(task, Segmentation) for task in (*reader.tasks, *reader.others)]
    if "seg" in found and not any(masks):
        raise InputError("--dicom seg: the model has no task of masks.", fix="Ask for sr, or for sc with --heat.")
    if "sr" in found and all(masks):
        raise InputError("--dicom sr: the model has masks alone.", fix="Ask for seg.")
    if "sc" in found and not heat:
        raise InputError("--dicom sc: it is for heat maps.", fix="Say which: --heat cam or --heat occlusion.")
    if found and importlib.util.find_spec("highdicom") is None:
        raise InputError("--dicom needs highdicom.", fix="Install it: pip install 'fedgraft[medical]'.")
    return found

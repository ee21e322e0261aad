"""One model of a study on one device. All sites of a process share it: a visit loads the site's entries into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from common.inputs import TableInput
from common.model import TransferModel, build_model, build_table_model
from common.orders import Arrays, Digests, place
from common.plan import Tag
from common.study import Study


def make_model(study: Study) -> TransferModel:
    """The study's model with seeded random entries."""
    if isinstance(study.input, TableInput):
        return build_table_model(study.model.backbone, study.heads, study.input.width, study.seed)
    size, channels = study.input.size, study.input.channels
    return build_model(study.model.backbone, study.heads, channels=channels, seed=study.seed, size=size)


class Workbench:
    """The model, its tags, and which arrays lie in it now, so that entries that stay are not copied again."""

    def __init__(self, study: Study, device: torch.device) -> None:
        self.device = device
        self.model = make_model(study)
        self.model.to(device)
        if device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)
        self.tags: Mapping[str, Tag] = self.model.tags()
        self.digests = Digests()
        self._live = {key: value.detach() for key, value in self.model.state_dict(keep_vars=True).items()}
        self._loaded: dict[str, np.ndarray] = {}

    def load(self, arrays: Arrays) -> None:
        """Put `arrays` (all entries of the model, right shapes) into the model."""
        stale = [key for key, array in arrays.items() if not self._lies_here(key, array)]
        targets = [self._live[key] for key in stale]
        with torch.no_grad():
            for target, key in zip(targets, stale, strict=True):
                target.copy_(torch.from_numpy(_writable(arrays[key])))
        self._loaded.update({key: arrays[key] for key in stale})

    def fits(self, arrays: Arrays) -> bool:
        """Whether every array has a place in the model, of the same shape and type."""
        return all(
            key in self._live
            and tuple(self._live[key].shape) == array.shape
            and str(self._live[key].dtype) == f"torch.{array.dtype.name}"
            for key, array in arrays.items()
        )

    def read(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Copies of the model's entries."""
        return {key: self._live[key].cpu().numpy().copy() for key in keys}

    def finite(self, keys: Iterable[str]) -> bool:
        """Whether the model's entries `keys` hold neither NaN nor infinity."""
        return bool(torch.stack([self._live[key].isfinite().all() for key in keys]).all())

    def touched(self, keys: Iterable[str]) -> None:
        """Say that the model's entries `keys` no longer hold what was loaded."""
        for key in keys:
            self._loaded.pop(key, None)

    def _lies_here(self, key: str, array: np.ndarray) -> bool:
        loaded = self._loaded.get(key)
        return loaded is not None and place(loaded) == place(array)


def _writable(array: np.ndarray) -> np.ndarray:
    """The same memory, without the read-only mark that torch warns of; it is only read here."""
    if array.flags.writeable:
        return array
    interface = dict(array.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return np.asarray(_Memory(interface, array))


class _Memory:
    def __init__(self, interface: dict[str, object], owner: np.ndarray) -> None:
        self.__array_interface__ = interface
        self.owner = owner

"""A finished model as a torch module that takes what a person has: files, or arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgraft.client.data.cohorts.batches import fit
from fedgraft.client.inference.cases import InputCase, InputCases, Reading, read_cases, read_files
from fedgraft.client.inference.model import LoadedModel
from fedgraft.common.base.errors import InputError
from fedgraft.common.study.inputs import InputSpec, TableInput
from fedgraft.common.study.tasks import Multilabel, Task
from fedgraft.simulations.api.frames import data_frame

_BATCH = 64
_WHITE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}

Inputs = Path | str | Sequence[Path | str] | NDArray[Any] | Tensor


@dataclass(frozen=True)
class Predictions:
    """What a model says of cases, in their order, and which could not be used.

    `answers` by task: probabilities (N, classes) or (N, labels), values (N,) in their unit, or masks (N, H, W) of 0 and
    1. `names` are the cases' files (with the frame, where one has several), lines of a table, or places in an array.
    """

    names: tuple[str, ...]
    answers: dict[str, NDArray[Any]]
    classes: dict[str, tuple[str, ...]]
    """By task the names of its columns, where it has several."""
    problems: dict[str, str]
    """Files that could not be used, and why."""

    def to_pandas(self) -> Any:
        """A DataFrame with a row a case, and a column for each class or value; masks are left out."""
        rows: list[dict[str, Any]] = [{"case": name} for name in self.names]
        for task, own in self.answers.items():
            for at, row in enumerate(rows):
                if task in self.classes:
                    row |= {f"{task}:{name}": float(own[at, k]) for k, name in enumerate(self.classes[task])}
                elif own.ndim == 1:
                    row[task] = float(own[at])
        return data_frame(rows)


def _name(one: InputCase, images: int) -> str:
    if one.line is not None:
        return str(one.line)
    return f"{one.file}#{one.frame}" if images > 1 else one.file


class TrainedModel(nn.Module):
    """A finished model: `forward` for tensors that are prepared already, `predict` for files and arrays.

    `source` is a run's folder or the id of weights with heads; `site` the folder of a site whose own entries stand in
    for the common ones. WeightsError if there is no head; InputError if the site keeps nothing. No medical device.
    """

    def __init__(self, source: str, site: Path | None = None) -> None:
        super().__init__()
        self._reader = LoadedModel(source, site, everything=True)
        self.network: nn.Module = self._reader.local_model.model

    @property
    def input(self) -> InputSpec:
        """What the model sees: size, channels and normalisation of images, or a table's columns."""
        return self._reader.input

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """By task the names of classes or labels, in the order of the answers."""
        tasks = (*self._reader.tasks, *self._reader.others)
        return {task.name: tuple(task.names) for task in tasks if isinstance(task, Task | Multilabel)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by task for inputs as `prepare` gives them, (N, channels, size, size) or (N, width)."""
        found: dict[str, Tensor] = self.network(x)
        return found

    def prepare(self, images: NDArray[Any] | Tensor) -> Tensor:
        """Images (N, H, W) or (N, H, W, 3) as the model sees them: brought to its size, grey or colour, normalised.

        Unsigned integers of 8 or 16 bits, or floats from 0 to 1. Of a table: rows (N, width), NaN where one is missing.
        InputError for another shape or scale.
        """
        loader = self._reader.over(self._stored(images))
        (batch,) = loader.batches([torch.arange(len(images))])
        return batch.inputs

    def predict(self, inputs: Inputs, cohort: Mapping[str, Any] | Path | str | None = None) -> Predictions:
        """What the model says of a folder or file of any kind that a cohort can be of, of some files, or of an array.

        The names of files tell what they are, and all frames and slices are read. `cohort` says otherwise: keys as a
        site's cohort has them, such as {"kind": "nifti", "plane": "coronal"}, or the folder of a site, whose way of
        reading is then used. Arrays are as for `prepare`. InputError if nothing can be used.
        """
        if isinstance(inputs, np.ndarray | Tensor):
            stored = self._stored(inputs)
            return self._predictions(tuple(map(str, range(len(stored)))), stored, {})
        reading = Reading.of(cohort)
        if isinstance(inputs, Path | str):
            return self._of(read_cases(Path(inputs), self.input, reading))
        if odd := [one for one in inputs if not isinstance(one, Path | str)]:
            raise InputError(
                f"A list of files is wanted, not of {type(odd[0]).__name__}.",
                fix="Give images as one array (N, H, W): numpy.stack(them).",
            )
        files = [(Path(path), str(path), Path(path).parent) for path in inputs]
        return self._of(read_files(files, self.input, reading))

    def _of(self, found: InputCases) -> Predictions:
        usable = found.usable
        counts = Counter(one.file for one in usable)
        names = tuple(_name(one, counts[one.file]) for one in usable)
        problems = {one.file: one.problem for one in found.all if one.problem}
        return self._predictions(
            names, torch.from_numpy(np.stack([one.stored for one in usable if one.stored is not None])), problems
        )

    def _predictions(self, names: tuple[str, ...], stored: Tensor, problems: dict[str, str]) -> Predictions:
        parts = [self._reader.answers(self._reader.over(part)) for part in torch.split(stored, _BATCH)]
        answers = {task: np.concatenate([part[task] for part in parts]) for task in parts[0]} if parts else {}
        return Predictions(names, answers, self.classes, problems)

    def _stored(self, given: NDArray[Any] | Tensor) -> Tensor:
        array = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
        if isinstance(self.input, TableInput):
            if array.ndim != 2 or array.shape[1] != self.input.width:
                raise InputError(f"Rows of {self.input.width} columns are wanted, not an array of {array.shape}.")
            return torch.from_numpy(array.astype(np.float32))
        if not len(array) or array.ndim not in {3, 4} or (array.ndim == 4 and array.shape[3] not in {1, 3}):
            raise InputError(f"Images (N, H, W) or (N, H, W, 3) are wanted, not an array of {array.shape}.")
        values = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
        grey = values.astype(np.float32) / _WHITE.get(array.dtype, 1.0)
        if not (np.issubdtype(array.dtype, np.floating) or array.dtype in _WHITE):
            raise InputError(
                f"Images of {array.dtype} have no known white.", fix="Give uint8, uint16, or floats in 0..1."
            )
        if not (np.isfinite(grey).all() and grey.min() >= 0 and grey.max() <= 1):
            raise InputError("Images of floats must lie between 0 and 1.", fix="Divide by the largest possible value.")
        return torch.from_numpy(np.stack([fit(image, 1.0, self.input) for image in grey]))

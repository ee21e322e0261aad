"""Batches of a cohort on the device where the model is."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.cohorts.batches import floats_of, to_float
from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.tables.targets import all_known, known
from fedgraft.client.training.device.streaming import placed, streamed
from fedgraft.common.base.files import digest_arrays
from fedgraft.common.models.model import Heads, TransferModel
from fedgraft.common.study.inputs import InputSpec, TableInput

_FEW_NUMBERS, _ALL_NUMBERS = 4 << 20, 64 << 20
"""Inputs of at most so many numbers (16 MB as floats) are kept as floats, and need not be normalised every epoch; those
of all sites in a process together are so many at most (256 MB). No bit of any batch depends on it."""

_RESIDENT_SHARE = 0.4
"""A cohort that needs at most this share of the GPU's free memory lives there; a larger one is streamed."""


class _Floats:
    """How many numbers may still be kept as floats, by all loaders of this process together."""

    def __init__(self, most: int) -> None:
        self._left, self._lock = most, threading.RLock()  # an owner may go while this thread is in here

    def take(self, owner: object, numbers: int) -> bool:
        """Whether `owner` may keep so many; they are free again when it is gone."""
        with self._lock:
            if numbers > min(_FEW_NUMBERS, self._left):
                return False
            self._left -= numbers
        weakref.finalize(owner, self._give_back, numbers).atexit = False
        return True

    def _give_back(self, numbers: int) -> None:
        with self._lock:
            self._left += numbers


_FLOATS = _Floats(_ALL_NUMBERS)


@dataclass(frozen=True)
class Batch:
    """Model inputs, ready to use, and targets by task, both on the device; `indices` are positions in the cohort.

    `known` names tasks of which the whole cohort has labels, so that none needs to be looked for in a batch.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]
    indices: Tensor
    known: Collection[str] = ()
    share: Mapping[str, Tensor] | None = None
    """Of a part of a batch, by task: how much its mean counts in that of the whole."""

    def parted(self, count: int) -> list[Batch]:
        """The same cases in `count` batches of nearly equal size, fewer if there are not so many cases."""
        if count == 1:
            return [self]
        pieces = torch.arange(len(self.indices)).tensor_split(min(count, len(self.indices)))
        return [self.part(slice(int(piece[0]), int(piece[-1]) + 1)) for piece in pieces]

    def part(self, here: slice) -> Batch:
        """The same tensors' rows `here`."""
        if here.start == 0 and here.stop == len(self.indices):
            return self
        targets = {task: target[here] for task, target in self.targets.items()}
        return Batch(self.inputs[here], targets, self.indices[here], self.known)

    def at(self, places: Tensor) -> Batch:
        """Copies of the cases at these places of the batch, which may recur."""
        here, there = places.to(self.inputs.device), places.cpu()
        targets = {task: target[here] for task, target in self.targets.items()}
        return Batch(self.inputs[here], targets, self.indices[there], self.known)


class Loader:
    """A cohort's cases by index. Inputs of a large cohort stay compact in memory and become floats batch by batch."""

    def __init__(self, cohort: Cohort, spec: InputSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self.splits = {**cohort.splits, "all": torch.arange(len(cohort.inputs))}
        self._targets = {task: target.to(device) for task, target in cohort.targets.items()}
        self._known = frozenset(task for task, target in cohort.targets.items() if all_known(target))
        spacings = cohort.spacings or (0.0,) * len(cohort.inputs)
        self.spacings = torch.tensor(spacings, dtype=torch.float64)
        """Sizes in mm of a pixel of each case, on the CPU; 0 where it is not known."""
        self._inputs = cohort.inputs
        if _FLOATS.take(self, floats_of(cohort.inputs, spec)):
            self._inputs = to_float(cohort.inputs, spec)
        self._ready = self._inputs is not cohort.inputs
        if self._ready:
            cohort.give_back()
        self._labelled: dict[str, Tensor] = {}
        self.seen = False
        """Whether the inputs are features."""
        self.gaps = isinstance(spec, TableInput)
        """Whether NaN among the inputs stands for what is missing, and not for what is broken."""
        self._resident = device.type == "cpu"
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            self._resident = self._inputs.nbytes <= _RESIDENT_SHARE * free
            if self._resident:
                self._inputs = self._inputs.to(device)

    def through(self, features: Tensor) -> Loader:
        """The same cases as a frozen backbone sees them: `features` (cases, dim), on the device, are the inputs."""
        seen = copy.copy(self)
        seen._inputs, seen._ready, seen._resident, seen.seen, seen.gaps = features, True, True, True, False
        return seen

    @cached_property
    def sound(self) -> bool:
        """Whether no feature of the training cases is infinite or no number; of inputs nobody has looked."""
        return self.seen and bool(self._inputs[self.labelled("train").to(self._device)].isfinite().all())

    def lengths(self) -> Tensor:
        """The norm of every case's features with a 1 appended, (cases,) in float64 on the device."""
        norms: Tensor = torch.linalg.vector_norm(self._inputs, dim=1, dtype=torch.float64)
        return torch.hypot(norms, norms.new_ones(()))

    def body(self, model: TransferModel) -> TransferModel | Heads:
        """What of `model` is left to run on these inputs: all of it, or only the heads."""
        return model.bare_heads if self.seen else model

    def digest(self) -> str:
        """SHA-256 of all inputs and of how they are made ready, 64 hex digits."""
        how = np.frombuffer(self._spec.model_dump_json().encode(), np.uint8)
        return digest_arrays({"inputs": self._inputs.cpu().numpy(), "how": how})

    def labelled(self, split: str) -> Tensor:
        """Indices of the split's cases that have at least one known label."""
        if split not in self._labelled:
            indices = self.splits[split]
            found = torch.zeros(len(indices), dtype=torch.bool)
            for target in self._targets.values():
                found |= known(target[indices.to(target.device)]).cpu()
            self._labelled[split] = indices[found]
        return self._labelled[split]

    def targets(self, task: str, indices: Tensor) -> Tensor:
        """The task's targets of the cases at these positions, (len(indices), ...), on the CPU."""
        target = self._targets[task]
        return target[indices.to(target.device)].cpu()

    def batches(self, groups: Sequence[Tensor]) -> Iterator[Batch]:
        """One batch per group of indices; on a GPU the next ones are on their way while this one is worked on."""
        positions = placed(groups, self._device)
        if self._resident:
            rows: Iterator[Tensor] = (self._inputs.index_select(0, own) for own in positions)
        else:
            rows = streamed(self._inputs, groups, self._device)
        for raw, indices, own in zip(rows, groups, positions, strict=True):
            yield self._made(raw, indices, own)

    def _made(self, raw: Tensor, indices: Tensor, positions: Tensor) -> Batch:
        inputs = raw if self._ready else to_float(raw, self._spec)
        if self._device.type == "cuda" and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        targets = {task: target.index_select(0, positions) for task, target in self._targets.items()}
        return Batch(inputs, targets, indices, self._known)


def in_order(indices: Tensor, size: int) -> list[Tensor]:
    """`indices` in groups of nearly equal size, at most `size`; none if there are no indices."""
    count = -(-len(indices) // size)
    return list(indices.tensor_split(count)) if count else []


def shuffled(indices: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """One epoch: `indices` in random order in groups of `size`.

    A rest of one case joins the group before it: norm layers cannot be trained on a single case.
    """
    count = indices.shape[0]
    mixed = indices.index_select(0, torch.randperm(count, generator=generator))
    groups = [mixed] if 0 < count <= size else list(torch.split(mixed, size))
    if len(groups) > 1 and len(groups[-1]) == 1 < size:
        last = groups.pop()
        groups[-1] = torch.cat([groups[-1], last])
    return groups

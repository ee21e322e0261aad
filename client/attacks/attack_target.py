"""A made-up site to attack: the study's own model and privacy settings, made-up patients, and the site's own trainer.

The trainer is watched where privacy is decided: at what its optimiser is given, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import MultiheadAttention
from torch.nn.modules.dropout import _DropoutNd
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model.loader import Batch, Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.models.parts import of_torchvision
from fedgraft.common.study.inputs import ImageInput, InputSpec, TableInput
from fedgraft.common.study.methods.recipes import standardise
from fedgraft.common.study.model_spec import Model
from fedgraft.common.study.plan import Gradient, Role, named
from fedgraft.common.study.stages.training import Private
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task

CPU = torch.device("cpu")
NOW = RoundContext(seed=7, round=1, rounds=1)
_LARGEST_IMAGE = 64
"""Pixels. What is tested does not depend on the size of images, but its time does."""


@dataclass(frozen=True)
class AttackTarget:
    """A model to be trained privately: `local` has its noise, `changes` are the entries that may move."""

    study: Study
    stage: str
    local: Gradient
    changes: tuple[str, ...]

    @property
    def private(self) -> Private:
        """The stage's `private`: noise, clip, sampling, unit."""
        assert self.local.private is not None
        return self.local.private

    @property
    def noise_multiplier(self) -> float:
        """The noise's deviation in units of `max_grad_norm`."""
        assert self.private.noise_multiplier is not None
        return self.private.noise_multiplier

    def asking(self, work: Mapping[str, Any] | None = None, private: Mapping[str, Any] | None = None) -> AttackTarget:
        """The same with other keys of the work, or of its privacy. A learning rate of 0 is possible."""
        terms = self.private.model_copy(update=dict(private or {}))
        return replace(self, local=self.local.model_copy(update={**(work or {}), "private": terms}))

    @property
    def still(self) -> AttackTarget:
        """The same, but what a step sees depends on nothing but the patients: the model stays, images are as given."""
        return self.asking({"lr": 0.0, "augment": None})

    def local_model(self) -> LocalModel:
        """The model with seeded random entries, without dropout."""
        local_model = LocalModel(self.study, CPU)
        for part in local_model.model.modules():
            if isinstance(part, (_DropoutNd, *of_torchvision("StochasticDepth"))):
                part.p = 0.0  # type: ignore[assignment]  # a number of its own, of no module
            if isinstance(part, MultiheadAttention):
                part.dropout = 0.0
        local_model.model.needs_dropout_rng = False
        return local_model


@dataclass(frozen=True)
class ExampleCases:
    """A site's training cases: what the model sees, one label per case for every task, and whose they are."""

    inputs: Tensor
    labels: Tensor
    patients: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.inputs)

    def only(self, rows: Tensor) -> ExampleCases:
        """The cases at the positions `rows`."""
        return ExampleCases(self.inputs[rows], self.labels[rows], tuple(self.patients[at] for at in rows.tolist()))


class WatchedLoader(Loader):
    """A loader that writes down which cases the trainer asks for, one list per step."""

    def __init__(self, cohort: Cohort, spec: InputSpec, device: torch.device) -> None:
        super().__init__(cohort, spec, device)
        self.asked: list[list[int]] = []

    def batches(self, groups: Sequence[Tensor]) -> Iterator[Batch]:
        """As `Loader.batches`, noted in `asked`."""
        self.asked.append([at for group in groups for at in group.tolist()])
        return super().batches(groups)


def seen_at(study: Study) -> Study:
    """The study with images of at most 64 pixels."""
    spec = study.input
    # A ViT has as many positions as patches, and sizes must be multiples of those.
    if (
        not isinstance(spec, ImageInput)
        or spec.size <= _LARGEST_IMAGE
        or study.model.backbone.startswith(("vit", "timm/"))
    ):
        return study
    return study.model_copy(update={"input": spec.model_copy(update={"size": _LARGEST_IMAGE})})


def table_study(columns: int, backbone: str = "table_linear") -> Study:
    """Two classes from columns of numbers: the smallest models that the trainer takes."""
    spec = TableInput(numeric=tuple(f"c{number}" for number in range(columns)))
    task = Task(name="cls", classes=("no", "yes"))
    return Study(
        name="audit", tasks=(task,), input=spec, model=Model(backbone=backbone, weights=None), plan=(standardise(),)
    )


def light(attack_target: AttackTarget, columns: int, backbone: str = "table_linear") -> AttackTarget:
    """The same privacy settings with a small model for tables, all of it trained by plain SGD."""
    study = table_study(columns, backbone)
    roles = {Role.BODY, Role.STEM, Role.HEAD}
    changes = tuple(key for key, tag in LocalModel(study, CPU).tags.items() if tag.role in roles)
    work: dict[str, Any] = {
        "augment": None,
        "optimiser": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "backbone_lr_factor": 1.0,
    }
    work |= {"schedule": "constant", "warmup": 0.0, "train": named("all")}
    return replace(attack_target, study=study, changes=changes).asking(work, {"augmentation_multiplicity": 1})


def shape(study: Study) -> tuple[int, ...]:
    """Shape of one case as the model sees it: (columns,), or (channels, size, size)."""
    if isinstance(study.input, TableInput):
        return (study.input.width,)
    return (study.input.channels, study.input.size, study.input.size)


def loader_of(study: Study, cases: ExampleCases) -> WatchedLoader:
    """A site with these cases, all of them for training."""
    spec: InputSpec = study.input
    stored = cases.inputs
    if isinstance(spec, ImageInput):  # as images are stored, but in float64, where large values have a place too
        spec = ImageInput(size=spec.size, channels=spec.channels, normalise="fixed", mean=(0.0,), std=(1.0,))
        stored = stored.double() * 65535 - 32768
    targets = {task.name: cases.labels % task.outputs for task in study.tasks}
    splits = {"train": torch.arange(len(cases)), "val": torch.arange(0), "test": torch.arange(0)}
    return WatchedLoader(Cohort("audit", stored, targets, cases.patients, splits, (), {}), spec, CPU)


@contextmanager
def watched() -> Iterator[list[Tensor]]:
    """All gradients that an optimiser is given within, flat, float64, one tensor per step."""
    seen: list[Tensor] = []

    def look(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        parts = [p.grad for group in optimiser.param_groups for p in group["params"]]
        seen.append(torch.cat([part.detach().flatten().double() for part in parts]))

    hook = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def released(attack_target: AttackTarget, cases: ExampleCases, local_model: LocalModel) -> Tensor:
    """The noised sums of a visit's steps, (steps, entries), with the division by the expected lot undone."""
    loader = loader_of(attack_target.study, cases)
    with watched() as seen:
        train_private(local_model, loader, cases.patients, attack_target.local, attack_target.changes, NOW)
    private = attack_target.private
    assert private.expected_units is not None
    return torch.stack(seen) * (private.sample_rate * private.expected_units)


def sizes(attack_target: AttackTarget, local_model: LocalModel) -> list[int]:
    """How many numbers each trained entry has, in the order of an optimiser: the rest, then heads."""
    order = sorted(attack_target.changes, key=lambda key: local_model.tags[key].role is Role.HEAD)
    return [local_model.parameters[key].numel() for key in order]


def moved(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> set[str]:
    """Keys of entries of which any bit differs."""
    return {key for key in before if before[key].tobytes() != after[key].tobytes()}

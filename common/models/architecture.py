"""What a model is made of, before there is one: what decides its entries, and their names, shapes, types and tags.

Nothing here needs torch, so that a study is checked without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedgraft.common.base.value import Value
from fedgraft.common.plugins.plugin import Plugin
from fedgraft.common.study.inputs import InputSpec
from fedgraft.common.study.model_spec import Adapters, Model
from fedgraft.common.study.plan import Tag
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask


class Blueprint(Value):
    """All that decides a model but the values of its entries: models are built from this and a seed alone."""

    backbone: str
    base_models: tuple[str, ...]
    """Of an ensemble: the base models' backbones."""
    tasks: tuple[AnyTask, ...]
    input: InputSpec
    domain_discriminators: tuple[str, ...]
    plugins: tuple[Plugin, ...]
    """Whose code may be used besides fedgraft's."""
    adapters: Adapters | None = None

    def of_base_model(self, backbone: str) -> Blueprint:
        """That of one of an ensemble's base models, which only answers."""
        return self.model_copy(
            update={"backbone": backbone, "base_models": (), "domain_discriminators": (), "adapters": None}
        )


def blueprint(study: Study, model: Model, *, plain: bool = False) -> Blueprint:
    """That of the study's model or of a teacher; `plain` is without domain discriminators, for whoever only answers."""
    return Blueprint(
        backbone=model.backbone,
        base_models=tuple(base_model.backbone for base_model in model.base_models),
        tasks=study.tasks,
        input=study.input,
        domain_discriminators=() if plain else study.domain_discriminators,
        plugins=study.plugins,
        adapters=model.adapters,
    )


@dataclass(frozen=True)
class Entry:
    """One state entry: its shape, its type by numpy's name, and its tag."""

    shape: tuple[int, ...]
    dtype: str
    tag: Tag


@dataclass(frozen=True)
class Architecture:
    """A model's state entries, in the order of the state; of an ensemble also those of each base model by itself."""

    entries: Mapping[str, Entry]
    base_models: tuple[Architecture, ...] = ()
    unseparated: str = ""
    """A layer whose adapter does not see each case once, by itself, so that no case has a gradient there."""

    @property
    def tags(self) -> dict[str, Tag]:
        """Role, depth and task of every entry."""
        return {key: entry.tag for key, entry in self.entries.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers every entry has."""
        return {key: math.prod(entry.shape) for key, entry in self.entries.items()}

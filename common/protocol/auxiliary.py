"""What travels to sites beside the model, for losses that need it: names and shapes, by one rule for both sides.

It goes the same way as the model's entries: sent once, and again only when it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from fedgraft.common.base.errors import RunError
from fedgraft.common.protocol.routing import (
    Shapes,
    Tags,
    changed,
    sent,
)
from fedgraft.common.study.plan import (
    Gradient,
    Role,
    Stage,
    Statistics,
)
from fedgraft.common.study.stages.losses import Requirement, requirements
from fedgraft.common.study.study import Study

PRETRAINED, CONTROL_VARIATE, MOMENTS, TEACHER = "pretrained/", "control_variate/", "moments/", "teacher/"
"""Prefixes of entries as they were when the run began, of control variates, of moments of a source's features, and of a
finished model that teaches."""

MEAN, COVARIANCE = f"{MOMENTS}mean", f"{MOMENTS}covariance"

_NONE: Shapes = MappingProxyType({})
_NO_PARAMETERS = frozenset({Role.NORM_STATS, Role.SCALE})


def requirements_of(stage: Stage) -> frozenset[Requirement]:
    """All that a stage's losses need at a site; distances need the moments from which they are taken."""
    if isinstance(stage.local, Statistics) and stage.local.of == "distances":
        return frozenset({Requirement.MOMENTS})
    return requirements(stage.local.losses) if isinstance(stage.local, Gradient) else frozenset()


def requires_source(study: Study) -> bool:
    """Whether sites must have source data beside their own."""
    return any(Requirement.SOURCE in requirements_of(stage) for stage in study.plan)


def proximal_entries(stage: Stage, tags: Tags) -> tuple[str, ...]:
    """Entries that the start of the run pulls at: those that came pretrained, which heads never do."""
    fresh = _NO_PARAMETERS | {Role.HEAD, Role.DOMAIN_DISCRIMINATOR}
    return tuple(key for key in changed(stage, tags) if tags[key].role not in fresh)


def with_control_variates(stage: Stage, tags: Tags) -> tuple[str, ...]:
    """Entries that have control variates: the parameters that are trained and shared."""
    return tuple(key for key in sent(stage, tags) if tags[key].role not in _NO_PARAMETERS)


def auxiliary_shapes(stage: Stage, tags: Tags, forms: Shapes, teacher: Shapes = _NONE) -> Shapes:
    """Names, shapes and types of what sites get beside the model in this stage.

    `forms` are those of the model, and `teacher` those of the model that teaches in this stage.
    """
    wanted = requirements_of(stage)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    if Requirement.PRETRAINED in wanted:
        shapes |= {PRETRAINED + key: forms[key] for key in proximal_entries(stage, tags)}
    if Requirement.CONTROL_VARIATE in wanted:
        shapes |= {CONTROL_VARIATE + key: forms[key] for key in with_control_variates(stage, tags)}
    if Requirement.MOMENTS in wanted:
        dim = next(forms[key][0][1] for key, tag in tags.items() if tag.role is Role.HEAD and len(forms[key][0]) == 2)
        shapes |= {MEAN: ((dim,), "float32"), COVARIANCE: ((dim, dim), "float32")}
    if Requirement.TEACHER in wanted:
        shapes |= {TEACHER + key: form for key, form in teacher.items()}
    return shapes


def moments_from_sums(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean (d,) and covariance (d, d) of features, from the sums of the task with most cases; RunError below two."""
    grams = [array for name, array in sums.items() if name.endswith("/gram")]
    every = [gram for array in grams for gram in (array if array.ndim == 3 else [array])]  # one for each of many labels
    gram = max(every, key=lambda one: float(one[-1, -1]))
    count = float(gram[-1, -1])
    if count < 2:
        raise RunError("Moments of features need two cases at least.")
    mean = gram[-1, :-1] / count
    covariance = gram[:-1, :-1] / count - np.outer(mean, mean)
    return {MEAN: mean.astype(np.float32), COVARIANCE: covariance.astype(np.float32)}


def forms_of(state: Mapping[str, np.ndarray]) -> Shapes:
    """By name the shape and the type's name of each array, such as ((3, 128), "float32")."""
    return {key: (array.shape, array.dtype.name) for key, array in state.items()}

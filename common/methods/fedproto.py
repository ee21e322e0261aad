"""FedProto: sites share no entries, only the mean features of each class. Tan et al. 2022."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedgraft.common.methods.memory.method import (
    Ground,
    Left,
    Looked,
    Machine,
    Method,
    MethodStep,
    MethodVisit,
    Round,
    with_method,
)
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import Shapes
from fedgraft.common.protocol.states import NoState, State
from fedgraft.common.study.methods.recipes import NamedMethod, personal
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prototypes(State):
    """By task the mean features of each class, (classes, d), and for how many classes they are known, (classes,)."""

    means: Arrays
    known: Arrays

    owner: ClassVar[str] = "fedproto"


class FedProto(Method[NoState, Prototypes]):
    """FedProto (Tan et al. 2022, "FedProto: federated prototype learning across heterogeneous clients").

    With z the features (d,) of a case of class j, and C_j the mean features of class j over all cases of all sites,

        loss = L + lam mean |z - C_j|^2 / d        C_j = sum_i sum_(cases of j at i) z / sum_i n_ij

    Every site keeps a model of its own, and sends for each class the sum of its features and how many cases there are,
    after its visit. A class that no site has had yet pulls at nothing. Entries never travel, if the plan shares none.
    """

    kind: Literal["fedproto"] = "fedproto"
    lam: Annotated[float, Field(gt=0)] = 1.0
    """How much the distance to the prototypes counts beside the loss over labels."""

    summary: ClassVar[str] = "each site's own model; only mean features of each class are shared (Tan et al. 2022)"
    travels: ClassVar[str] = "sums of features and counts by class go up, and their means over all sites come down"
    sends_sums: ClassVar[bool] = True
    sees_features: ClassVar[bool] = True
    per_batch: ClassVar[bool] = True
    common_state: ClassVar[type[State]] = Prototypes
    not_private: ClassVar[str] = "sums of features by class would leave without noise"
    not_heads_first: ClassVar[str] = ""
    not_ahead: ClassVar[str] = ""

    @property
    def description(self) -> str:
        """Says "a pull to the classes' mean features (FedProto, lam 1)"."""
        return f"a pull to the classes' mean features (FedProto, lam {self.lam:g})"

    def faults(self, on: Ground) -> Iterator[str]:
        """It moves features, of classes."""
        if not on.below_heads:
            yield "moves features, but nothing below the heads is trained; train more"
        if other := [task.name for task in on.study.tasks if not isinstance(task, Task)]:
            yield f"is for classes, and {other[0]} asks for none"

    def down(self, on: Ground) -> Mapping[str, Shapes]:
        """All of it."""
        shapes = {name: (classes, width) for name, classes, width in _tasks(on)}
        return {
            "means": {name: (shape, "float32") for name, shape in shapes.items()},
            "known": {name: (shape[:1], "float32") for name, shape in shapes.items()},
        }

    def up(self, on: Ground) -> Shapes:
        """By task the sums of features of each class, and the numbers of cases."""
        sums = {f"{name}/sum": ((classes, width), "float64") for name, classes, width in _tasks(on)}
        return {**sums, **{f"{name}/count": ((classes,), "float64") for name, classes, _ in _tasks(on)}}

    def plausible(self, on: Ground, sums: Arrays) -> bool:
        """No class has fewer than no cases, and one without cases has no features."""
        counts = {name: sums[f"{name}/count"] for name, _, _ in _tasks(on)}
        return all((count >= 0).all() and not sums[f"{name}/sum"][count == 0].any() for name, count in counts.items())

    def begin_common(self, on: Ground, start: Arrays) -> Prototypes:
        """Nothing is known of any class."""
        del start
        zeros = {field: {n: np.zeros(*form) for n, form in group.items()} for field, group in self.down(on).items()}
        return Prototypes.of(zeros)

    def step(self, visit: MethodVisit[NoState, Prototypes], machine: Machine) -> MethodStep[NoState]:
        """The distance of a batch's features to what is known of their classes."""
        means = {name: machine.tensor(array) for name, array in visit.common.means.items()}
        known = {name: machine.tensor(array) for name, array in visit.common.known.items()}

        def loss(looked: Looked) -> Tensor:
            assert looked.features is not None
            z = looked.features.float()
            total = 0 * z.sum()
            for name, prototypes in means.items():
                classes = looked.batch.targets[name]
                pulled = (classes >= 0) & (known[name][classes.clamp(min=0)] > 0)
                gap = (z - prototypes[classes.clamp(min=0)]).square().mean(dim=1)
                total = total + (gap * pulled).sum() / pulled.sum().clamp(min=1)
            return self.lam * total

        return MethodStep(loss=loss)

    def after_visit(self, visit: MethodVisit[NoState, Prototypes], machine: Machine, trained: Arrays) -> Left[NoState]:
        """The sums of the features that the trained model sees."""
        del trained
        sums = {name: np.zeros(*form) for name, form in self.up(visit.on).items()}
        for features, targets in machine.seen():
            z = features.double().cpu().numpy()
            for name, _, _ in _tasks(visit.on):
                classes = targets[name].cpu().numpy()
                np.add.at(sums[f"{name}/sum"], classes[classes >= 0], z[classes >= 0])
                np.add.at(sums[f"{name}/count"], classes[classes >= 0], 1.0)
        return Left(visit.own, sums)

    def after_aggregation(self, state: Prototypes, done: Round) -> tuple[Prototypes, dict[str, np.ndarray]]:
        """Means over all sites' cases; of a class that nobody had this time, those of before."""
        means, known = dict(state.means), dict(state.known)
        for name, _, _ in _tasks(done.on):
            count = done.sums[f"{name}/count"]
            found = (done.sums[f"{name}/sum"] / np.maximum(count, 1)[:, None]).astype(np.float32)
            means[name] = np.where(count[:, None] > 0, found, means[name])
            known[name] = np.maximum(known[name], (count > 0).astype(np.float32))
        return Prototypes(means, known), dict(done.aggregated)

    @classmethod
    def stages(cls, method: NamedMethod) -> tuple[Stage, ...]:
        """Each site trains a model of its own, which stays."""
        return (personal(with_method(method, cls())).model_copy(update={"name": "train"}),)


def _tasks(on: Ground) -> list[tuple[str, int, int]]:
    """Name, classes and width of the features of each task."""
    found = []
    for task in on.study.tasks:
        if isinstance(task, Task):
            classes, width = on.forms[f"heads.{task.name}.weight"][0]
            found.append((task.name, classes, width))
    return found

"""Stages of a study: who trains, what is trained, what travels and how it is aggregated. Values, no behaviour.

A method is a composition of these values, never a branch in the trainer. `methods.presets` names the usual ones;
`fedgraft.common.checks` refuses the combinations that cannot work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from fedgraft.common.base.value import Value, unless
from fedgraft.common.config.suggest import instead
from fedgraft.common.study.stages.aggregates import Aggregation, Nothing
from fedgraft.common.study.stages.compression import WHOLE, Compression
from fedgraft.common.study.stages.losses import SUPERVISED, Loss, PluggedLoss
from fedgraft.common.study.stages.methods import AnyMethod
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.stages.stopping import EarlyStopping, WeightAveraging
from fedgraft.common.study.stages.survival import Survival
from fedgraft.common.study.stages.training import (
    Augment,
    InnerSteps,
    Private,
    Rollback,
)


class Role(StrEnum):
    """What a state entry does in the model; decided by module type, never by name."""

    STEM = "stem"
    BODY = "body"
    NORM_AFFINE = "norm_affine"
    NORM_STATS = "norm_stats"
    SCALE = "scale"
    """A table's standardisation, or an ensemble's temperatures: set from the sites' sums, never by gradients."""
    SITE_EFFECTS = "site_effects"
    """What a site measures otherwise than the others, as it has found itself: no message holds it."""
    HEAD = "head"
    DOMAIN_DISCRIMINATOR = "domain_discriminator"
    """Tells source from target while a stage trains against it; no part of what the model says."""
    ADAPTER_A = "adapter_a"
    """The first matrix of a low-rank adapter, from what a layer sees to `rank` numbers."""
    ADAPTER_B = "adapter_b"
    """The second, from these to what a layer adds to its output; 0 at first."""
    BASE_MODEL = "base_model"
    """Belongs to a finished model in an ensemble: it never moves, so no selection has it, not even all."""


@dataclass(frozen=True)
class Tag:
    """Role, depth (0 = stem, 1.. = blocks in forward order, last = head) and task (heads only) of a state entry.

    `height` counts from the other end: 0 = head, 1 = the block below it, and so on.
    """

    role: Role
    depth: int
    task: str | None = None
    height: int = 0


_A, _B = frozenset({Role.ADAPTER_A}), frozenset({Role.ADAPTER_B})
ADAPTERS = _A | _B
FRESH = frozenset({Role.HEAD, Role.DOMAIN_DISCRIMINATOR}) | ADAPTERS
"""What begins with nothing learnt, whatever weights a backbone has."""
_ALL = frozenset(Role) - {Role.BASE_MODEL, Role.SITE_EFFECTS} - ADAPTERS
_NORM = frozenset({Role.NORM_AFFINE, Role.NORM_STATS})
_HEADS = frozenset({Role.HEAD})
SELECTIONS: Mapping[str, frozenset[Role]] = {
    "all": _ALL,
    "none": frozenset(),
    "heads": _HEADS,
    "all_but_heads": _ALL - _HEADS,
    "norm": _NORM,
    "norm_stats": frozenset({Role.NORM_STATS}),
    "norm_and_heads": _NORM | _HEADS,
    "all_but_norm": _ALL - _NORM,
    "all_but_norm_stats": _ALL - {Role.NORM_STATS},
    "site_effects": frozenset({Role.SITE_EFFECTS}),
    "adapters": ADAPTERS,
    "adapters_a": _A,
    "adapters_b": _B,
    "adapters_and_heads": ADAPTERS | _HEADS,
    "adapters_a_and_heads": _A | _HEADS,
    "adapters_b_and_heads": _B | _HEADS,
}
"""The selections that have a name: FedBN shares `all_but_norm`, SiloBN `all_but_norm_stats`, FedPer `all_but_heads`.

`all` is all of the network and its heads; adapters and a site's effects stand beside it, under their own names.
"""


class Select(Value):
    """State entries chosen by role and depth. In a file: a name from `SELECTIONS`, or these keys."""

    roles: frozenset[Role] = _ALL
    """What the entries are for in the model."""
    min_depth: Annotated[int, Field(ge=0)] = 0
    """Leaves out blocks nearer to the input than this; the stem is 0."""
    max_depth: Annotated[int, Field(ge=0)] | None = None
    """Leaves out blocks further from the input than this."""
    max_height: Annotated[int, Field(ge=0)] | None = None
    """Counted from the heads, which are 0, so that a plan need not know how deep the backbone is."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in SELECTIONS:
            raise ValueError(f"no selection is called {value!r}{instead(value, SELECTIONS)}")
        return {"roles": SELECTIONS[value]}

    @model_serializer
    def _to_name(self) -> Any:
        roles = sorted(self.roles)
        name = next((name for name, chosen in SELECTIONS.items() if chosen == self.roles), None)
        top = {} if self.max_height is None else {"max_height": self.max_height}
        if self.min_depth == 0 and self.max_depth is None:
            return name if name and not top else {"roles": roles, **top}
        return {"roles": roles, "min_depth": self.min_depth, "max_depth": self.max_depth, **top}

    def __contains__(self, tag: Tag) -> bool:
        deep_enough = tag.depth >= self.min_depth
        shallow_enough = self.max_depth is None or tag.depth <= self.max_depth
        high_enough = self.max_height is None or tag.height <= self.max_height
        return tag.role in self.roles and deep_enough and shallow_enough and high_enough

    def keys(self, tags: Mapping[str, Tag]) -> tuple[str, ...]:
        """State entries of a model that are selected, in the model's order."""
        return tuple(key for key, tag in tags.items() if tag in self)


def named(selection: str) -> Select:
    """The selection of that name; KeyError for a name that is not in the table."""
    return Select(roles=SELECTIONS[selection])


class Gradient(Value):
    """Optimiser steps on a weighted sum of losses, which is the loss over the site's labels unless it says otherwise.

    `schedule` runs over all the rounds of the stage. `backbone_lr_factor` multiplies the rate of everything that is
    not a head. `fixed_norm_stats` leaves running statistics as received (FixBN). With `private`, `batch_size` says how
    many images are worked on at a time, and a quarter more, for memory alone.
    """

    kind: Literal["gradient"] = "gradient"
    train: Select = named("all")
    """Which entries the steps change; all others are frozen."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the training cases in each round; give this or `steps`."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Steps in each round, at every site as many; give this or `epochs`."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019), or plain steps with `momentum`."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """The learning rate, where the `schedule` begins."""
    backbone_lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of `sgd` alone."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled with `adamw`, as a part of the gradient with `sgd`."""
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the stage over which the rate rises linearly from 0."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """The most that the norm of a step's gradient may be; no bound if absent."""
    fixed_norm_stats: bool = False
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs each case by how rare its class is at the site."""
    augment: Augment | None = None
    """Random changes of the training images; none if absent."""
    private: Private | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1, exclude_if=unless(1.0))] = 1.0
    """Factor on the rate for each block further from the heads."""
    heads_first: Annotated[int | None, Field(ge=1, exclude_if=unless(None))] = None
    """So many steps on the heads alone, before the others on all else alone (FedRep, Collins et al. 2021)."""
    inner_steps: Annotated[InnerSteps | None, Field(exclude_if=unless(None))] = None
    """First-order MAML; plain training if absent."""
    rollback: Annotated[Rollback | None, Field(exclude_if=unless(None))] = None
    """Undoes training that went astray without labels; never if absent."""
    losses: Annotated[tuple[Loss, ...], Field(min_length=1, exclude_if=unless(SUPERVISED))] = SUPERVISED
    """What is minimised: their weighted sum."""
    methods: Annotated[tuple[AnyMethod, ...], Field(exclude_if=unless(()))] = ()
    """What goes beyond losses, or remembers something: SCAFFOLD, FedDyn and so on, each by its `kind`."""

    @model_validator(mode="after")
    def _one_length(self) -> Gradient:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps (per round)")
        return self


class Statistics(Value):
    """Sums over the site's cases, no gradient: of frozen `features` with their labels, or of a table's `columns`.

    Of `residuals` it is features with what the heads get wrong, label less probability, and may be asked again after
    each step; of `curvature` the same with how the loss curves, for exact steps. Of `base_models` (of an ensemble) and
    of `answers` (of the model's heads) it is the loss at each temperature of a fixed grid. Of `distances` it is counts
    of how far features are from moments that were released before. Of `survival` it is how many patients left in which
    bin of time, with the event or without; of `hazards` what a step of Cox's regression on features needs of them. Of
    `harmonisation` it is what ComBat needs of the columns, around the site's own means, with their covariates.

    `split` are the cases that are summed: what is to weigh or calibrate finished models must be cases that these have
    not learnt from, `val`. In `single` precision sums of features travel in half the bytes, with 7 digits in place of
    16. With `retain_statistics` the coordinator keeps what each site sent, so that sites can leave or join
    afterwards.
    """

    kind: Literal["statistics"] = "statistics"
    of: Literal[
        "features",
        "residuals",
        "curvature",
        "columns",
        "harmonisation",
        "base_models",
        "answers",
        "distances",
        "survival",
        "hazards",
    ] = "features"
    """What is summed."""
    private: PrivateSums | None = None
    """The noise that the sums get; none if absent."""
    split: Annotated[Literal["train", "val"], Field(exclude_if=unless("train"))] = "train"
    precision: Annotated[Literal["double", "single"], Field(exclude_if=unless("double"))] = "double"
    """In how many digits sums of features travel."""
    retain_statistics: Annotated[bool, Field(exclude_if=unless(False))] = False
    survival: Annotated[Survival | None, Field(exclude_if=unless(None))] = None
    """Whose time to which event is counted, of `survival` and of `hazards`; of nothing else."""


class Recalibrate(Value):
    """AdaBN: norm layers take their statistics from the site's own images; needs no labels, shares nothing.

    Li et al. 2016, "Revisiting batch normalization for practical domain adaptation".
    """

    kind: Literal["recalibrate"] = "recalibrate"
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images at a time."""


class Harmonise(Value):
    """ComBat at the site: from its own cases, and what is common to all, it finds what it measures otherwise.

    Empirical Bayes over its columns (Johnson et al. 2007). It needs no labels and shares nothing.
    """

    kind: Literal["harmonise"] = "harmonise"


Local = Annotated[Gradient | Statistics | Recalibrate | Harmonise, Field(discriminator="kind")]


class Stage(Value):
    """One leg of a plan: `rounds` times the same local work at the sites `where`, then one aggregation.

    `share` says which entries travel. `keep` says which trained entries stay at the site on purpose. `source` is a site
    that holds public source data: it works only in stages that are for it, or that minimise the joint loss
    L_source + `joint_lambda` L_target with it, each L a mean over cases.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    """What the stage is called in reports and messages."""
    where: Literal["all", "labelled", "unlabelled", "source"] = "all"
    local: Local
    """What each site does in a round."""
    share: Select = named("none")
    keep: Select = named("none")
    aggregate: Aggregation = Nothing()
    """What the coordinator makes of what was shared."""
    rounds: Annotated[int, Field(ge=1)] = 1
    joint_lambda: Annotated[float | None, Field(gt=0, exclude_if=unless(None))] = None
    personalise: Annotated[Literal["always", "best"], Field(exclude_if=unless("always"))] = "always"
    """Of what stays at the site: it is used in any case, or, `best`, only at sites where it is better on their
    validation cases at the end than the model that they have with others. Which these are is known to them alone: all
    figures are of the model without it."""
    early_stopping: Annotated[EarlyStopping | None, Field(exclude_if=unless(None))] = None
    """Ends the stage once validation no longer improves; it never ends early if absent."""
    weight_averaging: Annotated[WeightAveraging | None, Field(exclude_if=unless(None))] = None
    """Ends the stage with an average over its rounds; the last round's model if absent."""
    compress: Annotated[Compression, Field(exclude_if=unless(WHOLE))] = WHOLE
    """In how many bytes the change of what is shared goes back to the coordinator."""


def plugged_losses(plan: Sequence[Stage]) -> Iterator[tuple[str, PluggedLoss]]:
    """Losses that plug-ins bring, each with its key."""
    for at, stage in enumerate(plan):
        for number, loss in enumerate(stage.local.losses if isinstance(stage.local, Gradient) else ()):
            if isinstance(loss, PluggedLoss):
                yield f"plan.{at} ({stage.name}).local.losses.{number}", loss

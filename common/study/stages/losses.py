"""What a gradient stage minimises: a weighted sum of losses. Values; `fedgraft.client.training.losses` computes them.

Each loss says what it needs, and what couples its cases. A loss that looks at one case at a time has a gradient of each
case; one that compares cases of a batch has none; one that looks at no case at all can be added after noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, Tag

from fedgraft.common.base.value import Value
from fedgraft.common.config.renamed import VALUES
from fedgraft.common.study.model_spec import Teacher
from fedgraft.common.study.stages.plugged_loss import LossFacts, loss_facts

Weight = Annotated[float, Field(gt=0)]


class Requirement(StrEnum):
    """What a loss cannot do without at a site, and the coordinator cannot send."""

    LABELS = "labels"
    FEATURES = "features"
    """What the backbone makes of the cases, and not only what heads make of that."""
    SOURCE = "source"
    """Labelled cases of a source, in a folder at the site."""
    DOMAIN_DISCRIMINATOR = "domain_discriminator"
    """A network that tells source from target."""


class LossScope(StrEnum):
    """What ties the cases of a batch together in a loss."""

    REGULARISER = "regulariser"
    """It looks at the model's entries alone."""
    PER_SAMPLE = "per_sample"
    PER_BATCH = "per_batch"


class _Loss(Value, ABC):
    weight: Weight = 1.0
    """Factor on the loss in the sum that is minimised."""

    scope: ClassVar[LossScope] = LossScope.PER_SAMPLE

    @property
    def requires(self) -> frozenset[Requirement]:
        """What must be at a site, or be sent to it, for this loss; nothing unless a loss says so."""
        return frozenset()

    @property
    @abstractmethod
    def description(self) -> str:
        """What is minimised, as `study explain` prints it after the weight: "1 x labels + 0.01 x a pull to ..."."""

    @property
    def self_taught(self) -> bool:
        """Whether it takes the model's own guesses for the truth."""
        return False


class Supervised(_Loss):
    """The loss over known labels, of the site's own cases or of the source that lies at the site."""

    kind: Literal["supervised"] = "supervised"
    of: Literal["target", "source"] = "target"
    """`target` is the site's own cases, `source` those of the source that lies there."""

    @property
    def requires(self) -> frozenset[Requirement]:
        """Labels of the site's own cases, or a source at the site, whose cases all have labels."""
        return frozenset({Requirement.LABELS if self.of == "target" else Requirement.SOURCE})

    @property
    def description(self) -> str:
        """Says "labels", or "labels of a source at the site"."""
        return "labels" if self.of == "target" else "labels of a source at the site"


class Proximal(_Loss):
    """weight/2 |w - a|^2 over the trained parameters, which keeps them near `a` while they learn.

    `to: round` is what the visit began with (FedProx, Li et al. 2020); `pretrained` what the run began with, heads left
    alone (L2-SP, Li et al. 2018); `global` the coordinator's entries, for a model that the site keeps (Ditto, Li et al.
    2021).
    """

    kind: Literal["proximal"] = "proximal"
    to: Literal["pretrained", "round", "global"] = "round"
    weight: Weight = 0.01

    scope: ClassVar[LossScope] = LossScope.REGULARISER

    @property
    def description(self) -> str:
        """Says "a pull to the start of the round", or to what else `to` names."""
        end = {"pretrained": "the start of the run", "round": "the start of the round", "global": "the common model"}
        return f"a pull to {end[self.to]}"


class Adversarial(_Loss):
    """A domain discriminator tells the source's features from the site's, and the backbone learns to prevent it (DANN).

    Ganin et al. 2016. `conditional` shows the domain discriminator features times class probabilities (CDAN, Long et
    al. 2018). The reversed gradient grows from 0 as 2 / (1 + exp(-ramp p)) - 1 with the share p of the stage that is
    done. The domain discriminator has no norm layers, so each case has a loss of its own.
    """

    kind: Literal["adversarial"] = "adversarial"
    conditional: bool = False
    ramp: Annotated[float, Field(gt=0)] = 10.0
    """How fast the reversed gradient grows."""

    @property
    def requires(self) -> frozenset[Requirement]:
        """Cases of a source at the site, and a domain discriminator in the model."""
        return frozenset({Requirement.SOURCE, Requirement.DOMAIN_DISCRIMINATOR})

    @property
    def domain_discriminator(self) -> str:
        """The name of its domain discriminator in the model."""
        return "conditional" if self.conditional else "features"

    @property
    def description(self) -> str:
        """Says "a domain discriminator of features against a source at the site", or of "features by class" (CDAN)."""
        what = "features by class" if self.conditional else "features"
        return f"a domain discriminator of {what} against a source at the site"


class Discrepancy(_Loss):
    """How far the features of the site's own cases are from the source's, batch by batch.

    `coral` compares covariances (Sun and Saenko 2016), `mmd` all moments by five Gaussian kernels (Long et al. 2015),
    both with source cases at the site. `moments` compares mean and covariance with those that a source released.
    """

    kind: Literal["discrepancy"] = "discrepancy"
    measure: Literal["coral", "mmd", "moments"] = "coral"
    """How the distance is measured."""

    scope: ClassVar[LossScope] = LossScope.PER_BATCH

    @property
    def requires(self) -> frozenset[Requirement]:
        """Cases of a source at the site; for `moments`, which the source released, none."""
        return frozenset() if self.measure == "moments" else frozenset({Requirement.SOURCE})

    @property
    def description(self) -> str:
        """The measure and what it compares to, such as "coral distance of features to a source at the site"."""
        to = "moments that a source released" if self.measure == "moments" else "a source at the site"
        return f"{self.measure} distance of features to {to}"


class InfoMax(_Loss):
    """Sure about each case, even over the classes: mean entropy less `diversity` times the entropy of the mean.

    Liang et al. 2020 (SHOT-IM). It can lead a model astray that begins badly, so it needs a `rollback`.
    """

    kind: Literal["infomax"] = "infomax"
    diversity: Annotated[float, Field(ge=0)] = 1.0

    scope: ClassVar[LossScope] = LossScope.PER_BATCH

    @property
    def description(self) -> str:
        """Says "information maximisation"."""
        return "information maximisation"

    @property
    def self_taught(self) -> bool:
        """True: it makes the model surer of its own answers, whatever they are."""
        return True


class PseudoLabel(_Loss):
    """The model's own guess as the label of each case without one, where it is at least so `sure` (Lee 2013)."""

    kind: Literal["pseudo_label"] = "pseudo_label"
    sure: Annotated[float, Field(gt=0, lt=1)] = 0.9

    @property
    def description(self) -> str:
        """What counts as a label, such as "guesses of probability 0.9 or more as labels"."""
        return f"guesses of probability {self.sure:g} or more as labels"

    @property
    def self_taught(self) -> bool:
        """True: its labels are the model's own guesses."""
        return True


class Distill(_Loss):
    """The answers of a finished model, or of an ensemble, to the site's own images, with labels or without.

    Hinton et al. 2015, "Distilling the knowledge in a neural network": t^2 KL(teacher || student) of classes, both
    softened by the `temperature` t; of labels each alone; of values Huber's loss. Every case by itself.
    """

    kind: Literal["distill"] = "distill"
    teacher: Teacher
    """The finished model that is asked."""
    temperature: Annotated[float, Field(gt=0)] = 2.0

    @property
    def description(self) -> str:
        """Whose answers, and how soft: "the answers of runs/one, softened by 2"."""
        base_models = self.teacher.base_models
        who = " + ".join(str(one.weights) for one in base_models) if base_models else str(self.teacher.weights)
        return f"the answers of {'the ensemble ' if base_models else ''}{who}, softened by {self.temperature:g}"


def names_classes(loss: Loss) -> bool:
    """Whether a loss looks at the probabilities of classes."""
    return loss.self_taught or (isinstance(loss, Adversarial) and loss.conditional)


class PluggedLoss(_Loss):
    """A loss that a plug-in brings, by its name; its class is made with `options`.

    What it requires and what ties its cases it says itself, so that these are known where it is installed alone.
    """

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    """The loss's name in the plug-in."""
    options: dict[str, bool | int | float | str] = Field(default={})

    @cached_property
    def facts(self) -> LossFacts:
        """What it says of itself. InputError if nobody here has it."""
        return loss_facts(self.kind, OWN_LOSSES)

    @property
    def scope(self) -> LossScope:  # type: ignore[override]  # of fedgraft's own the class alone decides
        """What ties its cases together."""
        return LossScope(self.facts.scope)

    @property
    def requires(self) -> frozenset[Requirement]:
        """Labels or features, as it says."""
        return frozenset(one for one in (Requirement.LABELS, Requirement.FEATURES) if one in self.facts.requires)

    @property
    def private(self) -> bool:
        """Whether private work can learn by it: each case by its own outputs and labels alone."""
        return self.scope is LossScope.PER_SAMPLE and self.facts.requires == {"labels"}

    @property
    def description(self) -> str:
        """Its name and options, such as "focal (gamma 2)"."""
        options = ", ".join(f"{key} {value}" for key, value in self.options.items())
        return f"{self.kind} ({options})" if options else self.kind


OwnLoss = Supervised | Proximal | Adversarial | Discrepancy | InfoMax | PseudoLabel | Distill
OWN_LOSSES = tuple(str(loss.model_fields["kind"].default) for loss in get_args(OwnLoss))
"""The kinds of losses that fedgraft has; all others are plug-ins."""


def _whose(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "own" if kind in OWN_LOSSES or kind in VALUES else "plugged"


Loss = Annotated[
    Annotated[Annotated[OwnLoss, Field(discriminator="kind")], Tag("own")] | Annotated[PluggedLoss, Tag("plugged")],
    Discriminator(_whose),
]

SUPERVISED = (Supervised(),)
"""What a stage minimises unless it says otherwise."""


def requirements(losses: Iterable[Loss]) -> frozenset[Requirement]:
    """Everything that any of these losses requires."""
    return frozenset().union(*(loss.requires for loss in losses))


def wants_all_cases(losses: Iterable[Loss]) -> bool:
    """Whether any loss learns from the site's cases without labels."""
    return any(
        loss.scope is not LossScope.REGULARISER
        and not isinstance(loss, Supervised)
        and not (isinstance(loss, PluggedLoss) and Requirement.LABELS in loss.requires)
        for loss in losses
    )


def looks_further(losses: Iterable[Loss]) -> bool:
    """Whether any loss looks at more than the site's own cases with labels."""
    return wants_all_cases(losses) or Requirement.SOURCE in requirements(losses)


def sees_features(losses: Iterable[Loss]) -> bool:
    """Whether any loss looks at features, and not only at what heads make of them."""
    return any(isinstance(loss, Adversarial | Discrepancy) or Requirement.FEATURES in loss.requires for loss in losses)

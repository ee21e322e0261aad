"""Where a model comes from: a backbone by name with the weights it starts from, or finished models as an ensemble."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedgraft.common.base.value import Value, unless

ENSEMBLE = "ensemble"
"""The backbone that is several finished models."""


class BaseModelSpec(Value):
    """A finished model: its backbone, and the run's folder or the weights that it is read from.

    A base model that learnt from the very cases on which it is now to be weighed or tested would look better than it
    is. So it must come from a study with the same seed and split, which held out the same patients, unless it
    `elsewhere` learnt from other patients than those of this study's sites. In a file the folder or id alone means a
    slim_resnet.
    """

    weights: Annotated[str | None, Field(min_length=1)] = None
    """The finished run's folder, or the id or folder of weights with heads."""
    backbone: str = "slim_resnet"
    """The backbone of that model."""
    elsewhere: bool = False

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"weights": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_one_model(self) -> BaseModelSpec:
        if self.backbone == ENSEMBLE:
            raise ValueError("an ensemble cannot be a base model of another; name its base models instead")
        return self


class Adapters(Value):
    """Low-rank adapters (LoRA, Hu et al. 2021): beside W, which stays, a layer learns (alpha / rank) B A.

    In linear and attention layers, with `all` also in 1x1 and 3x3 convolutions; the stem and layers in groups get none.
    Their roles are `adapter_a` and `adapter_b`. Selections have them by these names alone, `all` does not.
    """

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Into how many numbers A turns what a layer sees."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """How strong B A is, times 1 / rank."""
    where: Literal["attention", "all"] = "attention"
    """The linear layers of attention, or all layers that can have one."""

    @property
    def scale(self) -> float:
        """What B A is multiplied with."""
        return self.alpha / self.rank


class Model(Value):
    """The backbone by name, and the weights it starts from: an id, a folder, or none for random ones.

    `heads` are `fresh`, or those of the `weights`, which must then be for the same tasks and classes. An `ensemble` has
    two `base_models` or more, all frozen; its features are their answers. `weights` are then those of a finished
    ensemble, whose base models need not be read again.
    """

    backbone: str = "slim_resnet"
    """The network before the heads, by name; `study check` lists the names."""
    weights: str | None = None
    heads: Literal["fresh", "weights"] = "fresh"
    base_models: Annotated[tuple[BaseModelSpec, ...], Field(exclude_if=unless(()))] = ()
    adapters: Annotated[Adapters | None, Field(exclude_if=unless(None))] = None
    """Low-rank adapters beside the backbone's layers; none if absent."""

    @model_validator(mode="after")
    def _heads_from_somewhere(self) -> Model:
        if self.heads == "weights" and self.weights is None:
            raise ValueError("heads: weights needs `weights`, an id or a folder")
        return self

    @model_validator(mode="after")
    def _base_models_of_an_ensemble(self) -> Model:
        if (self.backbone == ENSEMBLE) != bool(self.base_models):
            raise ValueError("backbone: ensemble and `base_models` go together")
        if len(self.base_models) == 1:
            raise ValueError("base_models: an ensemble has two or more")
        if self.base_models and self.adapters is not None:
            raise ValueError("adapters: an ensemble is frozen, and has none")
        lacking = [str(at) for at, base_model in enumerate(self.base_models) if base_model.weights is None]
        if lacking and self.weights is None:
            raise ValueError(f"base_models.{lacking[0]}: needs `weights`, a finished run's folder or an id")
        return self

    @property
    def architectures(self) -> tuple[str, ...]:
        """The backbones that a site would run; an ensemble is each of its base models'."""
        return tuple(base_model.backbone for base_model in self.base_models) or (self.backbone,)


class Teacher(Model):
    """A finished model, or an ensemble of such, whose answers a student learns; as `Model`, with heads of its own."""

    elsewhere: Annotated[bool, Field(exclude_if=unless(False))] = False
    """Whether it learnt from other patients than those of this study's sites, as of `BaseModelSpec`."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"weights": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_finished(self) -> Teacher:
        if self.adapters is not None:
            raise ValueError("adapters: a teacher has none; those of a finished run are merged into its entries")
        if not self.base_models and self.weights is None:
            raise ValueError("a teacher needs `weights`, a finished run's folder or an id, or `base_models`")
        return self

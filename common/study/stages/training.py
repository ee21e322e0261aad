"""How a gradient stage trains, beyond its rates: augmentation, privacy, inner steps, and rollback. Values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedgraft.common.base.value import Value, unless


class Augment(Value):
    """Random changes of the training images: flip (left-right), shift and rotation, contrast and brightness."""

    flip: bool = True
    """Left and right are exchanged in half of the cases."""
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Largest shift as a share of the image's width."""
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest rotation, in degrees, either way."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest change of the contrast, as a share of it."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest change of the brightness, as a share of the range of grey."""


class Private(Value):
    """DP-SGD: each unit is in a step with probability `sample_rate`; its gradient is clipped, and the sum gets noise.

    Abadi et al. 2016, "Deep learning with differential privacy". The noise has deviation `noise_multiplier *
    max_grad_norm`; `noise_multiplier`, `sample_rate` and the number of steps are all that the privacy spent depends on.
    One unit, which may be added or removed, is a patient with all images, or an image. Give either `noise_multiplier`
    or the `epsilon` that the whole stage may cost; each site then finds the least noise for its own delta. Both are
    requests: a site's policy may ask for more noise.
    """

    noise_multiplier: Annotated[float, Field(gt=0)] | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None
    max_grad_norm: Annotated[float, Field(ge=1e-12)] = 1.0
    """Not so small that clipped gradients leave the range of single precision, where rounding makes them longer."""
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    unit: Literal["patient", "image"] = "patient"
    """Whose presence is hidden."""
    mode: Literal["hooks", "ghost"] = "hooks"
    """How gradients of single cases are found: kept all at once, or, where that is more than the layers' inputs and
    outputs, only their norms, and from these the clipped sum, in the same pass (ghost clipping by book-keeping)."""
    expected_units: Annotated[int | None, Field(ge=1, exclude_if=unless(None))] = None
    """How many units a site is expected to have: the noised sum is divided by `sample_rate` times this number, whatever
    the true one is, which nobody is to learn. If absent, each site takes its own public, coarse number."""
    augmentation_multiplicity: Annotated[int, Field(ge=1)] = 1
    """A unit's gradient is the mean over up to this many of its images, or augmented copies of them."""

    @model_validator(mode="after")
    def _one_measure(self) -> Private:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError("give either noise_multiplier or epsilon")
        return self


class Rollback(Value):
    """A guard without labels: training that changed too much of what the model says is undone at the site.

    The model is asked about the site's training cases before and after. The result stays only if it names the same
    class for at least the share `agreement` of them, and if the entropy of the classes' shares is at least `spread` of
    what it was: models that teach themselves end with one class for all. Undone means: as the visit found it.
    """

    agreement: Annotated[float, Field(ge=0, le=1)] = 0.6
    spread: Annotated[float, Field(ge=0, le=1)] = 0.8


class InnerSteps(Value):
    """First-order MAML: each step's gradient is taken where `steps` plain steps of rate `lr` on other cases lead to.

    Finn et al. 2017; Fallah et al. 2020, "Personalized federated learning", first-order form. What is learnt is a start
    from which a site gets far in a few steps.
    """

    lr: Annotated[float, Field(gt=0)] = 0.01
    steps: Annotated[int, Field(ge=1)] = 1

"""What a model sees: the input specification every site brings its data into, and how cases are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedgraft.common.base.value import Value

Split = Literal["train", "val", "test", "all"]
"""Cases of a site; `all` is for observers, whose data are public."""


class ImageInput(Value):
    """Square images of `size` pixels with 1 or 3 channels; values in [0, 1] before normalisation.

    `normalise: zscore` brings each image to mean 0 and deviation 1; `fixed` subtracts `mean` and divides by `std`,
    one number per channel, as pretrained weights often ask for.
    """

    kind: Literal["image"] = "image"
    size: Annotated[int, Field(ge=16, le=1024)] = 64
    channels: Literal[1, 3] = 1
    normalise: Literal["zscore", "fixed"] = "zscore"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.25,)

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> ImageInput:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} needs 1 or {self.channels} numbers, not {len(values)}")
        return self


class TableInput(Value):
    """Columns of a table, agreed by all sites: numbers as they are, categories one-hot in the listed order.

    The model's input has `width` columns: the numeric ones first, then one per category value. A missing number is
    NaN; a missing category is all zeros.
    """

    kind: Literal["table"] = "table"
    numeric: tuple[str, ...] = ()
    categorical: dict[str, tuple[str, ...]] = Field(default={})

    @model_validator(mode="after")
    def _some_columns(self) -> TableInput:
        if not self.width:
            raise ValueError("a table needs at least one numeric or categorical column")
        if both := set(self.numeric) & set(self.categorical):
            raise ValueError(f"columns both numeric and categorical: {', '.join(sorted(both))}")
        return self

    @property
    def width(self) -> int:
        """Number of columns that the model sees."""
        return len(self.numeric) + sum(len(values) for values in self.categorical.values())


InputSpec = Annotated[ImageInput | TableInput, Field(discriminator="kind")]


class SplitSpec(Value):
    """Shares of a site's patients for training, validation and test; they add up to 1."""

    train: Annotated[float, Field(gt=0, le=1)] = 0.6
    val: Annotated[float, Field(ge=0, lt=1)] = 0.15
    test: Annotated[float, Field(ge=0, lt=1)] = 0.25

    @model_validator(mode="after")
    def _adds_up(self) -> SplitSpec:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train + val + test is {self.train + self.val + self.test:g}, not 1")
        return self

"""What a model sees: the input specification every site brings its data into, and how cases are split."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedgraft.common.base.value import Value, unless

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
    """1 is grey; 3 is colour, or grey three times, as weights of colour images want it."""
    normalise: Literal["zscore", "fixed"] = "zscore"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.25,)

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> ImageInput:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} needs 1 or {self.channels} numbers, not {len(values)}")
        return self


class Scale(Value):
    """What a column's values are about, and how far they spread: public numbers, in the column's own unit."""

    mean: float
    """What is subtracted."""
    std: Annotated[float, Field(gt=0)]
    """What it is divided by afterwards."""


class Harmonisation(Value):
    """ComBat: what a site measures otherwise than the others is taken out of its numbers (Johnson et al. 2007).

    All numeric columns are adjusted but the covariates: what they explain is kept. They are columns of the input, which
    a model knows of new patients too, so that no label can be among them.
    """

    covariates: tuple[str, ...] = ()
    """Columns by which sites' patients differ as such, numbers or categories: age, sex."""


class TableInput(Value):
    """Columns of a table, agreed by all sites: numbers as they are, categories one-hot in the listed order.

    The model's input has `width` columns: the numeric ones first, then one per category value. A missing number is
    NaN; a missing category is all zeros.

    A model wants its columns on one scale. `standardise` gives it in public numbers, so that no site need be asked.
    Without it the plan begins with sums over the sites; if these are to be private, `ranges` bounds what one patient
    can change: public limits, beyond which a value counts as the limit. Each names all numeric columns, or none.
    """

    kind: Literal["table"] = "table"
    numeric: tuple[str, ...] = ()
    """Columns of numbers, in the order in which the model sees them."""
    categorical: dict[str, tuple[str, ...]] = Field(default={})
    """Columns of words: each with the words that it may hold, in order."""
    standardise: Annotated[dict[str, Scale], Field(exclude_if=unless({}))] = Field(default={})
    ranges: Annotated[dict[str, tuple[float, float]], Field(exclude_if=unless({}))] = Field(default={})
    harmonise: Annotated[Harmonisation | None, Field(exclude_if=unless(None))] = None
    """Takes sites' own effects out of the numeric columns, by ComBat; they stay as they are if absent."""

    @model_validator(mode="after")
    def _some_columns(self) -> TableInput:
        if not self.width:
            raise ValueError("a table needs at least one numeric or categorical column")
        if both := set(self.numeric) & set(self.categorical):
            raise ValueError(f"columns both numeric and categorical: {', '.join(sorted(both))}")
        for key, given in (("standardise", self.standardise), ("ranges", self.ranges)):
            if given and (absent := [name for name in self.numeric if name not in given]):
                raise ValueError(f"{key} names all numeric columns or none, and lacks {', '.join(absent)}")
            if strange := [name for name in given if name not in self.numeric]:
                raise ValueError(f"{key} names {', '.join(strange)}, which is no numeric column")
        if wrong := [name for name, (least, largest) in self.ranges.items() if not least < largest]:
            raise ValueError(f"ranges of {', '.join(wrong)}: the first number must be below the second")
        return self

    @model_validator(mode="after")
    def _can_be_harmonised(self) -> TableInput:
        if self.harmonise is None:
            return self
        covariates = self.harmonise.covariates
        if strange := [name for name in covariates if name not in self.numeric and name not in self.categorical]:
            raise ValueError(
                f"harmonise.covariates: {', '.join(strange)} is no column of the input; a covariate must be known of "
                "every new patient, so that labels are none"
            )
        if len(set(covariates)) < len(covariates):
            raise ValueError("harmonise.covariates: names a column twice")
        if single := [name for name in covariates if len(self.categorical.get(name, "two")) < 2]:
            raise ValueError(f"harmonise.covariates: {', '.join(single)} has one word, which tells nobody from anybody")
        if not self.harmonised:
            raise ValueError("harmonise: no numeric column is left that is no covariate")
        return self

    @property
    def harmonised(self) -> dict[str, int]:
        """The columns that ComBat adjusts, with where they stand among what the model sees; none without it."""
        if self.harmonise is None:
            return {}
        covariates = self.harmonise.covariates
        return {name: at for at, name in enumerate(self.numeric) if name not in covariates}

    @property
    def covariate_spans(self) -> dict[str, tuple[int, int]]:
        """By covariate of ComBat from where to where it stands: a number is one column, a category one per word."""
        spans = {name: (at, at + 1) for at, name in enumerate(self.numeric)}
        at = len(self.numeric)
        for name, words in self.categorical.items():
            spans[name] = (at, at := at + len(words))
        return {} if self.harmonise is None else {name: spans[name] for name in self.harmonise.covariates}

    @property
    def covariate_names(self) -> list[str]:
        """One for each number that ComBat knows of a case: a covariate, or each of its words but the first."""
        spans = self.covariate_spans
        return [
            own
            for name in spans
            for own in (
                [f"{name}: {word}" for word in self.categorical[name][1:]] if name in self.categorical else [name]
            )
        ]

    @property
    def needs_sums(self) -> bool:
        """Whether the scale of the columns has to be computed by the sites, since the study does not give it."""
        return bool(self.numeric) and not self.standardise

    def public_scale(self) -> tuple[list[float], list[float]] | None:
        """Mean and deviation of all `width` columns by the study's own numbers; None if it gives none.

        Of `ranges` alone these are the middle and half the width, from which noised sums are counted. Categories
        stay 0 and 1.
        """
        if self.standardise:
            own = [(self.standardise[name].mean, self.standardise[name].std) for name in self.numeric]
        elif self.ranges:
            limits = [self.ranges[name] for name in self.numeric]
            own = [((least + largest) / 2, (largest - least) / 2) for least, largest in limits]
        else:
            return None
        rest = self.width - len(own)
        return [mean for mean, _ in own] + [0.0] * rest, [std for _, std in own] + [1.0] * rest

    @property
    def width(self) -> int:
        """Number of columns that the model sees."""
        return len(self.numeric) + sum(len(values) for values in self.categorical.values())


class Extractor(Value):
    """What made features of images: its name, the SHA-256 of its weights, and how images were prepared for it.

    Features of two extractors have nothing in common but their number. So all three must be the same at all sites.
    """

    name: Annotated[str, Field(min_length=1, max_length=128)]
    """What the extractor is called."""
    weights: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of its weights, 64 hex digits."""
    preprocessing: Annotated[str, Field(min_length=1, max_length=512)]
    """How images were prepared for it, in the words of `fedgraft site embed`."""

    def differs(self, other: Extractor) -> list[str]:
        """The keys that another has otherwise."""
        return [key for key in type(self).model_fields if getattr(self, key) != getattr(other, key)]


class FeaturesInput(TableInput):
    """Features that one extractor has made of every case: `count` numbers, none of them missing.

    They are columns e0, e1, ... of a table, and are brought to one scale as those are; `standardise` and `ranges` may
    give one scale, or one pair of limits, for all of them.
    """

    kind: Literal["features"] = "features"  # type: ignore[assignment]  # by which the two are told apart
    count: Annotated[int, Field(ge=1, le=1 << 16)]
    extractor: Extractor
    """What made the features: the same at all sites."""
    numeric: Annotated[tuple[str, ...], Field(exclude=True)] = ()
    categorical: Annotated[dict[str, tuple[str, ...]], Field(exclude=True)] = Field(default={})

    @model_validator(mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(count := value.get("count"), int) or not 0 < count <= 1 << 16:
            return value
        if value.get("numeric") or value.get("categorical"):
            raise ValueError("numeric and categorical go with kind: table; features are counted by `count`")
        names = tuple(f"e{number}" for number in range(count))
        scale, limits = value.get("standardise"), value.get("ranges")
        whole = dict(value) | {"numeric": names}
        if isinstance(scale, dict) and set(scale) == {"mean", "std"}:
            whole["standardise"] = dict.fromkeys(names, scale)
        if isinstance(limits, list | tuple):
            whole["ranges"] = dict.fromkeys(names, limits)
        return whole


InputSpec = Annotated[ImageInput | TableInput | FeaturesInput, Field(discriminator="kind")]


class SplitSpec(Value):
    """Shares of a site's patients for training, validation and test; they add up to 1."""

    train: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the patients who train."""
    val: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the patients by whom rounds, thresholds and temperatures are chosen."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of the patients who are asked at the end alone."""

    @model_validator(mode="after")
    def _adds_up(self) -> SplitSpec:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train + val + test is {self.train + self.val + self.test:g}, not 1")
        return self

"""How the coordinator aggregates what sites send. Values; `fedgraft.server.aggregation` has the behaviour."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedgraft.common.base.value import Value, unless


class Mean(Value):
    """Weighted mean of the shared entries; weights are the sites' labelled training cases, or equal."""

    kind: Literal["mean"] = "mean"
    weight: Literal["examples", "equal"] = "examples"
    """A site counts by its examples, or as much as any other."""


class AdaptersProduct(Value):
    """As `mean`, but of low-rank adapters the mean of what they add, B A, split again into two of their rank.

    The mean of products is not the product of means. Its best approximation of the adapters' rank is exact where sites
    agree on a rank's worth of directions (Bai et al. 2024, "Federated fine-tuning of large language models under
    heterogeneous tasks and client resources"; Eckart and Young 1936). A keeps its length, in rows at right angles.
    """

    kind: Literal["adapters_product"] = "adapters_product"
    weight: Literal["examples", "equal"] = "examples"
    """A site counts by its examples, or as much as any other."""


class ServerOptimiser(Value):
    """The sites' mean change is a gradient for the coordinator's own optimiser (Reddi et al. 2021; Hsu et al. 2019).

    `sgd` with momentum is FedAvgM, without it a server learning rate: below 1 it is Reptile. `adam`, `yogi` and
    `adagrad` are FedAdam, FedYogi and FedAdagrad. Running statistics are averaged.
    """

    kind: Literal["server_optimiser"] = "server_optimiser"
    rule: Literal["sgd", "adam", "yogi", "adagrad"]
    """The optimiser that takes the mean change for a gradient."""
    lr: Annotated[float, Field(gt=0)] = 1.0
    """The coordinator's learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """beta1 of the adaptive rules."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """How slowly the adaptive rules forget squared changes."""
    tau: Annotated[float, Field(gt=0)] = 1e-3
    """How adaptive: entries that hardly change are not divided by less."""
    weight: Literal["examples", "equal"] = "examples"
    """A site counts by its examples, or as much as any other."""


class Median(Value):
    """The median of each coordinate over the sites, all counting the same (Yin et al. 2018)."""

    kind: Literal["median"] = "median"


class TrimmedMean(Value):
    """The mean of each coordinate without the share `trim` of the sites at either end (Yin et al. 2018).

    At least one site is cut at either end, as long as one is left.
    """

    kind: Literal["trimmed_mean"] = "trimmed_mean"
    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.2


class Krum(Value):
    """The mean of the `keep` updates closest to most others, if at most `faulty` are wrong (Blanchard et al. 2017).

    Needs 2 * faulty + 3 sites.
    """

    kind: Literal["krum"] = "krum"
    faulty: Annotated[int, Field(ge=1)] = 1
    keep: Annotated[int, Field(ge=1)] = 1


class ClippedMean(Value):
    """The mean of all changes, none larger than `bound` times the median of their norms (Sun et al. 2019).

    With `weight: examples` sites count by their labelled training cases, as large and small hospitals differ; but none
    has more than `largest_share` of the whole, since a site says itself how many cases it has.
    """

    kind: Literal["clipped_mean"] = "clipped_mean"
    bound: Annotated[float, Field(gt=0)] = 1.0
    """Longest change, as a multiple of the median of the sites' norms."""
    weight: Annotated[Literal["examples", "equal"], Field(exclude_if=unless("equal"))] = "equal"
    """What a site counts: its labelled training cases, or as much as every other."""
    largest_share: Annotated[float, Field(gt=0, le=1, exclude_if=unless(0.5))] = 0.5
    """The most that one site counts, of 1 for all; what it has beyond is the others'."""


class Ridge(Value):
    """Closed-form head: one ridge regression on standardised features, from the sites' sums, equal to the pooled one.

    `ridge_penalty` is relative to the number of cases. What is right grows with the number of features: `auto` takes
    for each task the one with the least generalised cross-validation error, from the total of the sums; of sums with
    noise, and of values, the number of features per case. `loso` takes the one that does best on the sites left out one
    after the other. `scale` multiplies the logits, so that their softmax is about as sharp as that of a trained head; a
    value's head is not scaled.
    """

    kind: Literal["ridge"] = "ridge"
    ridge_penalty: Annotated[float, Field(gt=0)] | Literal["auto", "loso"] = "auto"
    scale: Annotated[float, Field(gt=0)] = 5.0


class Newton(Value):
    """A step of Newton's method for logistic heads, from the sites' sums of features and of what the heads get wrong.

    Equal to the pooled step, and never too long (Boehning 1992); a few rounds of it are enough. `ridge_penalty` as of a
    ridge, of what is wrong on features as they are: with `loso` a step is the shorter the less it would help sites that
    are left out.
    """

    kind: Literal["newton"] = "newton"
    ridge_penalty: Annotated[float, Field(gt=0)] | Literal["loso"] = "loso"


class Logistic(Value):
    """A step of Newton's method for logistic heads with the exact curvature: equal to the pooled step.

    Some five to eight rounds end at the pooled logistic regression. `ridge_penalty` is relative to the number of cases,
    on features as they are; `auto` is the number of features per case.
    """

    kind: Literal["logistic"] = "logistic"
    ridge_penalty: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"


class NearestMean(Value):
    """Closed-form head: a case belongs to the class whose mean feature is nearest, from the same sums as a ridge.

    `scale` multiplies the logits, which are half the squared distances, negative, over the features' mean variance.
    """

    kind: Literal["ncm"] = "ncm"
    scale: Annotated[float, Field(gt=0)] = 0.05


class Discriminant(Value):
    """Closed-form head: linear discriminant analysis with a shrunken covariance, from the same sums as a ridge.

    `shrink` is the share of the mean variance that is mixed into the within-class covariance.
    """

    kind: Literal["lda"] = "lda"
    shrink: Annotated[float, Field(gt=0, le=1)] = 0.1


class Moments(Value):
    """Mean and covariance of features from the sites' sums, for the sites of later stages that ask for them."""

    kind: Literal["moments"] = "moments"


class Threshold(Value):
    """From where on an image is out of distribution: a quantile of the training sites' counted distances."""

    kind: Literal["threshold"] = "threshold"
    quantile: Annotated[float, Field(gt=0.5, lt=1)] = 0.99
    """Share of the training sites' distances that lie below it."""


class Temper(Value):
    """Logits divided by the temperature with the least loss over all sites' cases, of a fixed grid, from their sums.

    Guo et al. 2017, "On calibration of modern neural networks": ranks stay, probabilities become usable. Each base
    model of an ensemble gets its own, or the heads of the model get one, task by task.
    """

    kind: Literal["temper"] = "temper"


class Standardise(Value):
    """Mean and deviation of a table's columns from the sites' sums, put into the model's first layer."""

    kind: Literal["standardise"] = "standardise"


class ComBat(Value):
    """What is common to all sites' columns, with their covariates, from sums: equal to that of ComBat on pooled cases.

    Johnson et al. 2007. Put into the model's first layer; what is a site's own it finds itself, in a stage `harmonise`.
    """

    kind: Literal["combat"] = "combat"


class KaplanMeier(Value):
    """Kaplan-Meier curves from the sites' counts of who left in which bin of time, equal to those of all patients.

    They come with Greenwood's intervals into the run's result, and no entry of the model changes.
    """

    kind: Literal["kaplan_meier"] = "kaplan_meier"


class Cox(Value):
    """A step of Newton's method for Cox's proportional hazards, from the sites' sums: equal to the pooled step.

    Breslow's likelihood, times in bins; eight rounds are usually enough. The coefficients come into the run's result.
    """

    kind: Literal["cox"] = "cox"


class Nothing(Value):
    """Nothing is aggregated: what the sites did stays with them."""

    kind: Literal["nothing"] = "nothing"


Robust = Median | TrimmedMean | Krum | ClippedMean
"""Aggregations that hold when a few sites send nonsense."""
ClosedForm = Ridge | NearestMean | Discriminant
"""Aggregations that solve heads from sums of features and labels."""
Sums = ClosedForm | Newton | Logistic | Moments | Temper | Threshold | Standardise | ComBat | KaplanMeier | Cox
"""Aggregations that add up sums, not entries."""
Aggregation = Annotated[Mean | AdaptersProduct | ServerOptimiser | Robust | Sums | Nothing, Field(discriminator="kind")]

"""What sites send of their cases, and what the coordinator makes of it, in words."""

from __future__ import annotations

from fedgraft.common.study.plan import Stage, Statistics
from fedgraft.common.study.stages.aggregates import Newton, Ridge, Temper

MEASURED = {"base_models": "each base model", "answers": "the heads' answers"}
"""What losses at each temperature are of."""
CASES = {"train": "training cases", "val": "validation cases"}
"""Cases of a split."""
_COUNTED = {
    "distances": "count how far their validation images are from the mean of all sites' features, once",
    "harmonisation": "send count and sum of each column and its covariates, with squares and products around their own "
    "means, once",
    "survival": "count which of all their patients left in which bin of time, by the event or without, once",
}
_STEPPED = {
    "curvature": "send sums of what the heads get wrong and of how that curves on their {}",
    "hazards": "send sums over all their patients of features weighed by their hazard",
}
SOLVED = {
    "moments": "the mean and covariance of features, for later stages",
    "threshold": "from where on an image counts as unlike the sites' own, which goes out with the model",
    "ridge": "one ridge head equal to the pooled one",
    "ncm": "one head of class means equal to the pooled one",
    "lda": "one linear discriminant equal to the pooled one",
    "standardise": "one common scale",
    "combat": "what is common to all sites' columns with their covariates, equal to the pooled fit",
    "newton": "each time a step towards a logistic head, equal to the pooled step",
    "logistic": "each time a step towards the pooled logistic regression, equal to the pooled step",
    "kaplan_meier": "a Kaplan-Meier curve of each group, equal to the pooled one",
    "cox": "each time a step towards the pooled Cox regression, equal to the pooled step",
    "temper": "the temperature that fits all sites' cases best",
}


def sums(local: Statistics, rounds: int) -> str:
    """What the sites send of their cases."""
    cases = CASES[local.split]
    match local.of:
        case "columns":
            noise = "" if local.private is None else " within its public range, with noise for differential privacy"
            return f"send count, sum and sum of squares of each column{noise}"
        case "distances" | "survival" | "harmonisation":
            return _COUNTED[local.of] + ("" if local.private is None else ", with noise for differential privacy")
        case "base_models" | "answers":
            return f"send the loss of {MEASURED[local.of]} at each temperature of a grid, over their {cases}, once"
        case "residuals":
            times = f"{rounds} times" if rounds > 1 else "once"
            return f"send sums of features and of what the heads get wrong on their {cases}, {times}"
        case "curvature" | "hazards":
            return _STEPPED[local.of].format(cases) + f", {rounds} times"
        case _:
            noise = "" if local.private is None else ", with noise for differential privacy"
            over = f" of their {cases}" if local.split != "train" else ""
            digits = "" if local.precision == "double" else ", with 7 digits"
            return f"send sums of features and labels{over} once{digits}{noise}"


def solved(stage: Stage, local: Statistics) -> str:
    """What the coordinator makes of their sums."""
    words = SOLVED[stage.aggregate.kind]
    if local.private is not None:
        words = words.removesuffix(" equal to the pooled one").removesuffix(",")
    if isinstance(stage.aggregate, Ridge | Newton) and stage.aggregate.ridge_penalty == "loso":
        words += ", with the ridge penalty that does best on sites left out, from the same sums"
    elif isinstance(stage.aggregate, Ridge) and stage.aggregate.ridge_penalty == "auto":
        words += ", with a ridge penalty that follows from " + (
            "the number of features and cases" if local.private is not None else "the same sums by cross-validation"
        )
    if local.retain_statistics:
        words += ", and keeps each site's sums, so that a site can leave or join later"
    if isinstance(stage.aggregate, Temper):
        words += f", for {MEASURED[local.of]}"
    return words

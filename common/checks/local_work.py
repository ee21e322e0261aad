"""A stage's local work in a few words."""

from __future__ import annotations

from fedgraft.common.checks.sums_in_words import CASES, MEASURED
from fedgraft.common.study.plan import Gradient, Harmonise, Stage, Statistics
from fedgraft.common.study.stages.losses import SUPERVISED


def describe_local(stage: Stage) -> str:
    """A stage's local work: its optimiser and length, or which sums, and with noise or not."""
    local = stage.local
    if isinstance(local, Gradient):
        length = f"{local.steps} steps" if local.steps else f"{local.epochs} epoch{'s' * (local.epochs != 1)}"
        return f"gradient: {local.optimiser}, lr {local.lr:g}, {length} of {local.batch_size}{_beyond(local)}"
    if isinstance(local, Statistics):
        if local.of in MEASURED:
            return f"losses of {MEASURED[local.of]} at each temperature, on {CASES[local.split]}"
        where = f" on {CASES[local.split]}" if local.split != "train" else ""
        return f"sums of {local.of}{where}" + (" with noise" if local.private is not None else "")
    if isinstance(local, Harmonise):
        return "the site's own effects on its columns (ComBat)"
    return "norm statistics from the site's own images"


def _beyond(local: Gradient) -> str:
    """What is not the same for all: other kinds of steps, other rates, more to minimise than the loss over labels."""
    words = ""
    if local.heads_first is not None:
        words += f" after {local.heads_first} steps on heads alone"
    if local.inner_steps is not None:
        words += f", each gradient taken {local.inner_steps.steps} steps ahead (first-order MAML)"
    if local.layer_decay != 1:
        words += f", the rate times {local.layer_decay:g} for each block below the heads"
    if local.losses != SUPERVISED:
        words += ", on " + " + ".join(f"{loss.weight:g} x {loss.description}" for loss in local.losses)
    if local.methods:
        words += ", with " + " and ".join(method.description for method in local.methods)
    if local.rollback is not None:
        words += (
            f", undone where the model names another class for more than {1 - local.rollback.agreement:.0%} of the "
            "site's cases, or drifts to few classes"
        )
    return words

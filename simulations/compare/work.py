"""What an arm takes from the study: how much is worked and how steps are taken, and nothing of the study's method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.methods.presets import expand
from fedgraft.common.study.methods.recipes import NamedMethod
from fedgraft.common.study.model_spec import ENSEMBLE
from fedgraft.common.study.plan import Gradient, Stage, Statistics
from fedgraft.common.study.stages.aggregates import Standardise
from fedgraft.common.study.study import Study
from fedgraft.simulations.compare.amount import at_hospitals

WORK = ("epochs", "steps", "batch_size")
"""How much a site works in a round; with the rounds, the amount of work."""
OPTIMISER = (
    "optimiser",
    "lr",
    "backbone_lr_factor",
    "momentum",
    "weight_decay",
    "schedule",
    "warmup",
    "clip_norm",
    "private",
)
"""How a step is taken. The noise of DP-SGD is a part of it: without it, a private study's arm would not be private."""
CASES = ("augment", "class_weights")
"""What the cases look like and count. No preset says anything of it, so arms that differ in it would mix two things."""


def preset(study: Study, method: str, more: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The preset's stages with the study's amount of work, to the round, and its optimiser settings.

    What else the study's stages say (`losses`, `train`, `fixed_norm_stats`, `layer_decay` and so on) is how its own
    method works, and stays there: FedBN with another method's proximal loss would be neither of the two.
    """
    work = [(stage.local, stage.rounds) for stage in study.plan if isinstance(stage.local, Gradient)]
    settings: dict[str, Any] = {"name": method, **more}
    if work:
        local = {key: getattr(work[0][0], key) for key in (*WORK, *OPTIMISER, *CASES)}
        settings |= {"rounds": sum(rounds for _, rounds in work), "local": Gradient(**local)}
    columns = next((stage for stage in study.plan if isinstance(stage.aggregate, Standardise)), None)
    if columns is not None and isinstance(columns.local, Statistics):
        settings["columns"] = columns.local.private
    table = isinstance(study.input, TableInput) and study.input.needs_sums and study.model.backbone != ENSEMBLE
    harmonise = isinstance(study.input, TableInput) and study.input.harmonise is not None
    stages = expand(NamedMethod(**settings), table=table, harmonise=harmonise)
    asked = settings.get("rounds", NamedMethod(name=method).rounds)
    if (there := sum(rounds for _, rounds in at_hospitals(stages))) > asked:
        # Some methods go through the rounds once together and once more at each site: that is twice the work.
        fewer = NamedMethod(**settings | {"rounds": max(1, round(asked * asked / there))})
        stages = expand(fewer, table=table, harmonise=harmonise)
    return stages


def differences(study: Study, other: Study) -> list[str]:
    """What a study says otherwise than another, key by key, as `key: 1 (not 2)`; names and seeds do not count."""
    one, two = (dict(_flat(own.model_dump(mode="json", exclude={"name", "seed"}))) for own in (study, other))
    keys = [*one, *(key for key in two if key not in one)]
    return [f"{key}: {_said(one, key)} ({_other(two, key)})" for key in keys if one.get(key) != two.get(key)]


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value by its dotted key; stages and tasks by their number."""
    if isinstance(value, dict):
        inner = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, list) and place in ("plan", "tasks"):
        inner = [(str(number), each) for number, each in enumerate(value)]
    else:
        yield place, value
        return
    for key, each in inner:
        yield from _flat(each, f"{place}.{key}" if place else key)


def _other(values: Mapping[str, Any], key: str) -> str:
    return "there not given" if values.get(key) is None else f"not {_said(values, key)}"


def _said(values: Mapping[str, Any], key: str) -> str:
    return "not given" if (value := values.get(key)) is None else in_words(value)


def in_words(value: Any) -> str:
    """A plain value of a study as a reader takes it in: kinds first, then keys with their values."""
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    if isinstance(value, dict):
        rest = " ".join(f"{key} {in_words(one)}" for key, one in value.items() if key != "kind")
        return " ".join(word for word in (in_words(value.get("kind", "")), rest) if word)
    return str(value)

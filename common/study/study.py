"""The study: what the coordinator asks. Strict, frozen, parsed once; all faults are reported together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field, ValidationError, model_validator

from fedgraft.common.base.console.printable import obeyed
from fedgraft.common.base.errors import StudyError
from fedgraft.common.base.files import CONFIGS, canonical_json
from fedgraft.common.base.value import Value, unless
from fedgraft.common.config.config_files import NO_MAPPING, describe, of_overrides, override, read_mapping
from fedgraft.common.config.suggest import instead
from fedgraft.common.plugins.plugin import Plugin
from fedgraft.common.plugins.registry import Kind, names
from fedgraft.common.study.clusters import Clusters, begins_at
from fedgraft.common.study.inputs import ImageInput, InputSpec, SplitSpec
from fedgraft.common.study.methods.presets import expand
from fedgraft.common.study.methods.recipes import NamedMethod
from fedgraft.common.study.model_spec import ENSEMBLE, Model, Teacher
from fedgraft.common.study.plan import Gradient, Stage, plugged_losses
from fedgraft.common.study.rules import Evaluation, RoundRules
from fedgraft.common.study.stages.losses import OWN_LOSSES, Adversarial, Distill
from fedgraft.common.study.tasks import (
    AnyTask,
    Multilabel,
    Task,
    linear_heads,
    mask_heads,
)


class Study(Value):
    """All that the sites are asked to do. Two studies with the same digest ask the same."""

    WRITTEN_TOO: ClassVar = ("method", "scenario", "compare")
    """What a study's file may have besides; it is taken out before this is made of it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    """What the study is called: small letters, digits, `-` and `_`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides splits, initial entries and batches: the same seed gives the same run, bit for bit."""
    tasks: Annotated[tuple[AnyTask, ...], Field(min_length=1)]
    """What is asked of each case. A model has a head for each."""
    input: InputSpec = ImageInput()
    """What a case is made into before it reaches the model."""
    split: SplitSpec = SplitSpec()
    """How each site divides its patients."""
    model: Model = Model()
    """The backbone, and the weights that it starts from."""
    plan: tuple[Stage, ...]
    """What is done, in order. Nothing at all, `[]`: sites measure the model that its weights give, with its heads."""
    rounds: RoundRules = RoundRules()
    """When a round counts, and when a run has completed."""
    evaluate: Evaluation = Evaluation()
    """When, on what and how sites measure the model."""
    clusters: Annotated[Clusters | None, Field(exclude_if=unless(None))] = None
    """Groups of sites that are alike, each with a model of its own; None for one model of all sites."""
    secure_aggregation: bool = False
    """Sites mask all that they send, so that the coordinator learns sums over at least three sites, and nothing else:
    no site's entries, weights, counts or metrics."""
    plugins: Annotated[tuple[Plugin, ...], Field(exclude_if=unless(()))] = ()
    """Whose code it uses beside fedgraft's, as `my-nets==1.2.0`. A site's own people install it; it is never sent."""

    @staticmethod
    def read(source: Path | str, *overrides: str) -> Study:
        """The study in a YAML file, or the one of that name that ships; `overrides` are `dotted.key=value`.

        The scenario and the comparison that a file may name are left out. StudyError lists every fault.
        """
        return find_study(Path(source), overrides)[0]

    @staticmethod
    def parse(values: Mapping[str, Any]) -> Study:
        """The study of plain values, as a file has them. StudyError lists every fault."""
        return parse_study(values, "the study")

    @model_validator(mode="after")
    def _names_differ(self) -> Study:
        named = {
            "task": [task.name for task in self.tasks],
            "stage": [stage.name for stage in self.plan],
            "plug-in": [plugin.key for plugin in self.plugins],
        }
        for what, own in named.items():
            if twice := sorted({name for name in own if own.count(name) > 1}):
                raise ValueError(f"more than one {what} is called {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _losses_exist(self) -> Study:
        """A loss that is not known here is a plug-in's if the study names plug-ins; a site may not have it yet."""
        for key, loss in plugged_losses(self.plan) if not self.plugins else ():
            if loss.kind not in (known := names(Kind.LOSSES)):
                raise ValueError(f"{key}: there is no loss {loss.kind!r}{instead(loss.kind, [*OWN_LOSSES, *known])}")
        return self

    @model_validator(mode="after")
    def _has_a_place_for_clusters(self) -> Study:
        if self.clusters is not None:
            begins_at(self.clusters, self.plan)
        return self

    @model_validator(mode="before")
    @classmethod
    def _measured_with_its_heads(cls, value: Any) -> Any:
        """What is only measured comes with its heads: nobody would make others."""
        model = value.get("model") if isinstance(value, dict) else None
        if not isinstance(model, dict) or value.get("plan") not in ([], ()) or model.get("weights") is None:
            return value
        return {**value, "model": {"heads": "weights", **model}}

    @model_validator(mode="after")
    def _has_something_to_measure(self) -> Study:
        if not self.plan and not self.model.base_models and self.model.heads != "weights":
            raise ValueError(
                "plan: [] measures a finished model: name its run or its file as model.weights; leave model.heads out"
            )
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the study's canonical form, 64 hex digits."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def heads(self) -> dict[str, int]:
        """Outputs of the linear heads by task name; for a classification its classes."""
        return linear_heads(self.tasks)

    @property
    def mask_heads(self) -> tuple[str, ...]:
        """Names of the tasks that ask for a mask."""
        return mask_heads(self.tasks)

    @cached_property
    def tasks_by_name(self) -> dict[str, AnyTask]:
        """The tasks by name, in the study's order."""
        return {task.name: task for task in self.tasks}

    @property
    def domain_discriminators(self) -> tuple[str, ...]:
        """Names of the domain discriminators that the plan trains against."""
        losses = [loss for stage in self.plan if isinstance(stage.local, Gradient) for loss in stage.local.losses]
        return tuple(sorted({loss.domain_discriminator for loss in losses if isinstance(loss, Adversarial)}))

    def teacher_of(self, stage: Stage) -> Teacher | None:
        """The finished model whose answers the sites of this stage learn; None if there is none."""
        losses = stage.local.losses if isinstance(stage.local, Gradient) else ()
        return next((loss.teacher for loss in losses if isinstance(loss, Distill)), None)

    @property
    def architectures(self) -> tuple[str, ...]:
        """All backbones that a site would run: an ensemble is each of its base models', and teachers count as well."""
        teachers = [teacher for stage in self.plan if (teacher := self.teacher_of(stage)) is not None]
        return tuple(dict.fromkeys(name for model in (self.model, *teachers) for name in model.architectures))

    @cached_property
    def calibrated(self) -> tuple[str, ...]:
        """Tasks whose answers are probabilities that a temperature can sharpen or flatten."""
        return tuple(task.name for task in self.tasks if isinstance(task, Task | Multilabel))

    def to_json(self) -> bytes:
        """The study as canonical JSON, all defaults written out."""
        return canonical_json(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """The study as YAML, all defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def locate(path: Path) -> Path:
    """A study's file: the path itself, or the file of the study of that name that ships.

    StudyError for what can only be such a name, and is none.
    """
    shipped = CONFIGS / "studies" / f"{path}.yaml"
    if (path.exists() and not path.is_dir()) or path.parent != Path():  # a folder of a study's name is no study
        return path
    if not shipped.exists() and not path.suffix:
        names = [file.stem for file in shipped.parent.glob("*.yaml")]
        raise StudyError(str(path), [f"is no file, and no study of that name ships{instead(str(path), names)}"])
    return shipped if shipped.exists() else path


def read_study(path: Path, overrides: Sequence[str] = ()) -> tuple[Study, str | None]:
    """The study in a YAML file and the scenario it names for simulations, if any; what it is compared with is left out.

    `overrides` are `dotted.key=value` with YAML values. Raises StudyError with every fault.
    """
    data = read_mapping(path)
    _make_way(data, {key: value for key, _, value in (item.partition("=") for item in overrides)})
    faults = [fault for item in overrides if (fault := override(data, item))]
    if faults:
        raise StudyError(str(path), faults)
    data.pop("compare", None)
    scenario = data.pop("scenario", None)
    if scenario is not None and not isinstance(scenario, str):
        raise StudyError(str(path), ["scenario: must be the name or path of a scenario file"])
    try:
        return parse_study(data, str(path)), scenario
    except StudyError as error:
        raise StudyError(str(path), of_overrides(error.faults, overrides)) from None


def _make_way(data: dict[str, Any], typed: Mapping[str, str]) -> None:
    """Take out of a file what a `--set` replaces whole: a plan its method, or the other way round.

    With no plan at all a finished model is measured with its heads, whatever the file says of those that it trains.
    """
    whole = {key.partition(".")[0] if key.startswith("method.") else key for key in typed}
    for key, other in (("plan", "method"), ("method", "plan")):
        if key in whole and other not in whole:
            data.pop(other, None)
    model = data.get("model")
    if typed.get("plan", "").strip() == "[]" and "model.heads" not in typed and isinstance(model, dict):
        model.pop("heads", None)


def find_study(path: Path, overrides: tuple[str, ...] = ()) -> tuple[Study, str | None]:
    """A study by path, or by the name of one that ships, and the scenario that it names."""
    return read_study(locate(path), overrides)


def parse_study(data: Mapping[str, Any], source: str) -> Study:
    """A checked study from plain values; StudyError names `source` and lists every fault with its key.

    Whoever sends a study writes the words that people at a site review it by: none may hold what a terminal obeys.
    """
    if not isinstance(data, Mapping):
        raise StudyError(source, [NO_MAPPING])
    if odd := list(_obeyed(data, "")):
        raise StudyError(source, odd)
    plain, faults = _expand_method(dict(data))
    try:
        study = Study.model_validate(plain)
    except ValidationError as error:
        raise StudyError(source, faults + describe(error, Study)) from None
    if faults:
        raise StudyError(source, faults)
    return study


def _obeyed(value: Any, key: str) -> Iterator[str]:
    """A fault for each key and text, at any depth, that is more than letters on a terminal."""
    if isinstance(value, str) and obeyed(value, lines=False):
        yield f"{key or 'the study'}: {value!a} holds characters that are not shown as they are; write it without"
    elif isinstance(value, Mapping):
        for name, own in value.items():
            place = f"{key}.{ascii(name)[1:-1]}" if key else ascii(name)[1:-1]
            yield from _obeyed(name, f"the key {place}")
            yield from _obeyed(own, place)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for at, own in enumerate(value):
            yield from _obeyed(own, f"{key}.{at}")


def _expand_method(data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Replace `method` by the stages of its plan; with faults, by a plan that hides no other fault."""
    if "method" not in data:
        return data, []
    method = data.pop("method")
    if "plan" in data:
        return data, ["method: give either method or plan, not both"]
    given = data["input"] if isinstance(data.get("input"), dict) else {}
    columns = given.get("kind") == "features" or (given.get("kind") == "table" and bool(given.get("numeric")))
    table = columns and not given.get("standardise")
    harmonise = given.get("harmonise") is not None
    finished = isinstance(data.get("model"), dict) and data["model"].get("backbone") == ENSEMBLE
    faults = []
    try:
        chosen = NamedMethod.model_validate({"name": method} if isinstance(method, str) else method)
        stages = expand(chosen, table=table and not finished, harmonise=harmonise and not finished)
    except ValidationError as error:
        faults = [f"method.{line}" for line in describe(error, NamedMethod)]
    except ValueError as error:
        faults = [f"method: {error}"]
    if faults:
        stages = expand(NamedMethod(name="fedavg"), table=table)
    return data | {"plan": [stage.model_dump() for stage in stages]}, faults

"""What is compared: questions, each with arms that differ in one thing. Strict, frozen, parsed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from fedgraft.common.base.errors import StudyError
from fedgraft.common.base.value import Value
from fedgraft.common.checks.check_plugins import renamed_code
from fedgraft.common.config.config_files import describe, put, read_mapping
from fedgraft.common.config.suggest import instead
from fedgraft.common.models.weights import load_manifest
from fedgraft.common.study.methods.ensembles import ENSEMBLES
from fedgraft.common.study.methods.fit import Fit
from fedgraft.common.study.methods.presets import presets
from fedgraft.common.study.model_spec import ENSEMBLE, Model
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.compare.measures.measure import RANKED, metric_faults
from fedgraft.simulations.compare.work import preset

Who = Literal["together", "alone", "pooled", "nobody", "new_site"]
Shortcut = Literal["mean_mask", "mean_shade"]
_NAME = r"^[a-z][a-z0-9_]{0,31}$"
_NONE: Mapping[str, Study] = MappingProxyType({})
ARM = "arm:"
"""How a base model is named before the arm that it comes from has been carried out."""
_FIRST = ("study", "scratch", "local", "pooled", "fedavg")


class Arm(Value):
    """One way to get a model: who trains together, and what differs from the study.

    `together`: the sites federate. `alone`: each site has a model of its own. `pooled`: all cases at one place, as if
    there were no walls. `nobody`: the weights as they come. `new_site`: the sites but one federate, and that one, which
    brought no labels, is measured; once for each. `method` replaces the study's plan by a preset with the same
    amount of work and optimiser settings, and nothing else of it; `set` changes keys. Test labels are never changed.
    """

    name: Annotated[str, Field(pattern=_NAME)]
    """What it is called in tables."""
    who: Who = "together"
    """Who trains, and on whose cases."""
    method: str | None = None
    keys: dict[str, Any] = Field(default={}, alias="set")
    """Keys of the study that it changes, `dotted.key: value`; written `set`."""
    labels: Literal["known", "shuffled"] = "known"
    """`shuffled` deals the training labels out anew: whoever still does well has learnt something else."""
    weights: str | None = None
    """A finished model, as a run's folder or the id of weights, which is measured as it is; nobody trains."""
    control: bool = False
    """Whether it is a shortcut, which a model that has learnt something of the matter must clearly beat."""
    shortcut: Shortcut | None = None
    """Masks from nothing but where those of the training cases lie, or how bright they are; counted, not trained."""
    elsewhere: bool = False
    """Whether it learnt from none of these hospitals' patients. Else it must have held out those that are tested."""
    fit: Fit = Fit()
    """In a question about shots: how a new site fits the model to them."""
    base_models: tuple[str, ...] = ()
    """Other arms, whose models of the same seed, fold and number of cases are this one's ensemble; or its teachers,
    if the method is `distill`."""

    @model_validator(mode="after")
    def _put_together(self) -> Arm:
        if self.method in ENSEMBLES and not self.base_models:
            raise ValueError(f"{self.name}: {self.method} needs `base_models`, the names of other arms")
        return self

    @model_validator(mode="before")
    @classmethod
    def _nobody_trains_what_is_finished(cls, value: Any) -> Any:
        finished = isinstance(value, dict) and value.get("weights") is not None
        return {"who": "nobody", **value} if finished else value

    @model_validator(mode="after")
    def _is_measured_as_it_is(self) -> Arm:
        if self.weights is not None and (self.who != "nobody" or self.method or self.base_models):
            raise ValueError(
                f"{self.name}: a finished model is measured as it is; leave out who, method and base_models"
            )
        if self.elsewhere and self.weights is None:
            raise ValueError(f"{self.name}: elsewhere goes with `weights`")
        return self

    def apply(self, study: Study, source: str, others: Mapping[str, Study] = _NONE) -> Study:
        """The study as this arm changes it; `others` are those of other arms. StudyError with every fault.

        Base models are named as `ARM + their name`, and get their place when they are there.
        """
        data = study.model_dump(mode="json")
        named = [{"weights": ARM + name, "backbone": others[name].model.backbone} for name in self.base_models]
        ensemble = {"backbone": ENSEMBLE, "base_models": named}
        if named and self.method != "distill":
            study = study.model_copy(update={"model": Model.model_validate(ensemble)})
            data["model"] = study.model.model_dump(mode="json")
        if self.weights is not None:
            data |= {"model": _finished(self.weights), "plan": []}
        if self.method is not None:
            teacher = {} if self.method != "distill" else {"teacher": named[0] if len(named) == 1 else ensemble}
            told = {key: value for key, value in self.keys.items() if key.startswith("input.")}
            asked = changed(data, told, source) if told else study  # its columns decide which stages come first
            data["plan"] = [stage.model_dump(mode="json") for stage in preset(asked, self.method, teacher)]
        return renamed_code(changed(data, self.keys, f"{source}, arm {self.name}"), study)


def _control(backbone: str) -> Arm:
    """A ridge on what a shortcut sees, at each site alone; brightness must be in it, so images are not standardised."""
    keys = {
        "input.normalise": "fixed",
        "input.mean": [0.5],
        "input.std": [0.25],
        "model": {"backbone": backbone, "weights": None},
    }
    return Arm(name=backbone, who="alone", method="ridge_probe", control=True, set=keys)


BUILT_IN: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(name="study"),
        Arm(name="scratch", set={"model.weights": None, "model.heads": "fresh"}),
        Arm(name="local", who="alone"),
        Arm(name="pooled", who="pooled"),
        Arm(name="source_only", who="nobody", set={"model.heads": "weights"}),
        Arm(name="shuffled", labels="shuffled"),
        Arm(name="new_site", who="new_site"),
        *(_control(name) for name in ("thumbnail", "intensity")),
        *(Arm(name=name, who="alone", control=True, shortcut=name) for name in get_args(Shortcut)),
        *(Arm(name=name, method=name) for name in presets() if name not in ENSEMBLES),
    )
}


class Expectation(Value):
    """What the difference of `arm` and `over` should be: at least, at most, or within so much of 0 either way.

    `surely` asks it of the whole 95 % interval, and not of the estimate alone.
    """

    arm: str
    """The arm whose figure it is about."""
    over: str
    """The arm that is subtracted."""
    cases: int | None = None
    """With how many cases, where the question is repeated; all if absent."""
    at_least: float | None = None
    """The least that the difference should be."""
    at_most: float | None = None
    """The most that the difference should be."""
    within: Annotated[float, Field(gt=0)] | None = None
    """How far from 0 it may be, either way."""
    surely: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Expectation:
        if self.at_least is self.at_most is self.within is None:
            raise ValueError("needs at_least, at_most or within")
        return self


class Question(Value):
    """Some arms on the hospitals of one scenario. Every arm is compared with the one named in `against`.

    `cases` repeats it with at most so many training cases per site. `hide` names sites whose labels are for testing
    alone; `measure` names those that count, all if empty. With `folds`, each patient is tested once per seed.
    `margin` is the difference that would not matter.

    With `shots`, each measured site in turn is new: it fits the model of the others, or of `nobody`, to so many of its
    training cases of each class, `draws` times, each arm in its own way (`fit`).
    """

    name: Annotated[str, Field(pattern=_NAME)] = "study"
    """What the question is called, also for `--only`."""
    asks: str = ""
    """The question in words, for the page."""
    by_name: bool = False
    """A long one: it is asked where `--only` names it, and left out of all others."""
    scenario: str | None = None
    """The hospitals, by name or file; those of the study if absent."""
    keys: dict[str, Any] = Field(default={}, alias="set")
    """Keys of the study that all arms change, `dotted.key: value`; written `set`."""
    arms: Annotated[tuple[Arm, ...], Field(min_length=2)]
    """What is compared: names of arms that are there, or arms of one's own."""
    against: str = "study"
    """The arm that all others are held against."""
    task: str | None = None
    """The task that is measured; the first if absent."""
    metric: str | None = None
    """What decides: a metric of the task's kind, or a plug-in's; the task's headline if absent."""
    cases: tuple[Annotated[int, Field(ge=1)], ...] = ()
    shots: tuple[Annotated[int, Field(ge=1)], ...] = ()
    draws: Annotated[int, Field(ge=1)] = 5
    seeds: Annotated[int, Field(ge=1)] | None = None
    """Paired repetitions; as the command says if absent."""
    folds: Annotated[int, Field(ge=2)] | None = None
    hide: tuple[str, ...] = ()
    measure: tuple[str, ...] = ()
    margin: Annotated[float, Field(gt=0)] | None = None
    """In the metric's unit; if absent .02, of values a twentieth of the task's `std`, of distances 1 mm."""
    expect: tuple[Expectation, ...] = ()
    """What should come out; the page says whether it did."""

    @field_validator("arms", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [_arm(one) for one in value]

    @model_validator(mode="after")
    def _hangs_together(self) -> Question:
        names = [arm.name for arm in self.arms]
        faults = [f"more than one arm is called {name}" for name in sorted({n for n in names if names.count(n) > 1})]
        asked = [self.against, *(name for one in self.expect for name in (one.arm, one.over))]
        faults += [fault for arm in self.arms for fault in _base_model_faults(arm, self.arms)]
        faults += [
            f"{name} is none of the arms {', '.join(names)}" for name in dict.fromkeys(asked) if name not in names
        ]
        for one in self.expect:
            if one.cases is not None and one.cases not in self.sizes:
                faults.append(f"expect: {one.cases} is not among the cases or shots")
        faults += metric_faults(self.metric) if self.metric is not None else []
        faults += self._few() if self.shots else []
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """What the question is repeated with: shots, or numbers of cases, or neither."""
        return self.shots or self.cases or (None,)

    def _few(self) -> list[str]:
        """Faults of a question with `shots`: keys and metrics that do not go with it."""
        faults = ["shots: go with neither cases nor folds"] if self.cases or self.folds else []
        if self.metric in (None, *RANKED):
            faults.append(
                "metric: draws of shots are averaged, and scores of several models make no AUROC; name another, such "
                "as balanced_accuracy"
            )
        others = [arm.name for arm in self.arms if arm.who not in ("new_site", "nobody")]
        if others:
            faults.append(f"arms: {', '.join(others)} must be for a new_site, or of nobody, where there are shots")
        return faults


class Questions(Value):
    """Questions, and over how many seeds each is asked. `quick` is the number of seeds of a first look."""

    seeds: Annotated[int, Field(ge=1)] = 3
    quick: Annotated[int, Field(ge=1)] = 1
    questions: Annotated[tuple[Question, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Questions:
        names = [question.name for question in self.questions]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"more than one question is called {', '.join(twice)}")
        if all(question.by_name for question in self.questions):
            raise ValueError("questions: all are by_name, so that none would be asked; leave it out of one")
        return self


def usual_questions() -> Questions:
    """What is compared where nothing else is asked for."""
    return Questions(questions=(Question(arms=tuple(BUILT_IN[name] for name in _FIRST)),))


def read_comparison(path: Path) -> Questions:
    """What a study's file says under `compare`, or the usual arms. StudyError with every fault."""
    asked = read_mapping(path).get("compare")
    if asked is None:
        return usual_questions()
    try:
        return Questions.model_validate(asked)
    except ValidationError as error:
        raise StudyError(str(path), [f"compare.{fault}" for fault in describe(error)]) from None


def changed(data: dict[str, Any], keys: Mapping[str, Any], source: str) -> Study:
    """A study from its plain values, with some keys set. StudyError with every fault."""
    if "method" in keys:
        data = {key: value for key, value in data.items() if key != "plan"}
    faults = [f"set {key}: {fault}" for key, value in keys.items() if (fault := put(data, key, value))]
    if faults:
        raise StudyError(source, faults)
    return parse_study(data, source)


def _finished(ref: str) -> dict[str, Any]:
    """A finished model as a study names it."""
    manifest = load_manifest(ref)
    bases = [{"backbone": backbone} for backbone in manifest.base_models]
    model = {"backbone": manifest.backbone, "weights": ref, "heads": "weights"}
    return model | ({"base_models": bases} if bases else {})


def _arm(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in BUILT_IN:
        raise ValueError(f"no arm is called {value!r}{instead(value, BUILT_IN)}")
    return BUILT_IN[value]


def _base_model_faults(arm: Arm, arms: Sequence[Arm]) -> Iterator[str]:
    there = {one.name: one for one in arms}
    if arm.base_models and arm.who != "together":
        yield f"{arm.name}: only an arm that is carried out together can have base models"
    for name in arm.base_models:
        if name not in there:
            yield f"{arm.name}: its base model {name} is none of the arms {', '.join(there)}"
        elif there[name].who != "together" or there[name].base_models:
            yield f"{arm.name}: its base model {name} must be a model that sites train together, and no ensemble"

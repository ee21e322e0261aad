"""What the answers mean for a study: what stands against it, and what is worth knowing before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fedgraft.common.agreement.agreement import SupplyAgreement
from fedgraft.common.agreement.supplies import (
    ClassSupply,
    band_in_words,
    learning,
    names_asked,
    near,
    supply_of,
)
from fedgraft.common.protocol.answers import SiteAnswer
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.protocol.routing import is_private
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask, Task

_FEWEST = 2
"""What one site alone knows, the others learn from that site."""

_MOST_MISSING, _FAR_APART = 0.5, 1.5
_SILENT = {
    "no_column": "has no column, and no masks, for task {task}",
    "not_named": "says nothing of task {task}: only its own file may name the column, as `label_columns`",
}
_NO_ANSWER = {
    Code.POLICY: "its policy does not let it answer: `agreement` of the policy is none, its `agreement_answers` were "
    "given, or nothing says whose an image is",
    Code.BAD_DATA: "its data cannot be read as the study asks; its own log says why",
    Code.NO_LABELS: "it has no column, and no masks, for any task",
    Code.UNREACHABLE: "it could not be reached",
}


@dataclass(frozen=True)
class VerdictPoint:
    """One sentence of the verdict. `against` says that the study cannot do well as it is."""

    kind: Literal["against", "note"]
    text: str


def verdict(study: Study, agreement: SupplyAgreement) -> list[VerdictPoint]:
    """All points, first what stands against the study."""
    sites = learning(study, agreement.answers.values())
    points = list(_absent(agreement))
    if not sites:
        points.append(VerdictPoint("against", "no site answered that could train"))
    for task in study.tasks:
        points += _task(study, task, sites)
    for answer in sites:
        points += _plan(study, answer)
    points += _missing(sites)
    points += _differ(sites)
    return sorted(points, key=lambda point: point.kind != "against")


def _absent(agreement: SupplyAgreement) -> Iterator[VerdictPoint]:
    for site, code in agreement.refusals.items():
        yield VerdictPoint("note", f"{site} gives no answer: {_NO_ANSWER.get(code, code.value)}")


def _task(study: Study, task: AnyTask, sites: Sequence[SiteAnswer]) -> Iterator[VerdictPoint]:
    found = {answer.site: supply_of(task, answer) for answer in sites}
    told = {site: supply for site, supply in found.items() if supply is not None}
    lacking = [answer for answer in sites if answer.site not in told or told[answer.site].lacks_all]
    for answer in lacking:
        silent = answer.tasks[task.name].silent if task.name in answer.tasks else "no_column"
        text = _SILENT.get(silent, "has nobody with a class of task {task}, or too few to tell").format(
            task=repr(task.name)
        )
        yield VerdictPoint("note", f"{answer.site} {text}")
    if len(lacking) >= _FEWEST or (sites and len(lacking) == len(sites)):
        names = ", ".join(answer.site for answer in lacking)
        yield VerdictPoint("against", f"task {task.name!r} cannot be supplied by {len(lacking)} sites: {names}")
    for site, supply in told.items():
        yield from _words(task, site, supply, told)
        if isinstance(task, Task) and len(supply.known) == 1 and len(study.tasks) == 1:
            yield _single(task, site, supply)
        elif not supply.known and supply.rest[0]:
            text = (
                f"{site} has {band_in_words(supply.rest)} patients for task {task.name!r}, too few of a class to tell"
            )
            yield VerdictPoint("note", text)
    yield from _classes(task, told)


def _single(task: AnyTask, site: str, supply: ClassSupply) -> VerdictPoint:
    (only,) = supply.known
    rest = [name for name in supply.possible if name != only]
    if not rest:
        text = f"{site} has one class of task {task.name!r} alone, {only!r}: there is nothing to tell apart"
        return VerdictPoint("against", text)
    text = f"{site} tells of one class of task {task.name!r} alone, {only!r}; of each other it has few, or none"
    return VerdictPoint("note", text)


def _classes(task: AnyTask, told: dict[str, ClassSupply]) -> Iterator[VerdictPoint]:
    for name in names_asked(task):
        certain = [site for site, supply in told.items() if name in supply.known]
        maybe = [site for site, supply in told.items() if name in supply.possible]
        what = f"{name!r} of task {task.name!r}"
        if told and not maybe:
            yield VerdictPoint("against", f"no site has a patient with {what}")
        elif told and not certain:
            yield VerdictPoint("against", f"no site tells of patients with {what}; each may have a few")
        elif len(certain) < _FEWEST <= len(told):
            yield VerdictPoint("note", f"only {certain[0]} tells of patients with {what}")


def _words(task: AnyTask, site: str, supply: ClassSupply, told: dict[str, ClassSupply]) -> Iterator[VerdictPoint]:
    elsewhere = [word for other, one in told.items() if other != site for word in one.strange]
    for word, band in supply.strange.items():
        what = f"{site} says {word!r} in task {task.name!r} ({band_in_words(band)} patients), which is no class"
        likely = near(word, names_asked(task))
        also = near(word, elsewhere)
        meant = f". Did they mean {likely!r}?" if likely else ""
        meant += f" Others say {also!r}: is it the same?" if also else ""
        if supply.others:
            yield VerdictPoint("note", f"{what} and counts as {supply.others!r} there, as all other words do{meant}")
        else:
            fix = " The site must say what it means, as `label_map`, before it can take part."
            yield VerdictPoint("against", f"{what}{meant or '.'}{fix}")


def _plan(study: Study, answer: SiteAnswer) -> Iterator[VerdictPoint]:
    """Too few patients for the plan, and what the site's policy makes of its privacy."""
    train = int(answer.patients[1] * study.split.train)
    batches = [stage.local.batch_size for stage in study.plan if isinstance(stage.local, Gradient)]
    if batches and train < max(batches):
        text = f"at most about {train} patients of {answer.site} train, and the plan has batches of {max(batches)}"
        yield VerdictPoint("note", text)
    if answer.price.refused:
        text = f"the policy of {answer.site} does not allow the plan: {answer.price.refused}"
        yield VerdictPoint("against", text)
    elif is_private(study) and answer.price.delta * answer.patients[1] >= 1:
        text = f"delta {answer.price.delta:.1e} of {answer.site} is not below one over its number of patients"
        yield VerdictPoint("against", text)


def _missing(sites: Sequence[SiteAnswer]) -> Iterator[VerdictPoint]:
    columns = dict.fromkeys(column for answer in sites for column in answer.missing)
    for column in columns:
        asked = [answer for answer in sites if column in answer.missing]
        without = [one.site for one in asked if one.missing[column][0] > _MOST_MISSING * one.patients[1]]
        if without and len(without) == len(sites):
            yield VerdictPoint("against", f"column {column!r} is missing for most patients at every site")
        elif without:
            text = f"column {column!r} is missing for most patients of {', '.join(without)}"
            yield VerdictPoint("note", text)


def _differ(sites: Sequence[SiteAnswer]) -> Iterator[VerdictPoint]:
    """Vendors that no two sites share, and spacings that are far apart."""
    vendors = {answer.site: set(answer.facts.get("vendor", {})) - {"not stated", "other"} for answer in sites}
    own = {site: names for site, names in vendors.items() if names}
    for site, names in own.items():
        others = set[str]().union(*(more for other, more in own.items() if other != site))
        if len(own) > 1 and not names & others:
            yield VerdictPoint("note", f"only {site} has images of {', '.join(sorted(names))}, and it has no others")
    sizes = {site: size for answer in sites for site, size in [(answer.site, _spacing(answer))] if size}
    if sizes and max(sizes.values()) > _FAR_APART * min(sizes.values()):
        fine, coarse = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        text = f"most images of {fine} have pixels of {sizes[fine]:g} mm, those of {coarse} of {sizes[coarse]:g} mm"
        yield VerdictPoint("note", text)


def _spacing(answer: SiteAnswer) -> float | None:
    """The size in mm of a pixel that most patients of a site have."""
    sizes = {}
    for word, band in answer.facts.get("spacing", {}).items():
        number, _, unit = word.partition(" ")
        if unit == "mm" and number.replace(".", "", 1).isdigit():
            sizes[float(number)] = band[0]
    return max(sizes, key=sizes.__getitem__) if sizes else None

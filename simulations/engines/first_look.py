"""Before a simulation spends time: can every hospital take part? The checks of `site check` that need no network.

What stops a hospital is told for all of them at once, with site, file, column and what to do; what is merely odd or was
left out is said, and the simulation goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.cohorts.scan import names_of
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import read_csv
from fedgraft.client.data.tables.table import label_columns
from fedgraft.client.enrolment.cohort_request import read_cohort, source_request
from fedgraft.client.enrolment.config import SiteConfig, read_site
from fedgraft.client.preflight.data import check_data
from fedgraft.client.preflight.report import FindingLine, Level
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.plan import Gradient, Recalibrate
from fedgraft.common.study.stages.losses import wants_all_cases
from fedgraft.common.study.study import Study

Say = Callable[[str], object]

_COUNTED = (
    "readable",
    "acquired",
    "folders",
    "notes",
    "joined",
    "patient_ids",
    "values",
    "duplicates",
    "splits",
    "labels_",
)
"""Notes worth a line for every site; others are about what a hospital should look at, and `site check` has them."""
_NAMED = 3
"""So many sites are named of whom the same is to be said."""
_ALLOW = "Correct them, or write `allow_missing_sites: true` into the scenario to go on with the others."


@dataclass
class SiteLook:
    """What was found at one site: `faults` keep it from taking part, `notes` are to be known."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def first_look(study: Study, run: Path, say: Say, *, allow_missing_sites: bool) -> None:
    """Look at the cohorts of all sites that are set up in `run`, and say what is odd.

    DataError with every site that cannot take part, unless such may be missing. Nothing is written to the run.
    """
    sites = sorted(path.parent for path in run.glob("sites/*/site.json"))
    looks = {site.name: _look(study, read_site(site)) for site in sites}
    for line in _together({name: look.notes for name, look in looks.items()}):
        say(line)
    faults = [f"{name}: {fault}" for name, look in looks.items() for fault in look.faults]
    if not faults:
        return
    ill = sum(bool(look.faults) for look in looks.values())
    listed = "\n".join(f"  - {fault}" for fault in faults)
    if not allow_missing_sites:
        raise DataError(f"{ill} of {len(looks)} sites cannot take part:\n{listed}\n{_ALLOW}")
    if ill == len(looks):
        raise DataError(f"No site can take part:\n{listed}\n", fix="Correct at least one of them.")
    say(f"{ill} of {len(looks)} sites may not take part, which the scenario allows:\n{listed}")


def _together(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each note, with the site that it is about; what is to be said of several sites is said once.

    Such a line says how many they are and names the first of them, and stands where it is first to be said.
    """
    sites: dict[str, list[str]] = {}
    for name, own in notes.items():
        for note in dict.fromkeys(own):
            sites.setdefault(note, []).append(name)
    lines = []
    for note, names in sites.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        who = names[0] if len(names) == 1 else f"{len(names)} sites ({', '.join(names[:_NAMED])}{more})"
        lines.append(f"{who}: {note}")
    return lines


def _look(study: Study, config: SiteConfig) -> SiteLook:
    look = SiteLook()
    specs = [config.cohort, *([config.source] if config.source is not None else [])]
    for spec in specs:
        try:
            cohort = _cohort(study, config, spec)
        except DataError as error:
            look.faults += _in_scenario(str(error).removeprefix(f"Site {config.name}: ")).splitlines()
            continue
        if spec is config.cohort:
            _judge(look, study, config, cohort)
    return look


def _cohort(study: Study, config: SiteConfig, spec: CohortSpec) -> Cohort:
    try:
        wanted = source_request(config, study) if spec is config.source else None
        return read_cohort(config.model_copy(update={"cohort": spec}), study, [], wanted)
    except OSError as error:
        raise DataError(f"{error.filename or spec.root}: cannot be read: {error.strerror}.") from None


def _judge(look: SiteLook, study: Study, config: SiteConfig, cohort: Cohort) -> None:
    spec = config.cohort
    names = names_of(spec)
    lines = check_data(cohort, spec, study, names).lines
    labels = [line for line in lines if line.name.startswith("labels_")]
    if not any(line.figures["labelled"] for line in labels) and not _learns_without_labels(study):
        text = f"no case has a label: {labels[0].description}. Check `join`, `key_column` and `label_columns`."
        look.faults.append(f"{_place(study, spec, labels[0])}: {text}")
        lines = [line for line in lines if line not in labels]
    for line in lines:
        text = _in_scenario(f"{line.description}. {line.fix}".rstrip())
        if _stops(line, study, config):
            look.faults.append(f"{_place(study, spec, line)}: {text}")
        elif line.level is Level.FAILS or (_left_something_out(line) and line.name.startswith(_COUNTED)):
            look.notes.append(text)
    if len(set(cohort.patients)) < 2:
        fix = "With one patient nothing can be tested: name the patients' column, or add others."
        look.faults.append(f"{spec.labels or spec.root}: all cases are of one patient. {fix}")


def _left_something_out(line: FindingLine) -> bool:
    """Whether a line tells of what is not used; that strangers lie among the images is fine, and said all the same."""
    return line.level is Level.NOTE or bool(line.figures.get("other_files"))


def _stops(line: FindingLine, study: Study, config: SiteConfig) -> bool:
    """Whether a line says that the site has nothing to train on, or nothing to be tested on."""
    if line.name == "splits":
        cases = line.figures["cases"]
        trains, is_tested = not config.observer, study.split.test > 0 and not config.public_source
        return (trains and not cases["train"]) or (is_tested and not cases["test"])
    if line.level is not Level.FAILS:
        return False
    return line.name == "joined" or line.name.startswith("classes_")


def _learns_without_labels(study: Study) -> bool:
    """Whether a stage of the plan has work for sites that have no label at all."""
    stages = [stage for stage in study.plan if stage.where in ("all", "unlabelled")]
    return any(
        stage.where == "unlabelled"
        or isinstance(stage.local, Recalibrate)
        or (isinstance(stage.local, Gradient) and wants_all_cases(stage.local.losses))
        for stage in stages
    )


def _place(study: Study, spec: CohortSpec, line: FindingLine) -> str:
    """The file that a line is about, and its column where there is one."""
    file = spec.labels or spec.root
    task = line.name.partition("_")[2]
    if not line.name.startswith(("labels_", "classes_")) or (spec.labels is None and spec.kind != "table"):
        return str(file)
    columns = [name for key, name in _columns(study, spec, file) if key.partition(".")[0] == task]
    return f"{file}, column {', '.join(map(repr, columns))}" if columns else str(file)


def _columns(study: Study, spec: CohortSpec, file: Path) -> Iterator[tuple[str, str]]:
    yield from label_columns(read_csv(file), study.tasks, spec).items()


def _in_scenario(text: str) -> str:
    """Advice as it is for somebody whose cohorts stand in a scenario."""
    return text.replace("in site.yaml", "of the cohort").replace("site.yaml", "the scenario").replace(_DETAILS, "")


_DETAILS = " The files are listed in check-details.txt of the site's folder."

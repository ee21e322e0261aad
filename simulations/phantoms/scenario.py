"""A scenario: the hospitals of a simulation. Strict, frozen, parsed once; all faults are reported together."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fedgraft.client.data.spec import PATHS, CohortSpec
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import StudyError
from fedgraft.common.base.files import CONFIGS, canonical_json
from fedgraft.common.base.value import Value
from fedgraft.common.config.config_files import NO_MAPPING, describe, read_mapping
from fedgraft.common.config.suggest import instead
from fedgraft.common.protocol.routing import requires_source
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.faults import Fault
from fedgraft.simulations.partitions.partition import Partition
from fedgraft.simulations.phantoms.phantoms import FINDINGS, Finding, Modality
from fedgraft.simulations.phantoms.scanners import Scanner
from fedgraft.simulations.real_data.parts import HospitalPart
from fedgraft.simulations.real_data.places import placed

SCENARIOS = CONFIGS / "scenarios"
CANCER_CASES = {"benign": 357, "malignant": 212}
"""How many patients of each diagnosis scikit-learn's breast cancer table has."""
_GENERATION = 1
"""Part of the digest: raise it when the same scenario would give other files."""
_LARGEST = 0.6

Share = Annotated[float, Field(ge=0, le=1)]


class PhantomSite(Value):
    """A hospital whose images are generated and written as DICOM."""

    modality: tuple[Modality, ...] = ("xr",)
    """One, or several that take turns from patient to patient."""
    patients: Annotated[int, Field(ge=1, le=100_000)]
    """How many patients are generated."""
    images_per_patient: tuple[Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)]] = (1, 2)
    """Fewest and most; each patient's number is drawn evenly."""
    prevalence: dict[Finding, Share] = dict.fromkeys(FINDINGS, 0.25)
    """Share of the patients by finding; they add up to 1."""
    size_mm: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (23.0, 46.0)
    """Smallest and largest equivalent diameter of a finding."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.3
    """How much brighter a finding is, as a share of the modality's range; 0 leaves nothing to find."""
    label_noise: Share = 0.0
    """Share of the patients whose label is one of the wrong ones."""
    missing_labels: Share = 0.0
    """Share of the patients whose label cells are empty."""
    unlabelled: bool = False
    """All label cells are empty; the truth stays in images.csv."""
    scanner: Scanner = Scanner()
    """What took the images, and how it writes them."""

    @field_validator("modality", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("modality")
    @classmethod
    def _some(cls, value: tuple[Modality, ...]) -> tuple[Modality, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("needs one modality, or several different ones")
        return value

    @field_validator("prevalence")
    @classmethod
    def _adds_up(cls, value: dict[Finding, float]) -> dict[Finding, float]:
        if abs(sum(value.values()) - 1) > 1e-6:
            raise ValueError(f"the shares add up to {sum(value.values()):g}, not 1")
        return value

    @field_validator("images_per_patient", "size_mm")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the first number must not be above the second")
        return value

    @model_validator(mode="after")
    def _fits(self) -> PhantomSite:
        faults = [fault for modality in self.modality if (fault := self.scanner.fault(modality))]
        if self.size_mm[1] > _LARGEST / 2 * self.scanner.field_mm:
            limit = _LARGEST / 2 * self.scanner.field_mm
            faults.append(f"size_mm: a finding of {self.size_mm[1]:g} mm is above {limit:g} mm, the most that fits")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class TableSite(Value):
    """A hospital with a part of a real public table, as one CSV file; no patient is at two sites.

    `patients` and `malignant` (their share with that diagnosis) are how sites are skewed: both classes are shuffled
    once with the scenario's seed, and the sites, in the order of the file, take the next round(patients x malignant)
    malignant and the next remaining benign patients.
    """

    dataset: Literal["breast_cancer"] = "breast_cancer"
    """The table: breast cancer, Wisconsin, 569 patients, as scikit-learn brings it."""
    patients: Annotated[int, Field(ge=1, le=569)]
    malignant: Share = 0.37

    @property
    def cases(self) -> dict[str, int]:
        """Number of patients by diagnosis, which adds up to `patients`."""
        malignant = round(self.patients * self.malignant)
        return {"benign": self.patients - malignant, "malignant": malignant}


class SiteEntry(Value):
    """One hospital: generated images, a part of a public table, or the user's own cohort."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
    """What the hospital is called in reports."""
    phantom: PhantomSite | None = None
    """Generated images; give one of `phantom`, `table` and `cohort`."""
    table: TableSite | None = None
    """A part of a public table."""
    cohort: CohortSpec | None = None
    """The person's own data, as in a site's file."""
    part: HospitalPart | None = None
    """Of the cohort's images, whose table of labels names hospitals: those of one, or of a share of its patients."""
    mask_images: bool = True
    """Whether the site has the masks of its phantoms; without, it adds nothing to tasks that ask for masks."""
    faults: Fault | None = None
    """What goes wrong at this site on purpose."""
    source: str | None = None
    """Another site of this scenario, whose data lie at this one as well: a source in a folder at the site."""
    public_source: bool = False
    """The data are public source data: the site works only in stages that are for the source, and is not evaluated."""
    policy: SitePolicy | None = None
    """What this site allows; all if absent."""

    @model_validator(mode="after")
    def _one_source(self) -> SiteEntry:
        if sum(source is not None for source in (self.phantom, self.table, self.cohort)) != 1:
            raise ValueError("needs exactly one of phantom, table and cohort")
        if self.part is not None and not (self.cohort and self.cohort.kind == "images" and self.cohort.key_column):
            raise ValueError("part goes with a cohort of images with `labels`, `key_column` and `patient_column`")
        if self.part is not None and self.cohort is not None and self.cohort.patient_column is None:
            raise ValueError("part needs the cohort's `patient_column`: a patient must not be at two sites")
        return self


class Scenario(Value):
    """The hospitals of a simulation, in the order of the file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    """What the scenario is called."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides what is generated, and how a public table is shared out."""
    sites: tuple[SiteEntry, ...] = ()
    """The hospitals, one by one."""
    partition: Partition | None = None
    """In their place: one cohort that is shared out among hospitals."""
    originals: str = ""
    """Where public data are found and how they are converted: said where a cohort's are not on this machine."""
    allow_missing_sites: bool = False
    """Simulate without the sites whose data cannot be used; else nothing begins."""

    @staticmethod
    def read(source: Path | str) -> Scenario:
        """The scenario in a YAML file, or the one of that name that ships. StudyError lists every fault.

        Relative paths of cohorts are relative to the file.
        """
        return load_scenario(source)

    @staticmethod
    def parse(values: Mapping[str, Any]) -> Scenario:
        """The scenario of plain values, as a file has them; relative paths are below the folder where one works.

        StudyError lists every fault.
        """
        if not isinstance(values, Mapping):
            raise StudyError("the scenario", [NO_MAPPING])
        return _parsed(copy.deepcopy(dict(values)), Path.cwd(), "the scenario")

    @model_validator(mode="after")
    def _possible(self) -> Scenario:
        names = [site.name for site in self.sites]
        faults = _twice(names)
        if bool(self.sites) == (self.partition is not None):
            faults.append("give `sites`, or one cohort as `partition`")
        faults += [f"{s.name}.source: no other site is called {s.source}" for s in self.sites if not _known(s, names)]
        for diagnosis, there in CANCER_CASES.items():
            asked = sum(site.table.cases[diagnosis] for site in self.sites if site.table)
            if asked > there:
                faults.append(f"the sites ask for {asked} {diagnosis} patients, but breast_cancer has {there}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what is generated, 64 hex digits."""
        generated = [site.model_dump(mode="json", include={"name", "phantom", "table"}) for site in self.sites]
        content = {"generation": _GENERATION, "seed": self.seed, "sites": generated}
        return hashlib.sha256(canonical_json(content)).hexdigest()

    @property
    def synthetic(self) -> bool:
        """Whether any site's images are phantoms."""
        return any(site.phantom is not None for site in self.sites)


def load_scenario(path: Path | str) -> Scenario:
    """The scenario in a YAML file, or the one of that name that ships; StudyError lists every fault.

    Relative paths of cohorts are relative to the file. Nothing that a cohort points at needs to exist.
    """
    file = _find(Path(path))
    return _parsed(read_mapping(file), file.parent.resolve(), str(file))


def find_scenario(named: Scenario | Path | str, base: Path) -> Scenario:
    """A scenario, the one in a file that lies relative to `base`, or the one of that name that ships."""
    if isinstance(named, Scenario):
        return named
    return load_scenario(base / named if (base / named).is_file() else named)


def _parsed(data: dict[str, Any], folder: Path, source: str) -> Scenario:
    _anchor(data, folder)
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        faults = describe(error)
        # pydantic does not come to this check while any site has faults of its own.
        hidden = [fault for fault in _twice(_names(data)) if not any(fault in line for line in faults)]
        raise StudyError(source, faults + hidden) from None


def _known(site: SiteEntry, names: list[str]) -> bool:
    return site.source is None or (site.source in names and site.source != site.name)


def _twice(names: list[str]) -> list[str]:
    """A fault for every name that more than one site has; case does not count, since some file systems ignore it."""
    packed = [name.lower() for name in names]
    return [f"more than one site is called {name}" for name in sorted(set(packed)) if packed.count(name) > 1]


def _names(data: dict[str, Any]) -> list[str]:
    sites = data.get("sites")
    return [str(site.get("name")) for site in sites if isinstance(site, dict)] if isinstance(sites, list) else []


def _anchor(data: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of all cohorts absolute, in place; what is no path is left for the check."""
    sites, shared = data.get("sites"), data.get("partition")
    for site in [*(sites if isinstance(sites, list) else []), shared]:
        cohort = site.get("cohort") if isinstance(site, dict) else None
        for key in PATHS:
            if isinstance(cohort, dict) and isinstance(cohort.get(key), str):
                cohort[key] = placed(cohort[key], folder)


def _find(path: Path) -> Path:
    if (path.exists() and not path.is_dir()) or path.parent != Path() or path.suffix:
        return path
    shipped = SCENARIOS / f"{path}.yaml"
    if not shipped.is_file():
        names = [file.stem for file in SCENARIOS.glob("*.yaml")]
        raise StudyError(str(path), [f"is no file, and no scenario of that name ships{instead(str(path), names)}"])
    return shipped


def source_faults(study: Study, scenario: Scenario) -> list[str]:
    """What the study needs of a source, and the scenario has not."""
    faults = []
    if requires_source(study):
        lacking = [site.name for site in scenario.sites if site.source is None and not site.public_source]
        if lacking:
            faults.append(f"the plan needs source data at each site, but {', '.join(lacking)} have no `source`")
    wanting = [stage.name for stage in study.plan if stage.where == "source" or stage.joint_lambda is not None]
    if wanting and not any(site.public_source for site in scenario.sites):
        faults.append(f"stage {wanting[0]} is for a site that holds the source, but none has `public_source: true`")
    return faults

"""A site's cohort: tensors, targets, keyed patients and splits; decoded once, then taken from a private cache."""

from __future__ import annotations

import hashlib
import hmac
import mmap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.client.data.cohorts import experiment, splits
from fedgraft.client.data.cohorts.batches import stacked_inputs
from fedgraft.client.data.cohorts.cache import Decoded, Described, load, store
from fedgraft.client.data.cohorts.folders import Found, files, within
from fedgraft.client.data.cohorts.masks import folders, segmentation_files
from fedgraft.client.data.cohorts.scan import (
    Scan,
    files_of,
    name_below,
    scan,
    stamps,
)
from fedgraft.client.data.cohorts.splits import Dealing, SplitRule
from fedgraft.client.data.spec import DERIVED, CohortSpec
from fedgraft.client.data.tables.targets import known, stacked, strata
from fedgraft.common.base.errors import DataError
from fedgraft.common.base.files import canonical_json, sha256_file, write_atomic
from fedgraft.common.study.inputs import (
    ImageInput,
    InputSpec,
    SplitSpec,
)
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.stages.losses import wants_all_cases
from fedgraft.common.study.study import Study
from fedgraft.common.study.subgroups import Subgroup
from fedgraft.common.study.tasks import (
    UNKNOWN,
    AnyTask,
    Segmentation,
    Task,
)

_VERSION = 10
"""Part of the cache's key; to be raised when decoding changes what it gives."""


@dataclass(frozen=True)
class Problem:
    """Why something was left out or is odd, and how often. The reason is a constant word."""

    reason: str
    count: int


@dataclass(frozen=True)
class Place:
    """Where a site keeps what lasts (`state`), where decoded images go (`cache`), and the key of its patient hashes."""

    state: Path
    cache: Path
    secret: bytes
    full: bool = False
    """Whether what lies in the cache is compared with its digests, however old it is."""
    sync: bool = True
    """Whether what is written to `state` waits for the disk."""

    def patient(self, key: str) -> str:
        """A patient's name in fedgraft: HMAC-SHA256 of the hospital's own identifier, 32 hex digits."""
        return hmac.new(self.secret, key.encode(), hashlib.sha256).hexdigest()[:32]


@dataclass(frozen=True)
class CohortRequest:
    """What a study wants of a cohort. `rule` says how patients are split (see `splits`); None: as the file says."""

    tasks: Sequence[AnyTask]
    input: InputSpec
    split: SplitSpec
    seed: int
    rule: SplitRule | None = None
    subgroups: Sequence[Subgroup] = ()
    """All that the site's policy allows, where the study may have figures by one of them: what is shown is judged over
    all, so that it does not depend on which study asks."""


@dataclass(frozen=True)
class Cohort:
    """A site's cases. `inputs` as stored (see `batches`), `targets` by task (see `fedgraft.common.study.tasks`).

    `patients` are keyed hashes; `splits` are positions of cases; `facts` counts what the files say of themselves.
    `origins` are positions in `scan.files`, `studies` numbers of DICOM studies, -1 where
    a file names none; empty for other data.
    """

    name: str
    inputs: Tensor
    targets: Mapping[str, Tensor]
    patients: tuple[str, ...]
    splits: Mapping[str, Tensor]
    problems: tuple[Problem, ...]
    facts: Mapping[str, int]
    origins: tuple[int, ...] = ()
    studies: tuple[int, ...] = ()
    spacings: tuple[float, ...] = ()
    """Sizes in mm of a pixel of each image as the model sees it, 0 where it is not known; empty for other data."""
    subgroups: Mapping[Subgroup, Tensor] = field(default_factory=dict)
    """By attribute that policy allows, in its order, the position of each case's group, (cases,) int64, -1 for none."""
    described: tuple[Described, ...] = ()
    """Of each case what its file says of itself that patients are counted by: pairs of fact and word."""
    source: Cohort | None = None
    """Cases of a source that lie at the site as well."""
    split_rule: SplitRule = "independent"
    """Whether each patient's split follows from that patient alone, or patients were dealt out class by class."""
    mapped: mmap.mmap | None = field(default=None, compare=False)
    """Where `inputs` are mapped from disk; nobody writes to them."""

    def give_back(self) -> None:
        """Let go of the memory of what is mapped from disk: who asks again reads it anew."""
        if self.mapped is not None and (unneeded := getattr(mmap, "MADV_DONTNEED", None)) is not None:
            self.mapped.madvise(unneeded)

    def __repr__(self) -> str:
        return f"Cohort({self.name!r}, {len(self.inputs)} cases)"

    def summary(self) -> dict[str, Any]:
        """Counts that name nobody: cases and patients by split, labels, problems, facts."""
        patients = {split: len({self.patients[i] for i in at.tolist()}) for split, at in self.splits.items()}
        return {
            "cases": {split: len(at) for split, at in self.splits.items()},
            "patients": patients,
            "labels": {
                task: dict(Counter(target.tolist())) if target.dtype == torch.int64 else int(known(target).sum())
                for task, target in self.targets.items()
            },
            "problems": {problem.reason: problem.count for problem in self.problems},
            "facts": dict(self.facts),
        }


def load_cohort(name: str, spec: CohortSpec, wanted: CohortRequest, place: Place) -> Cohort:
    """A site's cohort, decoded or from the cache. DataError if nothing in it can be used.

    Writes to `place.state`: `splits.csv`, and `left_out.csv` with the files that were not used and why.
    """
    if wanted.input.kind not in spec.what.inputs:
        raise DataError(
            f"Site {name}: its data are of kind {spec.kind}, but the study's input is {wanted.input.kind}.",
            fix=f"Check `kind` of the cohort of {spec.root}, or give the site a study for such data.",
        )
    decoded = _read(spec, wanted, place)
    _check_usable(name, spec, decoded, wanted)
    by_patient: dict[str, list[int]] = {}
    first = wanted.tasks[0]
    for patient, label in zip(decoded.patients, strata(first, decoded.targets[first.name]), strict=True):
        by_patient.setdefault(patient, []).append(label)
    alike = {patient: splits.stratum(labels) for patient, labels in by_patient.items()}
    dealing = dealing_of(spec, wanted, place)
    own = dict(zip(decoded.patients, decoded.splits, strict=True)) if decoded.splits else None
    chosen, rule = splits.keep(place.state / "splits.csv", alike, dealing, own, sync=place.sync)
    if (dealing.rule or rule) == "independent":
        experiment.refuse_tied(name, spec)
    cases = splits.indices(decoded.patients, chosen)
    targets = experiment.labels(decoded.targets, decoded.patients, cases, spec.train_labels, wanted.seed)
    if spec.train_cases is not None:
        cases["train"] = experiment.fewer(cases["train"], decoded.patients, alike, spec.train_cases, wanted.seed)
    return Cohort(
        name=name,
        inputs=torch.from_numpy(decoded.inputs),
        targets={task: torch.from_numpy(target) for task, target in targets.items()},
        patients=decoded.patients,
        splits={split: torch.from_numpy(at) for split, at in cases.items()},
        problems=tuple(Problem(reason, count) for reason, count in sorted(decoded.problems.items())),
        facts=Counter(decoded.facts),
        origins=decoded.origins,
        studies=decoded.studies,
        spacings=decoded.spacings,
        subgroups={one: torch.tensor(decoded.subgroups[one.name], dtype=torch.int64) for one in wanted.subgroups},
        described=decoded.described,
        split_rule=rule,
        mapped=getattr(decoded.inputs, "_mmap", None),
    )


def dealing_of(spec: CohortSpec, wanted: CohortRequest, place: Place) -> Dealing:
    """How the patients get their splits: as the study needs it, or stricter if the site's own file says so."""
    rule = "independent" if spec.split == "independent" else wanted.rule
    return Dealing(wanted.split, wanted.seed, place.secret, rule)


def learning_patients(study: Study, cohort: Cohort) -> int:
    """How many patients the study may learn from: those with a training case that has a label, or needs none."""
    cases = cohort.splits["train"]
    local = [stage.local for stage in study.plan if isinstance(stage.local, Gradient)]
    if not any(wants_all_cases(work.losses) for work in local):
        cases = cases[torch.stack([known(cohort.targets[task.name][cases]) for task in study.tasks]).any(dim=0)]
    return len({cohort.patients[at] for at in cases.tolist()})


def _read(spec: CohortSpec, wanted: CohortRequest, place: Place) -> Decoded:
    """The cohort as its files give it, from the cache if nothing has changed since."""
    for folder in (place.cache, place.state):
        if within(folder, spec.root):
            raise DataError(f"{folder}: is inside the cohort's own folder {spec.root}.", fix="Keep it somewhere else.")
    found = files_of(spec)
    if not spec.what.cached:
        return _decoded(scan(spec, wanted.tasks, wanted.input, found, wanted.subgroups), wanted, place)
    key = _cache_key(spec, wanted, place, found)
    decoded = load(place.cache, key, full=place.full)
    if decoded is None:
        decoded = _decoded(scan(spec, wanted.tasks, wanted.input, found, wanted.subgroups), wanted, place)
        if len(decoded.inputs):
            store(place.cache, key, decoded)
            decoded = load(place.cache, key) or decoded
    names = [name_below(path, spec.root) for path in found.files]
    rows = [(names[at], reason) for at, reason in decoded.left_out]
    rows += [(name_below(path, spec.root), reason) for path, reason in found.passed_over]
    _list_left_out(rows, place)
    return decoded


def _decoded(scan: Scan, wanted: CohortRequest, place: Place) -> Decoded:
    targets: dict[str, NDArray[Any]] = {}
    for task in wanted.tasks:
        if not isinstance(task, Segmentation):
            targets[task.name] = stacked(task, scan.targets[task.name])
        elif isinstance(wanted.input, ImageInput):
            nothing = np.zeros((0, wanted.input.size, wanted.input.size), dtype=np.int8)
            targets[task.name] = stacked_inputs(scan.masks[task.name]) if scan.inputs else nothing
    numbers = {key: number for number, key in enumerate(dict.fromkeys(filter(None, scan.studies)))}
    return Decoded(
        stacked_inputs(scan.inputs) if scan.inputs else _no_inputs(wanted.input),
        targets,
        tuple(map(place.patient, scan.patients)),
        dict(scan.problems),
        dict(scan.facts),
        tuple(scan.left_out),
        tuple(scan.origins),
        tuple(numbers.get(key, UNKNOWN) for key in scan.studies),
        tuple(scan.spacings),
        tuple(scan.splits),
        {name: tuple(own) for name, own in scan.subgroups.items()},
        tuple(scan.described),
    )


def _no_inputs(wanted: InputSpec) -> NDArray[Any]:
    if isinstance(wanted, ImageInput):
        return np.zeros((0, wanted.channels, wanted.size, wanted.size), dtype=np.int16)
    return np.zeros((0, wanted.width), dtype=np.float32)


def _cache_key(spec: CohortSpec, wanted: CohortRequest, place: Place, found: Found) -> str:
    """A digest of everything that decoded images depend on.

    Files count by name, size and times, as in build tools: reading all of them would take as long as it saves. Labels
    count by content, since they are small and corrected often.
    """
    content: dict[str, Any] = {
        "version": _VERSION,
        "spec": spec.model_dump(mode="json", exclude=set(experiment.KEYS)),
        "tasks": [task.model_dump(mode="json") for task in wanted.tasks],
        "input": _stored_as(wanted.input),
        "subgroups": [one.model_dump(mode="json") for one in wanted.subgroups],
        "labels": [_digest_of(table) for table in (spec.labels, spec.split_file)],
        "files": list(stamps(found.files, spec.root)),
        "passed_over": [(name_below(path, spec.root), reason) for path, reason in found.passed_over],
    }
    of_masks = [task.name for task in wanted.tasks if isinstance(task, Segmentation)]
    if objects := segmentation_files(spec, of_masks):
        content["segmentations"] = list(stamps(objects, spec.mask_segmentations or spec.root))
    if masks := folders(spec, of_masks):
        content["masks"] = {task: list(stamps(files(folder), folder)) for task, folder in masks.items()}
    return hmac.new(place.secret, canonical_json(content), hashlib.sha256).hexdigest()


def _stored_as(wanted: InputSpec) -> Any:
    """What of a study's input decides how cases are stored."""
    return [wanted.size, wanted.channels] if isinstance(wanted, ImageInput) else wanted.model_dump(mode="json")


def _digest_of(labels: Path | None) -> str | None:
    try:
        return None if labels is None else sha256_file(labels)
    except OSError:  # which is told, with what to do, when the table is read
        return None


def _list_left_out(rows: Sequence[tuple[str, str]], place: Place) -> None:
    """The files that were not used, for the people at the site; it names files, so it is private."""
    lines = ["file,reason"] + ['"{}",{}'.format(name.replace('"', '""'), reason) for name, reason in rows]
    write_atomic(place.state / "left_out.csv", ("\n".join(lines) + "\n").encode(), private=True, sync=place.sync)


def _check_usable(name: str, spec: CohortSpec, decoded: Decoded, wanted: CohortRequest) -> None:
    if not len(decoded.inputs):
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(decoded.problems.items())) or "no files"
        fix = "See left_out.csv."
        if set(DERIVED) & decoded.problems.keys():
            fix += " If what no scanner took are the images of the study, list its kind as `accept` of the cohort."
        raise DataError(f"Site {name}: nothing in {spec.root} can be used ({reasons}).", fix=fix)
    for task in wanted.tasks:
        target: NDArray[Any] = decoded.targets[task.name]
        if isinstance(task, Task) and target.max(initial=UNKNOWN) >= len(task.classes):
            raise DataError(f"Site {name}: labels of task {task.name!r} do not fit its classes.")

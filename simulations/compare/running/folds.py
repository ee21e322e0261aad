"""Patients of a site in folds: over all folds of a seed, each patient is tested exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedgraft.client.data.cohorts import splits
from fedgraft.client.data.cohorts.cohort import dealing_of, load_cohort
from fedgraft.client.data.cohorts.splits import Dealing
from fedgraft.client.data.tables.targets import strata as strata_of
from fedgraft.client.enrolment.cohort_request import cohort_request
from fedgraft.client.enrolment.config import read_site
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.seeds import derive
from fedgraft.common.study.inputs import SplitSpec
from fedgraft.common.study.study import Study


class Fold(NamedTuple):
    """The `number`-th (from 0) of so many folds."""

    number: int
    of: int


def deal(study: Study, site: Path, fold: Fold) -> None:
    """Write the site's splits for this fold; the share of validation is that of the study among those who train."""
    config = read_site(site)
    wanted, place = cohort_request(config, study), place_of(config, study.digest)
    spec = config.cohort.model_copy(update={"train_cases": None, "train_labels": "known"})
    cohort = load_cohort(config.name, spec, wanted, place)
    if cohort.split_rule == "own":
        raise InputError(
            f"{config.name}: its cohort brings its own split, so its patients cannot be dealt out in folds.",
            fix="Leave `folds` out of the comparison, or the split out of the cohort.",
        )
    targets = strata_of(study.tasks[0], cohort.targets[study.tasks[0].name].numpy())
    own: dict[str, list[int]] = {}
    for patient, target in zip(cohort.patients, targets, strict=True):
        own.setdefault(patient, []).append(target)
    dealing, val = dealing_of(spec, wanted, place), study.split.val / (study.split.train + study.split.val)
    if dealing.rule == "stratified":
        strata = {patient: splits.stratum(labels) for patient, labels in own.items()}
        chosen = folded(strata, fold, val, study.seed)
    else:
        chosen = folded_alone(own, fold, val, dealing)
    splits.write(place.state / "splits.csv", chosen, dealing)


def folded_alone(patients: Iterable[str], fold: Fold, val: float, dealing: Dealing) -> dict[str, str]:
    """The split of every patient, from a keyed hash of that patient alone: no other patient counts."""
    chosen = {}
    for patient in patients:
        if int(splits.chance(dealing.secret, dealing.seed, "folds", patient) * fold.of) == fold.number:
            chosen[patient] = "test"
        else:
            drawn = splits.chance(dealing.secret, dealing.seed, f"fold {fold.number}", patient)
            chosen[patient] = "val" if drawn < val else "train"
    return chosen


def folded(strata: Mapping[str, int], fold: Fold, val: float, seed: int) -> dict[str, str]:
    """Stratified: the split of every patient; the fold is the test split, a share `val` of all others validates.

    Patients of a stratum are shuffled and dealt to the folds in turn, each stratum going on where the last one ended.
    """
    dealt = [patient for stratum in sorted(set(strata.values())) for patient in _shuffled(strata, stratum, seed)]
    tested = {patient for place, patient in enumerate(dealt) if place % fold.of == fold.number}
    rest = {patient: strata[patient] for patient in dealt if patient not in tested}
    shares = SplitSpec(train=1 - val, val=val, test=0.0)
    return splits.assign(rest, {}, shares, derive(seed, "fold", fold.number)) | dict.fromkeys(tested, "test")


def _shuffled(strata: Mapping[str, int], stratum: int, seed: int) -> Sequence[str]:
    members = sorted(patient for patient, own in strata.items() if own == stratum)
    return sorted(members, key=lambda patient: derive(seed, "folds", patient))

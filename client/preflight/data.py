"""Preflight: are the data fit? Readable, labelled, whole, no case twice, and shown as the study expects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.cohorts.folders import NO_RIGHT
from fedgraft.client.data.cohorts.reasons import NOTES, PASSED_OVER, STRANGERS, UNREADABLE
from fedgraft.client.data.cohorts.splits import IN_WORDS
from fedgraft.client.data.decoding.dicom.dicom_image import NOT_STATED, OTHER
from fedgraft.client.data.spec import DERIVED, CohortSpec
from fedgraft.client.data.tables.targets import known
from fedgraft.client.preflight.labels import check_labels
from fedgraft.client.preflight.report import Findings, counted, listed
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import UNKNOWN

_ABOUT_VALUES = frozenset({"missing_value", "missing_category", "unknown_category"})
_MOST_UNREADABLE = 0.1
"""Up to this share of unreadable files a cohort is still that of the hospital; beyond it something is wrong."""
_DETAILS = "The files are listed in check-details.txt of the site's folder."

Names = Sequence[str]
"""Those of `fedgraft.client.data.cohorts.scan.names_of`; for the people at the site alone."""


def check_data(cohort: Cohort, spec: CohortSpec, study: Study, names: Names) -> Findings:
    """Look at a cohort that could be read."""
    found = Findings()
    problems = {problem.reason: problem.count for problem in cohort.problems}
    rows = spec.what.case == "row"
    if isinstance(study.input, TableInput):
        _values(found, cohort, problems, study.input)
    else:
        _readable(found, cohort, problems)
        _folders(found, problems)
    _notes(found, problems)
    check_labels(found, cohort, spec, study)
    _splits(found, cohort, study)
    _ids(found, spec, problems, len(set(cohort.patients)))
    same = [group for group in _by_content(cohort) if len(group) > 1]
    if rows:
        _equal_rows(found, same)
    else:
        _duplicates(found, cohort, same, problems.get("duplicate", 0), names)
        _torn(found, cohort, same, names)
        _blank(found, cohort, names)
    if spec.kind == "dicom":
        _acquired(found, problems)
        _stated(found, cohort, spec)
        _burned_in(found, cohort, problems)
    return found


def _readable(found: Findings, cohort: Cohort, problems: dict[str, int]) -> None:
    bad = {reason: count for reason, count in problems.items() if reason in UNREADABLE}
    other = {reason: count for reason, count in problems.items() if reason in STRANGERS}
    strangers = sum(other.values())
    usable, lost = len(cohort.inputs), sum(bad.values())
    description = f"{counted(usable, 'image')} can be used"
    if strangers:
        description += f"; {counted(strangers, 'other file')} passed over ({listed(other)})"
    figures = {"images": usable, "unreadable": bad, "other_files": strangers}
    if not lost:
        found.fine("readable", description, **figures)
        return
    description += f"; {counted(lost, 'file')} cannot be read ({listed(bad)})"
    fix = "Export those files from the archive again. They are listed in check-details.txt of the site's folder."
    own = [f"{UNREADABLE[reason]} ({reason})." for reason in sorted(bad) if UNREADABLE[reason]]
    if own:
        again = [fix] if any(not UNREADABLE[reason] for reason in bad) else [_DETAILS]
        fix = " ".join([*own, *again])
    (found.fails if lost > _MOST_UNREADABLE * (usable + lost) else found.note)("readable", description, fix, **figures)


def _acquired(found: Findings, problems: dict[str, int]) -> None:
    """What no scanner took: segmentations, dose reports, localizers and their like."""
    derived = {kind: problems[kind] for kind in DERIVED if kind in problems}
    if derived:
        description = f"{counted(sum(derived.values()), 'object')} that no scanner took left out ({listed(derived)})"
        fix = f"If such are the images of the study, list their kind as `accept` of the cohort. {_DETAILS}"
        found.note("acquired", description, fix, left_out=derived)
    else:
        found.fine("acquired", "every DICOM object is an acquired image", left_out={})


def _folders(found: Findings, problems: dict[str, int]) -> None:
    """Folders and links in which nobody could look."""
    odd = {reason: problems[reason] for reason in PASSED_OVER if reason in problems}
    if not odd:
        found.fine("folders", "every folder and link was read", passed_over={})
        return
    description = f"{counted(sum(odd.values()), 'folder or link', 'folders or links')} not read ({listed(odd)})"
    fix = " ".join([*(f"{reason}: {PASSED_OVER[reason]}" for reason in odd), _DETAILS])
    (found.fails if NO_RIGHT in odd else found.note)("folders", description, fix, passed_over=odd)


def _notes(found: Findings, problems: dict[str, int]) -> None:
    """What is odd in files and rows that are used all the same."""
    for reason in sorted(NOTES.keys() & problems.keys()):
        what, fix = NOTES[reason]
        found.note(f"notes_{reason}", f"{problems[reason]:,} {what}", fix, files=problems[reason])


def _empty(cohort: Cohort, columns: TableInput) -> list[str]:
    """The study's columns without a single value here: of numbers, and of categories none of which is met."""
    none = np.isnan(cohort.inputs.numpy()).all(axis=0)
    found, at = [name for name, empty in zip(columns.numeric, none, strict=False) if empty], len(columns.numeric)
    for name, categories in columns.categorical.items():
        found += [name] * (not cohort.inputs[:, at : at + len(categories)].any())
        at += len(categories)
    return found


def _values(found: Findings, cohort: Cohort, problems: dict[str, int], columns: TableInput) -> None:
    odd = {reason: problems[reason] for reason in sorted(_ABOUT_VALUES & problems.keys())}
    empty = _empty(cohort, columns)
    description = f"{counted(len(cohort.inputs), 'row')}" + (f"; {listed(odd)}" if odd else "; no value is missing")
    figures = {"rows": len(cohort.inputs), "problems": odd, "empty_columns": len(empty)}
    if empty:
        fix = (
            "Fill them, or ask the coordinator whether the study can do without them: if they are never measured here, "
            "each of their values counts as missing, and as the mean over all hospitals."
        )
        what = f"{counted(len(empty), 'column')} without any value ({', '.join(empty)})"
        found.fails("values", f"{description}; {what}", fix, **figures)
    elif "unknown_category" in odd:
        fix = "Rename those values to the study's categories; unknown ones count as missing."
        found.note("values", description, fix, **figures)
    else:
        found.fine("values", description, **figures)


def _equal_rows(found: Findings, same: list[list[int]]) -> None:
    rows = sum(len(group) for group in same)
    if rows:
        fix = "Where the columns are many, check that no row was copied; with few columns patients may well be equal."
        found.note("duplicates", f"{counted(rows, 'row')} equal to another", fix, rows=rows)
    else:
        found.fine("duplicates", "no row equals another", rows=0)


def _duplicates(found: Findings, cohort: Cohort, same: list[list[int]], exact: int, names: Names) -> None:
    """Images with the same pixels, or in the same SOP instance: whoever has them, they are one case."""
    again = sum(len(group) - 1 for group in same)
    several = sum(len({cohort.patients[at] for at in group}) > 1 for group in same)
    labels = sum(_disagree(cohort, group) for group in same)
    figures = {
        "same_instance": exact,
        "same_pixels": again,
        "of_several_patients": several,
        "with_other_labels": labels,
    }
    if not again and not exact:
        found.fine("duplicates", "no image is there twice", **figures)
        return
    found.private += [f"same pixels: {', '.join(_named(cohort, names, group))}" for group in same]
    twice = f"{counted(exact, 'file')} there twice (left out)" if exact else ""
    alike = f"{counted(again, 'further image')} with pixels of another" if again else ""
    description = ", ".join(filter(None, (twice, alike)))
    if several or labels:
        description += f"; {several:,} times under several patients, {labels:,} times with labels that disagree"
        fix = f"Keep one of each: what is trained on must not be tested on. {_DETAILS}"
        found.fails("duplicates", description, fix, **figures)
    else:
        found.note("duplicates", description, f"Keep one of each, or they count double. {_DETAILS}", **figures)


def _by_content(cohort: Cohort) -> list[list[int]]:
    """Positions of cases by what they hold, in order of first use."""
    groups: dict[bytes, list[int]] = {}
    for at, case in enumerate(cohort.inputs.numpy()):
        flat = case.reshape(-1)
        if flat.size and (flat == flat[0]).all():
            continue  # blank images have a line of their own
        groups.setdefault(hashlib.blake2b(case.tobytes(), digest_size=16).digest(), []).append(at)
    return list(groups.values())


def _disagree(cohort: Cohort, group: Sequence[int]) -> bool:
    at = torch.tensor(group)
    labels = (target[at][known(target[at])] for target in cohort.targets.values())
    return any(len({case.numpy().tobytes() for case in own}) > 1 for own in labels)


def _splits(found: Findings, cohort: Cohort, study: Study) -> None:
    cases = {split: len(at) for split, at in cohort.splits.items()}
    patients = {split: len({cohort.patients[i] for i in at.tolist()}) for split, at in cohort.splits.items()}
    description = ", ".join(
        f"{split} {patients[split]:,} patients with {counted(cases[split], 'case')}" for split in cases
    )
    description += f"; {IN_WORDS[cohort.split_rule]}"
    figures = {"cases": cases, "patients": patients, "rule": cohort.split_rule}
    empty = [split for split in cases if getattr(study.split, split) and not cases[split]]
    by_chance = cohort.split_rule == "independent"
    if "train" in empty:
        fix = "There are too few patients to split; add more" + (
            ", or ask the coordinator for another seed." if by_chance else "."
        )
        found.fails("splits", description, fix, **figures)
    elif empty:
        fix = "The site trains, but cannot be evaluated on that split; more patients would help" + (
            ": so few can all fall elsewhere by chance. The coordinator can give the split a larger share, or the "
            "study another seed; patients are not dealt out, since one would then move others."
            if by_chance
            else "."
        )
        found.note("splits", f"nobody in {', '.join(empty)}: {description}", fix, **figures)
    elif cohort.split_rule == "own":
        fix = "Nothing is to be done if it is the split that you mean; else take it out of the cohort."
        found.note("splits", description, fix, **figures)
    else:
        found.fine("splits", description, **figures)


def _torn(found: Findings, cohort: Cohort, same: list[list[int]], names: Names) -> None:
    """Is one patient in two splits? Splits go by patient id, so it takes two ids; studies and pixels show them."""
    split_of = {at: split for split, indices in cohort.splits.items() for at in indices.tolist()}
    torn = [group for group in [*_by_study(cohort), *same] if len({split_of[at] for at in group}) > 1]
    if torn:
        found.private += [f"in two splits: {', '.join(_named(cohort, names, group))}" for group in torn]
        description = f"{counted(len(torn), 'study or image', 'studies or images')} of one patient in two splits"
        fix = f"Give the patient one id in all files: results would be too good to be true. {_DETAILS}"
        found.fails("one_patient_two_splits", description, fix, groups=len(torn))
    else:
        found.fine("one_patient_two_splits", "no study and no image is in two splits", groups=0)


def _ids(found: Findings, spec: CohortSpec, problems: dict[str, int], patients: int) -> None:
    unknown, alike = problems.get("no_patient_id", 0), problems.get("similar_patient_ids", 0)
    figures = {"patients": patients, "without_id": unknown, "alike": alike}
    description = counted(patients, "patient")
    if unknown:
        fix = "Without an id they count as one patient; restore the ids, or pseudonyms, in the files or the table."
        found.fails("patient_ids", f"{description}; {counted(unknown, 'case')} without a patient id", fix, **figures)
    elif alike:
        fix = "If they are the same person, write the id in one way; else leave them."
        description = f"{description}; {counted(alike, 'id')} alike but for case, separators, leading zeros or .0"
        found.note("patient_ids", description, fix, **figures)
    elif not spec.knows_patients:
        what = "row" if spec.what.case == "row" else "file"
        fix = (
            "Name the column as `patient_column` in site.yaml if a patient has several, or splits are not by patient; "
            "studies with differential privacy need it, unless the policy says unit: image."
        )
        found.note("patient_ids", f"every {what} counts as a patient of its own", fix, **figures)
    else:
        found.fine("patient_ids", description, **figures)


def _by_study(cohort: Cohort) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for at, study in enumerate(cohort.studies):
        if study != UNKNOWN:
            groups.setdefault(study, []).append(at)
    return list(groups.values())


def _blank(found: Findings, cohort: Cohort, names: Names) -> None:
    flat = cohort.inputs.numpy().reshape(len(cohort.inputs), -1)
    blank = np.flatnonzero((flat == flat[:, :1]).all(axis=1)).tolist()
    if blank:
        found.private.append(f"blank: {', '.join(_named(cohort, names, blank))}")
        fix = f"Look at them: they may be failed exposures, or their window does not fit. {_DETAILS}"
        found.note("blank", f"{counted(len(blank), 'image')} of one single value", fix, images=len(blank))
    else:
        found.fine("blank", "no image is blank", images=0)


def _stated(found: Findings, cohort: Cohort, spec: CohortSpec) -> None:
    """What the files say of themselves, from fixed lists (see `fedgraft.client.data.decoding.dicom.facts`)."""
    for name, fix in (
        ("modality", "Check that the folder holds the images that the study is about."),
        ("vendor", ""),
        ("photometric", ""),
        ("bits", ""),
        ("spacing", "Without it pixels are taken as square; sizes cannot be told."),
        (
            "window",
            "They are shown from their 0.5 to their 99.5 percentile; set `window` in site.yaml for one that fits.",
        ),
    ):
        counts = _fact(cohort, name)
        unsaid = counts.get(NOT_STATED, 0) + (counts.get(OTHER, 0) if name == "modality" else 0)
        if unsaid and fix and not (name == "window" and spec.window is not None):
            found.note(name, listed(counts), fix, counts=counts)
        else:
            found.fine(name, listed(counts), counts=counts)


def _burned_in(found: Findings, cohort: Cohort, problems: dict[str, int]) -> None:
    flagged, unsaid = problems.get("burned_in_annotation", 0), _fact(cohort, "burned_in").get(NOT_STATED, 0)
    figures = {"flagged": flagged, "not_stated": unsaid}
    if flagged:
        description = f"{counted(flagged, 'image')} flagged as having text burned into the pixels; left out"
        fix = f"Have the text removed, or take the files away: it may name patients. {_DETAILS}"
        found.fails("burned_in", description, fix, **figures)
    elif unsaid:
        fix = "Look at some of them: nothing but your eyes tells whether names are burned into the pixels."
        found.note("burned_in", f"{counted(unsaid, 'file')} without the flag BurnedInAnnotation", fix, **figures)
    else:
        found.fine("burned_in", "no image is flagged as having text burned in", **figures)


def _fact(cohort: Cohort, name: str) -> dict[str, int]:
    start = f"{name} "
    return {key.removeprefix(start): count for key, count in cohort.facts.items() if key.startswith(start)}


def _named(cohort: Cohort, names: Names, group: Iterable[int]) -> list[str]:
    """File names of cases; the line's number where they are rows of a table."""
    origins = [cohort.origins[at] for at in group]
    return [names[origin] if names else f"row {origin + 1}" for origin in origins]

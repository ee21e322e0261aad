"""Preflight: are the labels fit? Enough of them, in the words and the unit of the study, joined to their images."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.cohorts.masks import OTHER_SIZE, UNREADABLE, WITHOUT_IMAGE
from fedgraft.client.data.readers.segmentations import OF_FRAMES, TWICE
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.joins import IN_WORDS
from fedgraft.client.data.tables.targets import columns_of, known, label_counts
from fedgraft.client.data.tables.words import by_count
from fedgraft.client.preflight.report import Findings, counted, listed
from fedgraft.common.config.suggest import instead
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import (
    UNKNOWN,
    Multilabel,
    Regression,
    Segmentation,
    Task,
)

ABOUT_MASKS = frozenset({OTHER_SIZE, UNREADABLE, WITHOUT_IMAGE, TWICE, OF_FRAMES})
_LEAST_LABELLED = 0.5
_FAR, _MOST_FAR = 5, 0.2
"""Values so many deviations from the study's mean are odd, and more than this share of them is another unit."""


def check_labels(found: Findings, cohort: Cohort, spec: CohortSpec, study: Study) -> None:
    """Lines about the labels of every task, and how the table joins."""
    problems = {problem.reason: problem.count for problem in cohort.problems}
    _keys(found, spec, study)
    _labels(found, cohort, spec, study, problems)
    _classes(found, cohort, study)


def _keys(found: Findings, spec: CohortSpec, study: Study) -> None:
    """Entries of the cohort for labels that the study has not: of another study, or misspelt."""
    known_keys = [key for task in study.tasks for key in (task.name, *(key for key, _ in columns_of(task)))]
    for name, given in (("label_columns", spec.label_columns), ("label_map", spec.label_map)):
        strange = sorted(given.keys() - set(known_keys))
        if strange:
            meant = "; ".join(f"{key!r}{instead(key, known_keys)}" for key in strange)
            fix = f"They count for studies with such a task, and not for this one: {meant}."
            found.note(f"notes_{name}", f"{name} has entries for no task of the study: {', '.join(strange)}", fix)


def _labels(found: Findings, cohort: Cohort, spec: CohortSpec, study: Study, problems: dict[str, int]) -> None:
    cases = len(cohort.inputs)
    for task in study.tasks:
        there = int(known(cohort.targets[task.name]).sum())
        figures = {"cases": cases, "labelled": there}
        masks = isinstance(task, Segmentation)
        description = f"{there:,} of {counted(cases, 'case')} have a {'mask' if masks else 'label'}"
        name = f"labels_{task.name}"
        if masks:
            _masks(found, name, description, figures, problems)
        elif there == 0:
            _unlabelled(found, study, name, description, figures)
        elif there < _LEAST_LABELLED * cases:
            fix = "Check `join`, `key_column` and `label_columns` in site.yaml, and whether the table is complete."
            found.fails(name, description, fix, **figures)
        elif there < cases:
            found.note(
                name, description, "Cases without a label are not trained on; add labels if there are any.", **figures
            )
        else:
            found.fine(name, description, **figures)
    if spec.labels is not None:
        _joined(found, problems, len(set(cohort.origins)))


def _masks(found: Findings, name: str, description: str, figures: dict[str, int], problems: dict[str, int]) -> None:
    """Masks are dear: a site may have some or none, but none that does not fit its image."""
    odd = {reason: problems[reason] for reason in sorted(ABOUT_MASKS & problems.keys())}
    if odd:
        fix = (
            "Each mask is a PNG of its image's size, with its image's path and name, in the folder `mask_images`; or "
            "of a DICOM segmentation in `mask_segmentations`, of which no two say different things of an image."
        )
        found.fails(name, f"{description}; {listed(odd)}", fix, **figures)
    elif figures["labelled"] == 0:
        fix = (
            "The site adds nothing to this task; name the folder as `mask_images`, or of DICOM segmentations as "
            "`mask_segmentations`, in site.yaml if it has some."
        )
        found.note(name, description, fix, **figures)
    else:
        found.fine(name, description, **figures)


def _unlabelled(found: Findings, study: Study, name: str, description: str, figures: dict[str, int]) -> None:
    if any(stage.where != "labelled" for stage in study.plan):
        fix = "The site takes part in stages that need no labels; name `labels` in site.yaml if it has some."
        found.note(name, description, fix, **figures)
    else:
        fix = "Name the table as `labels` in site.yaml, and check `join`, `key_column` and `label_columns`."
        found.fails(name, description, fix, **figures)


def _joined(found: Findings, problems: dict[str, int], images: int) -> None:
    without_row, without_file = problems.get("no_label_row", 0), problems.get("label_without_file", 0)
    differ = {word: problems[word] for word in IN_WORDS if word in problems}
    figures: dict[str, Any] = {"images_without_row": without_row, "rows_without_image": without_file}
    description = (
        f"{counted(without_row, 'image')} without a row of the labels table, "
        f"{counted(without_file, 'row')} without an image"
    )
    if not without_row and not without_file:
        found.fine("joined", "every image has its row in the labels table, and every row an image", **figures)
        return
    fix = "Compare how the table and the files write their keys; `join` and `key_column` in site.yaml say which."
    if differ:
        figures["differ_by"] = differ
        ways = ", ".join(f"{IN_WORDS[word]} ({count:,})" for word, count in by_count(differ))
        description += f"; their keys are the same but for {ways}"
        fix = "Write the keys in the table as the files have them. A spreadsheet keeps them if the column is text."
    few = without_row > _LEAST_LABELLED * images
    (found.fails if few else found.note)("joined", description, fix, **figures)


def _classes(found: Findings, cohort: Cohort, study: Study) -> None:
    for task in study.tasks:
        target = cohort.targets[task.name]
        if not isinstance(task, Task):
            _other_kinds(found, task, target)
            continue
        whole = Counter(target.tolist())
        if not any(number != UNKNOWN for number in whole):
            continue  # said by the line about labels
        counts = {label: whole[number] for number, label in enumerate(task.classes)}
        train = Counter(target[cohort.splits["train"]].tolist())
        absent = [label for label, count in counts.items() if not count]
        untrained = [n for number, n in enumerate(task.classes) if not train[number] and counts[n]]
        name, description = f"classes_{task.name}", listed(counts)
        if sum(count > 0 for count in counts.values()) < 2:
            fix = "Check `label_map` and `label_columns` in site.yaml: with one class there is nothing to tell apart."
            # Of several tasks a site may know one answer only: an MR centre has one organ.
            (found.fails if len(study.tasks) == 1 else found.note)(
                name, f"only one class: {description}", fix, counts=counts
            )
        elif absent:
            fix = "If your patients have it, check `label_map` in site.yaml; if not, the other sites will teach it."
            found.note(name, f"no case of {', '.join(absent)}: {description}", fix, counts=counts)
        elif untrained:
            fix = "There are too few cases of it for every split; more patients would help."
            found.note(name, f"no training case of {', '.join(untrained)}: {description}", fix, counts=counts)
        else:
            found.fine(name, description, counts=counts)


def _other_kinds(found: Findings, task: Multilabel | Regression | Segmentation, target: Tensor) -> None:
    there = target[known(target)]
    if not len(there):
        return  # said by the line about labels
    if isinstance(task, Regression):
        far = int(((there - task.mean).abs() > _FAR * task.std).sum())
        description = f"{far:,} of {counted(len(there), 'value')} are more than {_FAR} std from the study's mean"
        if far > _MOST_FAR * len(there):
            fix = f"Check the unit: the study means {task.unit}, about {task.mean:g} give or take {task.std:g}."
            found.fails(f"values_{task.name}", description, fix, far=far)
        else:
            found.fine(f"values_{task.name}", description, far=far)
    elif isinstance(task, Multilabel):
        counts = label_counts(task, target)
        absent = [label for label, count in counts.items() if not count]
        if absent:
            fix = "If your patients have it, check `label_map` and `label_columns` in site.yaml."
            found.note(f"classes_{task.name}", f"no case of {', '.join(absent)}: {listed(counts)}", fix, counts=counts)
        else:
            found.fine(f"classes_{task.name}", listed(counts), counts=counts)
    else:
        empty = int((there == 1).flatten(1).any(dim=1).logical_not().sum())
        found.fine(f"masks_{task.name}", f"{empty:,} of {counted(len(there), 'mask')} are empty", empty=empty)

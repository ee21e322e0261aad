"""What a study may ask: every kind strictly read, and studies of before kinds unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from fedgraft.common.base.errors import StudyError
from fedgraft.common.checks.check import check
from fedgraft.common.models.initialise import initialise
from fedgraft.common.study.study import Study, parse_study
from helpers.work import TABLE_PLAN, MakeStudy

MASK = {"name": "lesion", "kind": "segmentation"}
VALUE = {"name": "size", "kind": "regression", "unit": "mm", "mean": 26, "std": 16}
LABELS = {"name": "signs", "kind": "multilabel", "labels": ["mass", "nodule"]}
CLASSES = {"name": "cls", "classes": ["left", "right", "middle"]}


def faults(study: Study) -> list[str]:
    return check(study, initialise(study).model.tags())


def test_a_study_of_classes_is_written_as_before_there_were_kinds(make_study: MakeStudy) -> None:
    dumped = make_study().model_dump(mode="json")["tasks"]
    assert dumped == [{"name": "cls", "classes": ["left", "right", "middle"]}]


def test_a_study_of_all_kinds_written_out_is_the_same_study(make_study: MakeStudy) -> None:
    study = make_study(tasks=[CLASSES, MASK | {"weight": 2}, VALUE, LABELS])
    again = parse_study(study.model_dump(mode="json"), "again")
    assert again == study
    assert again.digest == study.digest
    assert make_study(tasks=[CLASSES, MASK, VALUE, LABELS]).digest != study.digest
    assert study.heads == {"cls": 3, "size": 1, "signs": 2}
    assert study.mask_heads == ("lesion",)


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        ({"name": "a", "kind": "segment"}, "tasks.0: kind must be multiclass, multilabel, regression or segmentation"),
        ({"name": "a", "classes": ["x"]}, "tasks.0.classes: "),
        (VALUE | {"std": 0}, "tasks.0.std: "),
        (VALUE | {"mean": float("nan")}, "tasks.0.mean: "),
        ({k: v for k, v in VALUE.items() if k != "unit"}, "tasks.0.unit: Field required"),
        (VALUE | {"classes": ["a", "b"]}, "tasks.0.classes: there is no such key"),
        (LABELS | {"labels": ["mass", "mass"]}, "tasks.0.labels: label names must differ"),
        (MASK | {"weight": 0}, "tasks.0.weight: "),
    ],
)
def test_a_fault_names_its_key(make_study: MakeStudy, task: dict[str, Any], fault: str) -> None:
    with pytest.raises(StudyError) as caught:
        make_study(tasks=[task])
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith(fault)


RIDGE = {"name": "probe", "where": "labelled", "local": {"kind": "statistics"}, "share": "heads"}
DP = {"kind": "gradient", "train": "heads", "steps": 2, "fixed_norm_stats": True}
DP |= {"private": {"epsilon": 3, "sample_rate": 0.5}}
TUNE = {"name": "tune", "where": "labelled", "local": DP, "share": "heads", "aggregate": {"kind": "mean"}}
LOSO = {"kind": "ridge", "ridge_penalty": "loso"}


@pytest.mark.parametrize(
    ("tasks", "stage", "changes", "fault"),
    [
        ([CLASSES, MASK], TUNE, {}, "plan.0 (tune).local.private: gradients of single cases through the decoder of"),
        ([MASK], RIDGE | {"aggregate": {"kind": "ridge"}}, {}, "plan.0 (probe).local: masks have no head"),
        ([CLASSES, VALUE], RIDGE | {"aggregate": {"kind": "ncm"}}, {}, "plan.0 (probe).aggregate: ncm is for classes"),
        ([LABELS], RIDGE | {"aggregate": {"kind": "lda"}}, {}, "plan.0 (probe).aggregate: lda is for classes"),
        (
            [CLASSES],
            RIDGE | {"aggregate": LOSO},
            {"secure_aggregation": True},
            "plan.0 (probe).aggregate.ridge_penalty: loso leaves out",
        ),
        (
            [CLASSES, VALUE],
            RIDGE | {"local": {"kind": "statistics", "private": {"epsilon": 3}}, "aggregate": {"kind": "ridge"}},
            {},
            "plan.0 (probe).local.private: the bound of noised sums is known for classes alone, not for size",
        ),
        (
            [CLASSES],
            RIDGE | {"local": {"kind": "statistics", "private": {"epsilon": 3}}, "aggregate": LOSO},
            {},
            "plan.0 (probe).aggregate.ridge_penalty: loso measures errors on sums that noise has spoilt",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_round_1(make_study: MakeStudy, tasks, stage, changes, fault) -> None:
    found = faults(make_study(tasks=tasks, plan=[stage], **changes))
    assert any(line.startswith(fault) for line in found), found


def test_what_can_work_is_not_refused(make_study: MakeStudy) -> None:
    assert not faults(make_study(tasks=[CLASSES, MASK, VALUE, LABELS]))
    assert not faults(make_study(tasks=[CLASSES, VALUE, LABELS], plan=[TUNE]))
    assert not faults(make_study(tasks=[MASK, VALUE, LABELS], plan=[RIDGE | {"aggregate": LOSO}]))


def test_a_table_has_no_pixels(make_study: MakeStudy) -> None:
    table = {"kind": "table", "numeric": ["a"]}
    study = make_study(tasks=[CLASSES, MASK], input=table, model={"backbone": "table_linear"}, plan=TABLE_PLAN)
    tags = initialise(make_study(input=table, model={"backbone": "table_linear"}, plan=TABLE_PLAN)).model.tags()
    assert any(line.startswith("tasks: lesion asks for masks") for line in check(study, tags))

"""Fewer training cases, hidden labels, shuffled labels: what changes, and what never does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.data.cohorts.cohort import CohortRequest, Place, load_cohort
from fedgraft.client.data.cohorts.experiment import fewer
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import UNKNOWN, Task
from fedgraft.simulations.compare.running.folds import Fold, folded
from fedgraft.simulations.engines.run import Hospitals

TASK = Task(name="cls", classes=("left", "right", "middle"))


def loaded(hospitals: Hospitals, folder: Path, seed: int = 0, **changes: object):
    spec = hospitals.cohorts["south"].model_copy(update=changes)
    wanted = CohortRequest([TASK], ImageInput(size=32), SplitSpec(train=0.5, val=0.2, test=0.3), seed, "stratified")
    return load_cohort("south", spec, wanted, Place(folder, folder.parent / "cache", b"0" * 32))


def test_fewer_cases_train_and_the_same_are_tested(hospitals: Hospitals, tmp_path: Path) -> None:
    whole, few, fewest = (loaded(hospitals, tmp_path / str(n), train_cases=n) for n in (None, 12, 6))
    assert (len(few.splits["train"]), len(fewest.splits["train"])) == (12, 6)
    assert set(fewest.splits["train"].tolist()) < set(few.splits["train"].tolist())
    for cohort in (few, fewest):
        assert set(cohort.splits["train"].tolist()) < set(whole.splits["train"].tolist())
        assert cohort.splits["test"].tolist() == whole.splits["test"].tolist()
        classes = Counter(cohort.targets["cls"][cohort.splits["train"]].tolist())
        assert max(classes.values()) == min(classes.values())


def test_patients_are_kept_whole() -> None:
    patients = [str(case // 3) for case in range(30)]
    chosen = fewer(np.arange(30), patients, dict.fromkeys(patients, 0), 10, seed=1)
    assert len(chosen) == 12
    assert set(Counter(patients[case] for case in chosen).values()) == {3}
    again = fewer(np.arange(30)[::-1], patients, dict.fromkeys(patients, 0), 10, seed=1)
    assert again.tolist() == chosen.tolist()
    assert fewer(np.arange(30), patients, dict.fromkeys(patients, 0), 10, seed=2).tolist() != chosen.tolist()


def test_hidden_labels_are_left_for_testing_alone(hospitals: Hospitals, tmp_path: Path) -> None:
    known, hidden = (loaded(hospitals, tmp_path / how, train_labels=how) for how in ("known", "hidden"))
    for split in ("train", "val"):
        assert (hidden.targets["cls"][hidden.splits[split]] == UNKNOWN).all()
    test = known.splits["test"]
    assert hidden.targets["cls"][test].tolist() == known.targets["cls"][test].tolist()
    assert (known.targets["cls"] != UNKNOWN).all()


def test_shuffled_labels_keep_their_numbers_and_lose_their_meaning(hospitals: Hospitals, tmp_path: Path) -> None:
    known, shuffled = (loaded(hospitals, tmp_path / how, train_labels=how) for how in ("known", "shuffled"))
    for split in ("train", "val"):
        at = known.splits[split]
        before, after = known.targets["cls"][at].tolist(), shuffled.targets["cls"][at].tolist()
        assert Counter(before) == Counter(after)
    train, test = known.splits["train"], known.splits["test"]
    agree = (known.targets["cls"][train] == shuffled.targets["cls"][train]).float().mean()
    assert agree < 0.7
    assert shuffled.targets["cls"][test].tolist() == known.targets["cls"][test].tolist()


def test_decoded_images_are_shared_by_all_experiments(hospitals: Hospitals, tmp_path: Path) -> None:
    for number, how in enumerate(("known", "hidden", "shuffled")):
        loaded(hospitals, tmp_path / how, train_labels=how, train_cases=5 + number)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


@pytest.mark.parametrize("count", [2, 5])
def test_over_all_folds_each_patient_is_tested_once(count: int) -> None:
    strata = {f"p{number}": number % 4 - 1 for number in range(43)}
    dealt = [folded(strata, Fold(number, count), 0.2, seed=3) for number in range(count)]
    tested = Counter(patient for splits in dealt for patient, split in splits.items() if split == "test")
    assert tested == Counter(dict.fromkeys(strata, 1))
    for splits in dealt:
        assert set(splits) == set(strata)
        sizes = Counter(splits.values())
        assert abs(sizes["test"] - 43 / count) < 1
        assert sizes["val"] / (sizes["val"] + sizes["train"]) == pytest.approx(0.2, abs=0.05)
        per_class = Counter(strata[patient] for patient, split in splits.items() if split == "test")
        assert max(per_class.values()) - min(per_class.values()) <= 1
    assert folded(strata, Fold(0, count), 0.2, seed=4) != dealt[0]


def test_a_cohort_may_say_so_in_its_file() -> None:
    spec = CohortSpec.model_validate({"kind": "images", "root": "x", "train_cases": 3, "train_labels": "hidden"})
    assert (spec.train_cases, spec.train_labels) == (3, "hidden")

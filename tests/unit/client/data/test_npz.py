"""Benchmarks as one .npz file: the numbers that somebody else worked out, and files that want to do harm."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Multilabel, Regression, Segmentation, Task

CLASSES = Task(classes=("normal", "pneumonia"))
COUNTS = {"train": 5, "val": 2, "test": 3}


def arrays(shape: tuple[int, ...] = (16, 16), **changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """Ten images in the layout of MedMNIST: image n has the grey 20 n throughout, and n % 2 is its class."""
    made: dict[str, np.ndarray] = {}
    numbers = iter(range(10))
    for split, count in COUNTS.items():
        own = np.array([next(numbers) for _ in range(count)], np.uint8)
        made[f"{split}_images"] = np.stack([np.full(shape, 20 * number, np.uint8) for number in own])
        made[f"{split}_labels"] = (own % 2).reshape(-1, 1)
    return {name: array for name, array in (made | changes).items() if array is not None}


def save(folder: Path, **given: np.ndarray) -> Path:
    np.savez_compressed(folder / "d.npz", **given)
    return folder / "d.npz"


def load(folder: Path, *tasks, channels: int = 1, **spec) -> Cohort:
    wanted = CohortRequest(tasks or (CLASSES,), ImageInput(size=16, channels=channels), SplitSpec(), 0)
    place = Place(folder / "state", folder / "cache", b"secret")
    return load_cohort("north", CohortSpec(kind="npz", root=folder / "d.npz", **spec), wanted, place)


def greys(cohort: Cohort) -> list[int]:
    return ((cohort.inputs.double() + 32768) / 65535 * 255).mean(dim=(1, 2, 3)).round().int().tolist()


def problems(cohort: Cohort) -> dict[str, int]:
    return {one.reason: one.count for one in cohort.problems}


def test_images_labels_and_the_splits_of_the_benchmark(tmp_path):
    save(tmp_path, **arrays())
    cohort = load(tmp_path)
    assert greys(cohort) == [20 * number for number in range(10)]
    assert cohort.targets["cls"].tolist() == [number % 2 for number in range(10)]
    splits = {split: at.tolist() for split, at in cohort.splits.items()}
    assert splits == {"train": [0, 1, 2, 3, 4], "val": [5, 6], "test": [7, 8, 9]}
    assert (cohort.split_rule, problems(cohort), len(set(cohort.patients))) == ("own", {}, 10)


def test_the_second_time_it_comes_from_the_cache_with_its_splits(tmp_path):
    save(tmp_path, **arrays())
    first, again = load(tmp_path), load(tmp_path)
    assert [at.tolist() for at in again.splits.values()] == [at.tolist() for at in first.splits.values()]
    assert greys(again) == greys(first)


def test_colour_deep_and_floating_images_are_the_same_shade(tmp_path):
    plain = arrays()
    colour = {name: np.stack([array] * 3, axis=-1) if "images" in name else array for name, array in plain.items()}
    deep = {name: array.astype(np.uint16) * 257 if "images" in name else array for name, array in plain.items()}
    unit = {name: array / np.float32(255) if "images" in name else array for name, array in plain.items()}
    single = {name: array[..., None] if "images" in name else array for name, array in plain.items()}
    for number, given in enumerate((colour, deep, unit, single)):
        folder = tmp_path / str(number)
        folder.mkdir()
        save(folder, **given)
        assert greys(load(folder, channels=3)) == [20 * number for number in range(10)]


def test_numbers_mean_classes_by_position_or_as_the_study_or_the_site_names_them(tmp_path):
    save(tmp_path, **arrays(val_labels=None))
    assert load(tmp_path).targets["cls"].tolist() == [0, 1, 0, 1, 0, -1, -1, 1, 0, 1]
    named = Task(classes=("1", "0"))
    assert load(tmp_path, named).targets["cls"].tolist() == [1, 0, 1, 0, 1, -1, -1, 0, 1, 0]
    mapped = load(tmp_path, label_map={"cls": {"0": "pneumonia", "1": ""}})
    assert mapped.targets["cls"].tolist() == [1, -1, 1, -1, 1, -1, -1, -1, 1, -1]


def test_several_labels_values_and_masks(tmp_path):
    both = np.array([[1, 0], [0, 1], [-1, 1]])
    labels = {f"{split}_labels": both[np.arange(count) % 3] for split, count in COUNTS.items()}
    masks = {f"{split}_masks": np.zeros((count, 16, 16), bool) for split, count in COUNTS.items()}
    masks["train_masks"][2, 3:5, 6:9] = True
    save(tmp_path, **arrays(**labels | masks))
    asked = Multilabel(name="both", kind="multilabel", labels=("a", "b"))
    cohort = load(tmp_path, asked, Segmentation(name="m", kind="segmentation"))
    known = cohort.targets["both"][:3].tolist()
    assert known[:2] == [[1, 0], [0, 1]]
    assert np.isnan(known[2][0])
    assert (cohort.targets["m"] == 1).sum(dim=(1, 2)).tolist() == [0, 0, 6, 0, 0, 0, 0, 0, 0, 0]
    assert cohort.targets["m"][2, 3:5, 6:9].tolist() == [[1, 1, 1], [1, 1, 1]]
    save(tmp_path, **arrays(train_labels=np.array([1.5, np.nan, 2, 3, 4])))
    value = Regression(name="mm", kind="regression", mean=0, std=1, unit="mm")
    said = load(tmp_path, value).targets["mm"].tolist()
    assert said[0] == 1.5
    assert np.isnan(said[1])


def test_volumes_give_the_slices_that_are_asked_for_and_it_is_said(tmp_path):
    save(tmp_path, **arrays(shape=(3, 16, 16)))
    middle = load(tmp_path)
    assert (len(middle.inputs), problems(middle)) == (10, {"volumes_by_slices": 10})
    every = load(tmp_path, frames="all")
    assert (len(every.inputs), len(set(every.patients)), problems(every)) == (30, 10, {})
    assert every.splits["train"].tolist() == list(range(15))


class Harm:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_objects_are_never_loaded(tmp_path):
    mark = tmp_path / "harm"
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as packed:
        for name, array in arrays(train_labels=np.array([Harm(mark)] * 5, dtype=object)).items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=True)
            packed.writestr(f"{name}.npy", content.getvalue())
    mark.unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"d\.npz: array 'train_labels' holds Python objects"):
        load(tmp_path)
    assert not mark.exists()


def test_a_header_that_promises_more_than_the_file_holds(tmp_path):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"shape": (10**12, 28, 28), "fortran_order": False, "descr": "|u1"})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as packed:
        packed.writestr("train_images.npy", content.getvalue() + b"\0" * 100)
    with pytest.raises(DataError, match=r"array 'train_images' says that its shape is \(1000000000000, 28, 28\)"):
        load(tmp_path)


def test_a_small_file_that_unpacks_to_much_memory(tmp_path):
    save(tmp_path, train_images=np.zeros((400, 512, 512), np.uint8))
    assert (tmp_path / "d.npz").stat().st_size < 1_000_000
    with pytest.raises(DataError, match="too_large 1"):
        load(tmp_path, file_gigabytes=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.zeros((4, 1))}, "'train_labels' has 4 rows, and 'train_images' 5"),
        ({"val_labels": np.array([[0], [7]])}, "array 'val_labels', row 1 is no class of task 'cls'"),
        ({"val_labels": np.array([[0], [0.5]])}, "array 'val_labels', row 1: is no whole number"),
        ({"val_labels": np.zeros((2, 3))}, "array 'val_labels', row 0: has 3 numbers, and task 'cls' asks for one"),
        ({"test_images": np.full((3, 16, 16), 2.0)}, "array 'test_images', row 0: has values outside 0 to 1"),
        ({"test_images": np.full((3, 16, 16), 2)}, "array 'test_images' is of int64, which has no known white"),
        ({"test_images": np.zeros((3, 16), np.uint8)}, r"array 'test_images' is of shape \(3, 16\)"),
        ({"test_labels": np.array(["a", "b", "c"])}, "'test_labels' holds text"),
    ],
)
def test_what_is_wrong_is_named_by_file_array_and_row(tmp_path, changes, message):
    save(tmp_path, **arrays(**changes))
    with pytest.raises(DataError, match=rf"d\.npz.*{message}"):
        load(tmp_path)


def test_a_file_of_other_arrays_or_none_at_all(tmp_path):
    save(tmp_path, x=np.zeros(3), y=np.zeros(3))
    with pytest.raises(DataError, match=r"d\.npz: has no array train_images.* It has: x, y"):
        load(tmp_path)
    for content in (b"", b"no zip", (tmp_path / "d.npz").read_bytes()[:-30]):
        (tmp_path / "d.npz").write_bytes(content)
        with pytest.raises(DataError, match="unreadable 1"):
            load(tmp_path)


def test_a_patient_on_two_sides_is_refused(tmp_path):
    people = {
        f"{split}_who": np.array([f"P{at // 2}{split}" for at in range(count)]) for split, count in COUNTS.items()
    }
    save(tmp_path, **arrays(**people))
    assert len(set(load(tmp_path, patient_column="who").patients)) == 6
    save(tmp_path, **arrays(**people | {"test_who": np.array(["P0train", "x", "y"])}))
    with pytest.raises(
        DataError, match=r"1 patients have cases in two .* 'train_images', row 0, and .* 'test_images', row 0"
    ):
        load(tmp_path, patient_column="who")
    with pytest.raises(DataError, match="has no array 'train_other' with the patients"):
        load(tmp_path, patient_column="other")

"""Masks, values and labels from a site's own files: read as written, or refused with the place and what to do."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedgraft.client.data.cohorts.cohort import (
    Cohort,
    CohortRequest,
    Place,
    load_cohort,
)
from fedgraft.client.data.cohorts.masks import fit_mask
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.targets import known
from fedgraft.client.preflight.labels import check_labels
from fedgraft.client.preflight.report import Findings, Level
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import (
    Multilabel,
    Regression,
    Segmentation,
    Task,
)
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario

MASK = Segmentation(name="lesion", kind="segmentation")
VALUE = Regression(name="size_mm", kind="regression", unit="mm", mean=26.0, std=16.0)
SIGNS = Multilabel(name="signs", kind="multilabel", labels=("mass", "nodule"))
FOUND = Task(name="diagnosis", classes=("none", "smooth", "spiculated", "ring"))
PHANTOM = {"modality": "ct", "patients": 12, "images_per_patient": [1, 1], "missing_labels": 0.2}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> CohortSpec:
    sites = [{"name": "north", "phantom": PHANTOM}, {"name": "south", "phantom": PHANTOM, "mask_images": False}]
    scenario = Scenario.model_validate({"name": "masks", "seed": 1, "sites": sites})
    cohorts = make_hospitals(scenario, tmp_path_factory.mktemp("made") / "hospitals")
    assert cohorts["south"].mask_images is None
    return cohorts["north"]


def read(spec: CohortSpec, folder: Path, *tasks: Any, size: int = 64) -> Cohort:
    wanted = CohortRequest(tasks, ImageInput(size=size), SplitSpec(train=0.5, val=0.25, test=0.25), 0)
    return load_cohort("north", spec, wanted, Place(folder / "state", folder / "cache", b"0" * 16))


def truth(spec: CohortSpec) -> list[dict[str, str]]:
    with (spec.root.parent / "images.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def problems(cohort: Cohort) -> dict[str, int]:
    return {problem.reason: problem.count for problem in cohort.problems}


def test_masks_of_phantoms_are_read_beside_their_images_and_kept(spec: CohortSpec, tmp_path: Path) -> None:
    cohort = read(spec, tmp_path, FOUND, MASK, VALUE)
    masks = cohort.targets["lesion"]
    rows = truth(spec)
    assert masks.shape == (len(rows), 64, 64)
    for at, row in enumerate(rows):
        written = np.asarray(Image.open(spec.root.parent / row["mask"])) > 0
        assert torch.equal(masks[at], torch.from_numpy(written.astype(np.int8)))
        assert bool(written.any()) == (row["finding"] != "none")
        # An area in mm is that of a disc of the stated diameter: mask and pixel size belong together.
        area = float((masks[at] == 1).sum()) * cohort.spacings[at] ** 2
        assert 2 * np.sqrt(area / np.pi) == pytest.approx(float(row["diameter_mm"]), abs=1.5 * cohort.spacings[at])
    assert not problems(cohort)
    half = read(spec, tmp_path / "half", FOUND, MASK, size=32)
    assert half.spacings == pytest.approx([2 * spacing for spacing in cohort.spacings])
    assert (half.targets["lesion"] == 1).sum() == pytest.approx(int((masks == 1).sum()) / 4, rel=0.1)
    again = read(spec, tmp_path, FOUND, MASK, VALUE)
    assert len(list((tmp_path / "cache").glob("*.json"))) == 1
    assert all(torch.equal(again.targets[task].nan_to_num(-9), t.nan_to_num(-9)) for task, t in cohort.targets.items())
    assert again.spacings == cohort.spacings


def test_values_are_read_and_empty_cells_are_unknown(spec: CohortSpec, tmp_path: Path) -> None:
    cohort = read(spec, tmp_path, VALUE)
    with spec.labels.open(encoding="utf-8") as file:
        table = {row["PatientID"]: row["size_mm"] for row in csv.DictReader(file)}
    want = [float(table[row["PatientID"]] or "nan") for row in truth(spec)]
    assert np.isnan(want).any()
    np.testing.assert_allclose(cohort.targets["size_mm"].numpy(), want, rtol=1e-6)
    assert known(cohort.targets["size_mm"]).tolist() == (~np.isnan(want)).tolist()


def test_a_damaged_mask_in_the_cache_is_read_anew(spec: CohortSpec, tmp_path: Path) -> None:
    want = read(spec, tmp_path, FOUND, MASK).targets["lesion"]
    (kept,) = (tmp_path / "cache").glob("*-lesion.npy")
    np.save(kept, np.zeros_like(np.load(kept)))
    assert torch.equal(read(spec, tmp_path, FOUND, MASK).targets["lesion"], want)


def own_masks(spec: CohortSpec, folder: Path) -> CohortSpec:
    """The same site with a folder of masks that may be spoilt."""
    (folder / "masks").mkdir()
    for path in sorted(spec.mask_images.iterdir()):
        (folder / "masks" / path.name).write_bytes(path.read_bytes())
    return spec.model_copy(update={"mask_images": folder / "masks"})


def test_masks_that_cannot_be_used_are_unknown_and_counted_and_the_check_says_so(
    spec: CohortSpec, tmp_path: Path, make_study: Any
) -> None:
    mine = own_masks(spec, tmp_path)
    names = sorted(mine.mask_images.iterdir())
    names[0].unlink()
    names[1].write_bytes(b"no picture")
    Image.new("L", (10, 12)).save(names[2])
    Image.new("L", (64, 64)).save(mine.mask_images / "stranger.png")
    cohort = read(mine, tmp_path, FOUND, MASK)
    there = known(cohort.targets["lesion"])
    assert there.tolist() == [False] * 3 + [True] * (len(names) - 3)
    assert problems(cohort) == {"mask_unreadable": 1, "mask_other_size": 1, "mask_without_image": 1}
    found = Findings()
    study = make_study(tasks=[task.model_dump(mode="json") for task in (FOUND, MASK)])
    check_labels(found, cohort, mine, study)
    (line,) = (line for line in found.lines if line.name == "labels_lesion")
    assert line.level is Level.FAILS
    assert "9 of 12 cases have a mask" in line.description


def test_a_mask_that_comes_later_is_seen(spec: CohortSpec, tmp_path: Path) -> None:
    mine = own_masks(spec, tmp_path)
    first = sorted(mine.mask_images.iterdir())[0]
    data = first.read_bytes()
    first.unlink()
    assert not known(read(mine, tmp_path, FOUND, MASK).targets["lesion"])[0]
    first.write_bytes(data)
    assert known(read(mine, tmp_path, FOUND, MASK).targets["lesion"]).all()


def test_without_a_folder_no_mask_is_known_and_masks_among_images_are_refused(spec: CohortSpec, tmp_path: Path) -> None:
    cohort = read(spec.model_copy(update={"mask_images": None}), tmp_path, FOUND, MASK)
    assert not known(cohort.targets["lesion"]).any()
    for folder, words in ((spec.root, "would be taken for images"), (tmp_path / "none", "is no folder")):
        with pytest.raises(DataError, match=words):
            read(spec.model_copy(update={"mask_images": folder}), tmp_path, FOUND, MASK)
    with pytest.raises(ValueError, match="mask_images does not apply"):
        CohortSpec(kind="table", root=tmp_path, mask_images=tmp_path)


def test_a_mask_is_brought_into_the_models_size_as_its_image_is() -> None:
    """A tall image with pixels twice as high as wide: padded left and right, and the disc stays one disc."""
    inside = np.zeros((40, 60), bool)
    inside[10:20, 20:40] = True
    mask = fit_mask(inside, 2.0, ImageInput(size=32))
    assert mask.shape == (32, 32)
    assert mask.dtype == np.int8
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1]) == (8, 15)
    assert (columns[0], columns[-1]) == (4 + 8, 4 + 15)
    assert mask.sum() == 64


def labels_csv(folder: Path, header: str, *rows: str) -> CohortSpec:
    (folder / "images").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for at in range(len(rows)):
        Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(folder / "images" / f"{at}.png")
    lines = [f"path,{header}", *(f"{at}.png,{row}" for at, row in enumerate(rows))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return CohortSpec(kind="images", root=folder / "images", labels=folder / "labels.csv")


def test_labels_are_yes_no_or_unknown_one_by_one(tmp_path: Path) -> None:
    spec = labels_csv(tmp_path, "Mass,nodule", "yes,0", "FALSE,1.0", ",n/a", "pos,no")
    spec = spec.model_copy(
        update={"label_columns": {"signs.mass": "Mass"}, "label_map": {"signs.mass": {"pos": "yes"}}}
    )
    target = read(spec, tmp_path, SIGNS, size=16).targets["signs"]
    np.testing.assert_array_equal(target.numpy(), [[1, 0], [0, 1], [np.nan, np.nan], [1, 0]])
    assert known(target).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("header", "cell", "task", "words"),
    [
        ("mass,nodule", "perhaps,0", SIGNS, "line 3, column 'mass' is neither yes nor no"),
        ("mass", "1", SIGNS, "no column for the labels of task 'signs.nodule'"),
        ("size_mm", "12 mm", VALUE, "line 3, column 'size_mm' is no finite number, of task 'size_mm' in mm"),
        ("size_mm", "inf", VALUE, "line 3, column 'size_mm' is no finite number"),
        ("size_mm", "1_000", VALUE, "line 3, column 'size_mm' is no finite number"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(tmp_path: Path, header: str, cell: str, task: Any, words: str) -> None:
    spec = labels_csv(tmp_path, header, ",".join("0" * (1 + header.count(","))), cell)
    with pytest.raises(DataError) as caught:
        read(spec, tmp_path, task, size=16)
    assert words in str(caught.value)
    assert "perhaps" not in str(caught.value)


def test_the_check_finds_a_value_in_another_unit(tmp_path: Path, make_study: Any) -> None:
    study = make_study(tasks=[VALUE.model_dump(mode="json")])
    for factor, level in ((1.0, Level.FINE), (10.0, Level.FAILS)):
        folder = tmp_path / str(factor)
        folder.mkdir()
        spec = labels_csv(folder, "size_mm", *(str(size * factor) for size in range(20, 40)))
        found = Findings()
        check_labels(found, read(spec, folder, VALUE, size=16), spec, study)
        (line,) = (line for line in found.lines if line.name == "values_size_mm")
        assert line.level is level, line

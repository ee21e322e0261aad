"""NIfTI: every slice stands as DICOM would show it, however the file stores it, and files that lie cost themselves."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Segmentation, Task

CLASSES = Task(classes=("none", "nodule"))
MASK = Segmentation(name="m", kind="segmentation")
SHAPE, MM = (16, 12, 10), (1.0, 2.0, 3.0)
"""Voxels and mm to the patient's right, front and head."""


def body(dtype=np.int16) -> np.ndarray:
    """A grey patient: brighter to the right, the front and the head, so that every direction can be told."""
    right, front, head = np.meshgrid(*(np.linspace(0, 1, count) for count in SHAPE), indexing="ij")
    return (1000 * (0.6 * right + 0.3 * front + 0.1 * head)).astype(dtype)


def save(path: Path, values: np.ndarray, axes: str = "RAS", mm: tuple[float, ...] = MM, **header) -> Path:
    """The volume, whose axes lead right, front, head, stored with these axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = nib.Nifti1Image(values, np.diag([*mm, 1.0]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(plain.affine), nib.orientations.axcodes2ornt(axes))
    image = plain.as_reoriented(turn)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def load(root: Path, folder: Path, *tasks, size: int = 32, **spec) -> Cohort:
    wanted = CohortRequest(tasks or (CLASSES,), ImageInput(size=size), SplitSpec(), 0)
    place = Place(folder / "state", folder / "cache", b"secret")
    return load_cohort("north", CohortSpec(kind="nifti", root=root, **spec), wanted, place)


def shades(cohort: Cohort, at: int = 0) -> np.ndarray:
    return (cohort.inputs[at, 0].numpy().astype(float) + 32768) / 65535


def problems(cohort: Cohort) -> dict[str, int]:
    return {one.reason: one.count for one in cohort.problems}


WINDOW = {"center": 500, "width": 1001}


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "SLA", "AIL"])
def test_a_slice_stands_the_same_way_however_it_is_stored(tmp_path, axes):
    """Right at the left of the image, front on top; 16 x 1 mm by 12 x 2 mm fill 32 pixels by their size in mm."""
    save(tmp_path / "d" / "nodule" / "a.nii.gz", body(), axes)
    cohort = load(tmp_path / "d", tmp_path, window=WINDOW)
    image, spread = shades(cohort), cohort.spacings[0]
    wanted = body()[::-1, ::-1, 5].T / 1000
    height, width = 32, round(16 / 24 * 32)
    assert spread == pytest.approx(16 / width)
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    assert (len(rows), len(columns)) == (height, width)
    inner = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corners = [inner[0, 0], inner[0, -1], inner[-1, 0], inner[-1, -1]]
    assert corners == pytest.approx([wanted[0, 0], wanted[0, -1], wanted[-1, 0], wanted[-1, -1]], abs=0.04)
    assert cohort.targets["cls"].tolist() == [1]
    assert cohort.facts == {f"axes {axes}": 1, "spacing 1 mm": 1}


@pytest.mark.parametrize(
    ("plane", "down", "across"), [("axial", 1, 0), ("coronal", 2, 0), ("sagittal", 2, 1)]
)  # fmt: skip
def test_planes_and_frames(tmp_path, plane, down, across):
    save(tmp_path / "d" / "none" / "a.nii", body(), "LPS")
    (one,) = [axis for axis in range(3) if axis not in (down, across)]
    every = load(tmp_path / "d", tmp_path, plane=plane, frames="all", window=WINDOW)
    assert len(every.inputs) == SHAPE[one]
    assert (len(set(every.patients)), problems(every)) == (1, {})
    middle = load(tmp_path / "d", tmp_path, plane=plane, window=WINDOW)
    assert problems(middle) == {"volumes_by_slices": 1}
    np.testing.assert_array_equal(shades(middle), shades(every, SHAPE[one] // 2))
    # Slices go up: to the patient's right, front or head, where the volume is brighter.
    means = [shades(every, at).mean() for at in range(SHAPE[one])]
    assert means == sorted(means)
    image = shades(middle)
    inner = image[np.flatnonzero(image.any(axis=1))][:, np.flatnonzero(image.any(axis=0))]
    assert inner[0].mean() > inner[-1].mean()  # head or front on top
    assert inner[:, 0].mean() > inner[:, -1].mean()  # right or front at the left
    aspect = inner.shape[0] / inner.shape[1]
    assert aspect == pytest.approx(SHAPE[down] * MM[down] / (SHAPE[across] * MM[across]), rel=0.06)


def test_the_same_body_in_floats_scaled_integers_and_other_units(tmp_path):
    plain = save(tmp_path / "d" / "none" / "a.nii", body())
    save(tmp_path / "d" / "none" / "b.nii.gz", body(np.float32))
    scaled = nib.Nifti1Image((body() / 4).round().astype(np.int16), nib.load(plain).affine)
    scaled.header.set_slope_inter(4, 0)
    nib.save(scaled, tmp_path / "d" / "none" / "c.nii")
    metres = nib.Nifti1Image(body(), np.diag([0.001, 0.002, 0.003, 1]))
    metres.header.set_xyzt_units("meter")
    nib.save(metres, tmp_path / "d" / "none" / "d.nii")
    cohort = load(tmp_path / "d", tmp_path, window=WINDOW)
    for at in range(1, 4):
        np.testing.assert_allclose(shades(cohort, at), shades(cohort), atol=0.005)
    assert cohort.spacings == pytest.approx([cohort.spacings[0]] * 4)
    assert cohort.facts["spacing 1 mm"] == 4


def test_without_a_window_the_volumes_percentiles_count_and_not_the_slices(tmp_path):
    values = np.zeros(SHAPE, np.int16)
    values[:, :, 8] = 1000
    values[:, :, 5] = 500
    save(tmp_path / "d" / "none" / "a.nii", values)
    assert shades(load(tmp_path / "d", tmp_path)).max() == pytest.approx(0.5, abs=0.01)


def test_masks_are_volumes_that_are_cut_as_their_images_are(tmp_path):
    save(tmp_path / "d" / "a.nii.gz", body(), "LPS", mm=(1, 1, 1))
    inside = np.zeros(SHAPE, np.uint8)
    inside[2:5, 8:10, 4:7] = 1  # to the left and the front
    save(tmp_path / "masks" / "a.nii.gz", inside, "SRA", mm=(1, 1, 1))
    save(tmp_path / "d" / "b.nii", body(), mm=(1, 1, 1))
    save(tmp_path / "masks" / "b.nii", inside[:, :, :9], mm=(1, 1, 1))
    save(tmp_path / "masks" / "nobody.nii", inside)
    cohort = load(tmp_path / "d", tmp_path, MASK, size=16, frames="all", mask_images=tmp_path / "masks")
    found = cohort.targets["m"].numpy()
    assert [(found[at] == 1).sum() for at in range(10)] == [0] * 4 + [6] * 3 + [0] * 3
    rows, columns = np.nonzero(found[5] == 1)
    # 12 rows of 16 columns in a square of 16: 2 empty rows above; row 2 of the front, columns from the patient's right.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 5, 11, 13)
    # The mask of b has one slice less, so that nobody knows which slice is which.
    assert (found[10:] == -1).all()
    assert problems(cohort) == {"mask_without_image": 1, "mask_other_size": 10}


def fails(tmp_path: Path, content: bytes, name: str = "bad.nii", **spec) -> dict[str, int]:
    save(tmp_path / "d" / "none" / "good.nii", body())
    (tmp_path / "d" / "none" / name).write_bytes(content)
    return problems(load(tmp_path / "d", tmp_path, frames="first", **spec))


def test_files_that_lie_or_are_torn_cost_themselves(tmp_path):
    whole = save(tmp_path / "w.nii", body()).read_bytes()
    assert fails(tmp_path, whole[:-100])["truncated"] == 1
    assert fails(tmp_path, b"")["empty_file"] == 1
    assert fails(tmp_path, b"x" * 500)["unreadable"] == 1
    lying = bytearray(whole)
    lying[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
    assert fails(tmp_path, bytes(lying))["truncated"] == 1
    (tmp_path / "d" / "none" / "bad.nii").unlink()
    packed = fails(tmp_path, gzip.compress(bytes(lying)), "bad.nii.gz")
    assert packed.get("too_large", 0) + packed.get("unreadable", 0) == 1
    assert fails(tmp_path, gzip.compress(whole)[:-50], "bad.nii.gz")["unreadable"] == 1


def test_a_bomb_of_a_few_kilobytes_is_left_out(tmp_path):
    head = bytearray(save(tmp_path / "w.nii", np.zeros((2, 2, 2), np.uint8)).read_bytes()[:352])
    head[42:48] = np.array([600, 600, 600], "<i2").tobytes()
    bomb = gzip.compress(bytes(head) + bytes(600**3))
    assert len(bomb) < 300_000
    assert fails(tmp_path, bomb, "bomb.nii.gz", file_gigabytes=0.05)["too_large"] == 1


def test_what_cannot_be_an_image_has_its_own_word(tmp_path):
    series = tmp_path / "series.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 5), np.int16), np.eye(4)), series)
    assert fails(tmp_path, series.read_bytes())["more_than_three_dimensions"] == 1
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), series)
    assert fails(tmp_path, series.read_bytes())["complex_values"] == 1
    single = nib.Nifti1Image(body()[..., None].astype(np.int16), np.eye(4))
    nib.save(single, series)
    assert "more_than_three_dimensions" not in fails(tmp_path, series.read_bytes())
    assert fails(tmp_path, b"x", "notes.txt")["not_nifti"] == 1


def test_a_header_that_says_nothing_of_directions_is_noted(tmp_path):
    image = nib.Nifti1Image(body(), None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    (tmp_path / "d" / "none").mkdir(parents=True)
    nib.save(image, tmp_path / "d" / "none" / "a.nii")
    assert problems(load(tmp_path / "d", tmp_path, frames="all")) == {"orientation_not_stated": 1}


def test_nothing_of_the_headers_text_reaches_what_is_kept(tmp_path):
    save(tmp_path / "d" / "none" / "a.nii", body(), descrip=b"Doe^Jane 1970", aux_file=b"MRN0815")
    cohort = load(tmp_path / "d", tmp_path, frames="all")
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "d" not in path.parts)
    assert b"Doe" not in kept
    assert b"MRN0815" not in kept
    assert "Doe" not in repr(cohort.facts)

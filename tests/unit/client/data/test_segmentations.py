"""Masks from DICOM segmentations, as another program (highdicom) writes them: those of the images they refer to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import dcmread
from pydicom.sr.codedict import codes

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Segmentation, Task
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario

LESION = Segmentation(name="lesion", kind="segmentation")
FOUND = Task(name="diagnosis", classes=("none", "smooth", "spiculated", "ring"))
PHANTOM = {"modality": "ct", "patients": 8, "images_per_patient": [1, 1]}
Masks = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> CohortSpec:
    """Eight CT slices with masks as PNG: what a cohort with the same masks as segmentations must give."""
    scenario = Scenario.model_validate({"name": "seg", "seed": 1, "sites": [{"name": "north", "phantom": PHANTOM}]})
    return make_hospitals(scenario, tmp_path_factory.mktemp("made") / "hospitals")["north"]


def images(spec: CohortSpec) -> list[Path]:
    return sorted(spec.root.glob("*.dcm"))


def truth(spec: CohortSpec, image: Path) -> np.ndarray:
    assert spec.mask_images is not None
    return np.asarray(Image.open(spec.mask_images / f"{image.stem}.png")) > 0


def write(path: Path, image: Path, masks: Masks, kind: str = "BINARY") -> None:
    """A segmentation of one image with a segment for each mask, by label."""
    path.parent.mkdir(exist_ok=True)
    described = [
        hd.seg.SegmentDescription(
            number, label, codes.SCT.Tissue, codes.SCT.Neoplasm, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, label in enumerate(masks, start=1)
    ]
    made = hd.seg.Segmentation(
        source_images=[dcmread(image)],
        pixel_array=np.stack(list(masks.values()), axis=-1)[None],
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="another program",
        manufacturer_model_name="another",
        software_versions="1",
        device_serial_number="1",
    )
    made.save_as(path)


def read(spec: CohortSpec, folder: Path, size: int = 64) -> Cohort:
    request = CohortRequest([FOUND, LESION], ImageInput(size=size), SplitSpec(), 0)
    return load_cohort("north", spec, request, Place(folder / "state", folder / "cache", b"k" * 32))


def with_objects(spec: CohortSpec, folder: Path, **keys: object) -> CohortSpec:
    return CohortSpec.model_validate(
        spec.model_dump() | {"mask_images": None, "mask_segmentations": folder / "seg"} | keys
    )


def counts(cohort: Cohort) -> dict[str, int]:
    return {one.reason: one.count for one in cohort.problems if one.reason.startswith("mask")}


@pytest.mark.slow
def test_the_segment_with_the_label_is_the_mask(spec: CohortSpec, tmp_path: Path) -> None:
    for at, image in enumerate(images(spec)):
        mask = truth(spec, image)
        masks = {"Lung": ~mask, "Lesion ": mask}
        if at % 2:
            # A fraction of a half counts as inside, what is less does not; lungs first, so that order decides nothing.
            masks = {name: np.where(own, 0.5 if name != "Lung" else 1.0, 0.4) for name, own in masks.items()}
        write(tmp_path / "seg" / f"{at}.dcm", image, masks, "FRACTIONAL" if at % 2 else "BINARY")
    wanted, found = read(spec, tmp_path / "png"), read(with_objects(spec, tmp_path), tmp_path / "objects")
    assert torch.equal(found.targets["lesion"], wanted.targets["lesion"])
    assert set(wanted.targets["lesion"].unique().tolist()) == {0, 1}
    assert counts(found) == {}
    named = with_objects(spec, tmp_path, segment_labels={"lesion": "lung"})
    assert torch.equal(read(named, tmp_path / "lung").targets["lesion"], 1 - wanted.targets["lesion"])
    with pytest.raises(DataError, match=r"no segment is called 'tumour'; there are: Lesion, Lung.*segment_labels"):
        read(with_objects(spec, tmp_path, segment_labels={"lesion": "tumour"}), tmp_path / "none")


def test_what_is_not_known_stays_so_and_is_counted(spec: CohortSpec, tmp_path: Path) -> None:
    first, second, third, *_, last = images(spec)
    stranger = dcmread(last)
    stranger.SOPInstanceUID = stranger.file_meta.MediaStorageSOPInstanceUID = hd.UID()
    stranger.save_as(tmp_path / "stranger.dcm")
    full = np.ones_like(truth(spec, first))
    half = full.copy()
    half[:20] = False
    write(tmp_path / "seg" / "full.dcm", first, {"lesion": full, "lung": half})
    write(tmp_path / "seg" / "nothing.dcm", second, {"lesion": ~full, "lung": half})
    write(tmp_path / "seg" / "one.dcm", third, {"lesion": full})
    write(tmp_path / "seg" / "other.dcm", third, {"lesion": half})
    write(tmp_path / "seg" / "stranger.dcm", tmp_path / "stranger.dcm", {"lesion": full})
    (tmp_path / "seg" / "broken.dcm").write_bytes((tmp_path / "seg" / "one.dcm").read_bytes()[:900])
    cohort = read(with_objects(spec, tmp_path), tmp_path)
    by_image = {images(spec)[at].name: mask for at, mask in zip(cohort.origins, cohort.targets["lesion"], strict=True)}
    assert by_image[first.name].unique().tolist() == [1]
    assert by_image[second.name].unique().tolist() == [0], "it was looked at, and nothing was found"
    assert by_image[third.name].unique().tolist() == [-1], "two that differ say nothing"
    assert by_image[last.name].unique().tolist() == [-1]
    assert counts(cohort) == {"mask_twice": 1, "mask_unreadable": 1, "mask_without_image": 1}
    write(tmp_path / "seg" / "other.dcm", third, {"lesion": full})
    again = read(with_objects(spec, tmp_path), tmp_path)
    assert counts(again) == {"mask_unreadable": 1, "mask_without_image": 1}, "a mask that changed is read anew"


def test_a_segmentation_is_never_an_image(spec: CohortSpec, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for image in images(spec)[:4]:
        (root / image.name).write_bytes(image.read_bytes())
    write(root / "seg.dcm", images(spec)[0], {"lesion": truth(spec, images(spec)[0])})
    cohort = read(spec.model_copy(update={"root": root, "mask_images": None}), tmp_path)
    assert len(cohort.inputs) == 4
    assert {one.reason: one.count for one in cohort.problems}["segmentation"] == 1
    (root / "seg").mkdir()
    inside = spec.model_copy(update={"root": root, "mask_images": None, "mask_segmentations": root / "seg"})
    with pytest.raises(DataError, match="would be taken for images"):
        read(inside, tmp_path)


def test_keys_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for keys, fault in (
        ({"kind": "images", "mask_segmentations": tmp_path}, "mask_segmentations does not apply"),
        ({"kind": "dicom", "mask_segmentations": tmp_path, "mask_images": tmp_path}, "not both"),
        ({"kind": "dicom", "segment_labels": {"lesion": "a"}}, "needs `mask_segmentations`"),
    ):
        with pytest.raises(ValueError, match=fault):
            CohortSpec.model_validate({"root": tmp_path, **keys})

"""What `predict --dicom` writes: read back by pydicom, highdicom and dcmtk, and true to its source and to the model."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from conftest import Command
from fedgraft.client.data.cohorts.masks import fit_mask
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import WeightsManifest, save_weights
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.study import parse_study
from helpers.site_home import generate

TASKS = [
    {"name": "finding", "classes": ["none", "übermäßig große Verschattung / links\\rechts", "ring"]},
    {"name": "signs", "kind": "multilabel", "labels": ["effusion", "nodule"]},
    {"name": "size_mm", "kind": "regression", "unit": "mm", "mean": 20.0, "std": 5.0},
    {"name": "lesion", "kind": "segmentation"},
    {"name": "lung", "kind": "segmentation"},
]
PATIENT = ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "AccessionNumber")


def weights(folder: Path, tasks: list[dict[str, object]]) -> WeightsManifest:
    """A model of random entries for these tasks, which says something of every image."""
    values = {"name": "all", "tasks": tasks, "input": {"kind": "image", "size": 32}, "method": {"name": "graft"}}
    study = parse_study(values | {"model": {"backbone": "slim_resnet", "weights": None}}, "test")
    classes = {task.name: task.classes for task in study.tasks if hasattr(task, "classes")}
    others = tuple(task for task in study.tasks if task.name not in classes)
    facts = {"id": "all-kinds", "backbone": "slim_resnet", "input": study.input, "classes": classes, "tasks": others}
    facts |= {"trained_on": "nothing", "licence": "none", "synthetic": True, "how": "a test"}
    state = initialise(study).state()
    for key in (key for key in state if key.endswith("last.bias")):
        state[key] = np.zeros_like(state[key])  # so that a mask has an inside and an outside
    return save_weights(folder, state, facts)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An X-ray that is no square, a CT slice, and three frames in one file; names with umlauts, tags that lack."""
    made = tmp_path_factory.mktemp("made")
    folder = tmp_path_factory.mktemp("images")
    xray, again = sorted((generate(made / "xr", 4) / "dicom").glob("*.dcm"))[:2]
    slice_ = sorted((generate(made / "ct", 4, modality="ct") / "dicom").glob("*.dcm"))[-1]
    dataset = dcmread(xray)
    dataset.PixelData = dataset.pixel_array[:30].tobytes()
    dataset.Rows = 30
    dataset.SpecificCharacterSet, dataset.PatientName, dataset.AccessionNumber = "ISO_IR 100", "Müller^Jörg", "A17"
    dataset.save_as(folder / "xray.dcm")
    dataset = dcmread(again)
    pixels = dataset.pixel_array
    dataset.PixelData = np.stack([pixels, pixels[::-1], pixels.T]).tobytes()
    dataset.NumberOfFrames, dataset.Modality = 3, "US"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    dataset.FrameTime = 40
    dataset.FrameIncrementPointer = 0x00181063
    del dataset.PatientBirthDate, dataset.StudyTime
    dataset.save_as(folder / "frames.dcm")
    shutil.copy(slice_, folder / "slice.dcm")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WeightsManifest]:
    folder = tmp_path_factory.mktemp("model")
    return folder, weights(folder, TASKS)


def written(folder: Path, kind: str) -> list[Dataset]:
    return [dcmread(path) for path in sorted((folder / "dicom").glob(f"*-{kind}.dcm"))]


def sources(images: Path) -> Mapping[str, Dataset]:
    return {str(dataset.SOPInstanceUID): dataset for dataset in map(dcmread, images.glob("*.dcm"))}


def referenced(made: Dataset) -> str:
    """The one instance that an object says it is about."""
    found = {str(e.value) for e in made.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    (one,) = found
    return one


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_kinds(command: Command, model: tuple[Path, WeightsManifest], images: Path) -> None:
    folder, manifest = model
    kinds = ("--dicom", "seg", "--dicom", "sr", "--dicom", "sc", "--heat", "cam")
    code, out, err = command("predict", folder, images, "--out", "p", *kinds)
    assert code == 0, err
    assert "13 DICOM objects (seg, sr, sc)" in out
    here = sources(images)
    for kind, storage, count in (("seg", "66.4", 5), ("sr", "88.33", 3), ("sc", "7", 5)):
        found = written(Path("p"), kind)
        assert len(found) == count
        for made in found:
            source = here[referenced(made)]
            assert made.SOPClassUID == f"1.2.840.10008.5.1.4.1.1.{storage}"
            assert [str(made.get(key, "")) for key in PATIENT] == [str(source.get(key, "")) for key in PATIENT]
            kinds_of = {str(e.value) for e in made.iterall() if e.keyword == "ReferencedSOPClassUID"}
            assert kinds_of == {str(source.SOPClassUID)}
            assert made.SeriesInstanceUID != source.SeriesInstanceUID
            assert made.SOPInstanceUID not in here
            assert made.ManufacturerModelName == "all-kinds"
            assert manifest.sha256 in str(made)
    assert len({made.SOPInstanceUID for kind in ("seg", "sr", "sc") for made in written(Path("p"), kind)}) == 13
    _masks_are_those_of_the_table(Path("p"), images, here)
    _reports_say_what_the_table_says(Path("p"), here)
    _captures_are_the_overlays(Path("p"))


def _masks_are_those_of_the_table(said: Path, images: Path, here: Mapping[str, Dataset]) -> None:
    names = {str(dcmread(path).SOPInstanceUID): path.name for path in images.glob("*.dcm")}
    seen = set()
    for path in (said / "dicom").glob("*-seg.dcm"):
        made = hd.seg.segread(path)
        source = here[referenced(made)]
        assert [made.get_segment_description(n).segment_label for n in (1, 2)] == ["lesion", "lung"]
        identification = made.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
        assert identification.AlgorithmName == "all-kinds"
        assert (made.Rows, made.Columns) == (source.Rows, source.Columns)
        (frame,) = {str(e.value) for e in made.iterall() if e.keyword == "ReferencedFrameNumber"} or {"1"}
        name = names[str(source.SOPInstanceUID)]
        (row,) = [
            row for row in rows(said / "predictions.csv") if (row["file"], int(row["frame"]) + 1) == (name, int(frame))
        ]
        (found,) = made.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)
        size = ImageInput(size=32)
        inside = fit_mask(np.ones(found.shape[:2], bool), 1.0, size) > 0
        for at, task in enumerate(("lesion", "lung")):
            drawn = np.asarray(Image.open(said / row[task])) > 0
            assert 0 < drawn.mean() < 1
            assert ((fit_mask(found[..., at] > 0, 1.0, size) > 0) == drawn)[inside].all()
        seen.add((name, frame))
    assert len(seen) == 5


def _reports_say_what_the_table_says(said: Path, here: Mapping[str, Dataset]) -> None:
    table = rows(said / "predictions.csv")
    seen = 0
    for path in (said / "dicom").glob("*-sr.dcm"):
        made = hd.sr.srread(path)
        assert made.ContentTemplateSequence[0].TemplateIdentifier == "1500"
        assert (made.CompletionFlag, made.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
        groups = made.content.get_image_measurement_groups()
        assert len(groups) == int(here[referenced(made)].get("NumberOfFrames", 1))
        for group in groups:
            values = {one.name.meaning: one.value for one in group.get_measurements()}
            (row,) = [row for row in table if float(row["size_mm (mm)"]) == pytest.approx(values["size_mm"], rel=1e-6)]
            assert group.get_measurements()[-1].unit.scheme_designator == "UCUM"
            for name in ("none", "ring"):
                assert values[f"finding: probability of {name}"] == pytest.approx(
                    float(row[f"finding:{name}"]), rel=1e-6
                )
            judged = {one.name.meaning: one.value.meaning for one in group.get_qualitative_evaluations()}
            assert judged["finding"] == row["finding"].replace("\\", "/")
            yes = {name for name in ("effusion", "nodule") if judged[name] == "Present"}
            assert yes == {name for name in row["signs"].split("; ") if name}
            seen += 1
    assert seen == 5


def _captures_are_the_overlays(said: Path) -> None:
    drawn = {Image.open(path).tobytes() for path in (said / "cam").glob("*.png")}
    made = written(said, "sc")
    assert {one.pixel_array.tobytes() for one in made} == drawn
    assert all(one.BurnedInAnnotation == "NO" and "not validated" in one.ImageComments for one in made)


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="needs dcmtk")
def test_dcmtk_reads_them(command: Command, model: tuple[Path, WeightsManifest], images: Path) -> None:
    code, _, err = command("predict", model[0], images, "--out", "p", "--dicom", "seg", "--dicom", "sr")
    assert code == 0, err
    files = [str(path) for path in sorted(Path("p/dicom").iterdir())]
    done = subprocess.run(["dcmdump", "-q", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    reports = [path for path in files if path.endswith("-sr.dcm")]
    done = subprocess.run(["dsrdump", "+U8", *reports], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "VR checker does not support" not in line] == []
    assert done.stdout.count("Imaging Measurement Report") == len(reports) == 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
def test_every_attribute_that_the_standard_asks_for_is_there(command: Command, images: Path, tmp_path: Path) -> None:
    """Words in ASCII: dciodvfy counts bytes where the standard counts characters."""
    plain = [TASKS[0] | {"classes": ["none", "opacity", "ring"]}, *TASKS[1:]]
    weights(tmp_path / "plain", plain)
    kinds = ("--dicom", "seg", "--dicom", "sr", "--dicom", "sc", "--heat", "cam")
    code, _, err = command("predict", tmp_path / "plain", images, "--out", "p", *kinds)
    assert code == 0, err
    for path in sorted(Path("p/dicom").iterdir()):
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == [], path
        assert done.returncode == 0


def test_what_cannot_be_made_is_said_and_leaves_nothing(
    command: Command, model: tuple[Path, WeightsManifest], images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    shutil.copytree(images, folder)
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "z.png")
    words = ("predict", model[0], folder, "--out")
    code, _, err = command(*words, "one", "--dicom", "sr")
    assert (code, "z.png: is no DICOM file" in err) == (2, True)
    (folder / "z.png").unlink()
    dataset = dcmread(folder / "xray.dcm")
    del dataset.SeriesInstanceUID
    dataset.save_as(folder / "xray.dcm")
    code, _, err = command(*words, "two", "--dicom", "sr")
    assert (code, "xray.dcm: has no SeriesInstanceUID" in err) == (2, True)
    assert not list(Path("two").rglob("*.dcm")), "what was made of the files before it is gone"
    code, _, err = command(*words, "three", "--dicom", "sc")
    assert (code, "--heat" in err) == (2, True)
    code, _, err = command(*words, "four", "--dicom", "rtstruct")
    assert (code, "rtstruct: there is no such kind" in err) == (2, True)


def test_a_model_without_masks_has_no_segmentation(command: Command, images: Path, tmp_path: Path) -> None:
    weights(tmp_path / "classes", TASKS[:1])
    code, _, err = command("predict", tmp_path / "classes", images, "--out", "p", "--dicom", "seg")
    assert (code, "no task of masks" in err, Path("p").exists()) == (2, True, False)

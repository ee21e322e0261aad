"""DICOM files written on the fly, element by element, so that a test can work out their values by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from torch import Tensor

from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom
from fedgraft.client.data.decoding.dicom.dicom_image import DicomImage
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from helpers.work import CPU, MakeStudy, cohort, images

CT = "1.2.840.10008.5.1.4.1.1.2"
MakeDicom = Callable[..., Path]


def _describe(dataset: Dataset, pixels: np.ndarray, colour: bool, little: bool) -> None:
    size = 8 * pixels.dtype.itemsize
    planes = pixels.shape[:-1] if colour else pixels.shape
    dataset.Rows, dataset.Columns = planes[-2:]
    if len(planes) == 3:
        dataset.NumberOfFrames = planes[0]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = size
    data = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    data += b"\0" * (len(data) % 2)
    if pixels.dtype.kind == "f":
        setattr(dataset, "FloatPixelData" if size == 32 else "DoubleFloatPixelData", data)
        return
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = size, size - 1, int(pixels.dtype.kind == "i")
    dataset.add_new("PixelData", "OB" if size == 8 else "OW", data)


@pytest.fixture
def make_dicom(tmp_path: Path) -> MakeDicom:
    """Write a file of these pixels, (H, W), (frames, H, W) or with colour=True (..., 3); None removes an element.

    The encoded frames may be given; else pydicom encodes them if the transfer syntax asks for it.
    """

    def make(
        pixels: np.ndarray | None,
        name: str = "image.dcm",
        syntax: str = ExplicitVRLittleEndian,
        colour: bool = False,
        encoded: list[bytes] | None = None,
        **elements: Any,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, CT
        meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.set_original_encoding(syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.PatientID = CT, meta.MediaStorageSOPInstanceUID, "p1"
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "1.2.3"
        if pixels is not None:
            _describe(dataset, pixels, colour, syntax != ExplicitVRBigEndian)
        for key, value in elements.items():
            if value is None:
                delattr(dataset, key)
            else:
                setattr(dataset, key, value)
        if encoded is not None:
            dataset.add_new("PixelData", "OB", encapsulate(encoded))
        elif UID(syntax).is_encapsulated:
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return make


@pytest.fixture
def item() -> Callable[..., Dataset]:
    """An item of a sequence; LUTData as a list becomes numbers, as bytes words."""

    def make(**elements: Any) -> Dataset:
        dataset = Dataset()
        for key, value in elements.items():
            if key == "LUTData":
                dataset.add_new(key, "OW" if isinstance(value, bytes) else "US", value)
            else:
                setattr(dataset, key, value)
        return dataset

    return make


@pytest.fixture
def read() -> Callable[..., np.ndarray]:
    """The only image in a file."""

    def one(path: Path, frames: str = "middle") -> np.ndarray:
        image: DicomImage = read_dicom(path, None, frames)
        assert len(image.frames) == 1
        assert image.frames[0].dtype == np.float32
        return image.frames[0]

    return one


@pytest.fixture
def attack_target(make_study: MakeStudy) -> Callable[..., tuple[LocalModel, Loader]]:
    """A workbench and a site's feed of 21 training images, 6 held out."""

    def make(backbone: str = "slim_resnet", labels: Tensor | None = None, **changes: Any) -> tuple[LocalModel, Loader]:
        study = make_study(model={"backbone": backbone}, **changes)
        inputs, known = images(27)
        targets = {task.name: known if labels is None else labels for task in study.tasks}
        local_model = LocalModel(study, CPU)
        return local_model, Loader(cohort(inputs, targets, held_out=6), study.input, CPU)

    return make

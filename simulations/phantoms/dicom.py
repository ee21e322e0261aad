"""Writing images as DICOM: one template per scanner and modality, of which a file changes only what differs."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from fedgraft.simulations.phantoms.phantoms import Modality
from fedgraft.simulations.phantoms.scanners import (
    Scanner,
    Syntax,
    voi_lut,
    windows,
)

_SYNTAXES: dict[Syntax, UID] = {
    "explicit_little": ExplicitVRLittleEndian,
    "implicit_little": ImplicitVRLittleEndian,
    "explicit_big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg2000": JPEG2000Lossless,
}
_CLASSES: dict[Modality, tuple[UID, str, str]] = {
    "ct": (CTImageStorage, "CT", "CHEST"),
    "mr": (MRImageStorage, "MR", "BRAIN"),
    "xr": (ComputedRadiographyImageStorage, "CR", "CHEST"),
}


@dataclass(frozen=True)
class Shot:
    """What tells one image from another: whose it is, and which of the patient's it is, counted from 1."""

    patient: str
    age: int
    sex: str
    number: int
    origin: str
    """Text from which the UIDs follow: equal texts give equal UIDs."""

    def uid(self, what: str) -> UID:
        """The UID of this shot's `study`, `series` or `image`."""
        number = str(self.number) if what == "image" else ""
        return generate_uid(entropy_srcs=[self.origin, self.patient, what, number])


class DicomWriter:
    """Writes phantoms of one site as DICOM files of one scanner and modality."""

    def __init__(self, scanner: Scanner, modality: Modality, site: str) -> None:
        self._scanner = scanner
        self._syntax = _SYNTAXES[scanner.syntax]
        self._template = _template(scanner, modality, site, self._syntax)

    def file(self, pixels: NDArray[Any], shot: Shot) -> bytes:
        """The bytes of a DICOM file with `pixels` (rows, columns) as the scanner stores them."""
        ds = self._template
        ds.PatientID = shot.patient
        ds.StudyInstanceUID, ds.SeriesInstanceUID = shot.uid("study"), shot.uid("series")
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = shot.uid("image")
        ds.InstanceNumber = shot.number
        if "PatientAge" in ds:
            ds.PatientAge = f"{shot.age:03d}Y"
        if "PatientSex" in ds:
            ds.PatientSex = shot.sex
        self._put(pixels)
        buffer = BytesIO()
        dcmwrite(buffer, ds, enforce_file_format=True)
        return buffer.getvalue()

    def _put(self, pixels: NDArray[Any]) -> None:
        ds = self._template
        if self._syntax.is_encapsulated:
            frame = get_encoder(self._syntax).encode(
                pixels,
                rows=ds.Rows,
                columns=ds.Columns,
                number_of_frames=1,
                samples_per_pixel=1,
                bits_allocated=ds.BitsAllocated,
                bits_stored=ds.BitsStored,
                pixel_representation=ds.PixelRepresentation,
                photometric_interpretation=ds.PhotometricInterpretation,
            )
            ds.PixelData = encapsulate([frame])
            ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
            return
        data = _in_order(pixels, self._syntax).tobytes()
        ds.PixelData = data + b"\0" * (len(data) % 2)
        ds["PixelData"].VR = "OW" if ds.BitsAllocated == 16 else "OB"


def _template(scanner: Scanner, modality: Modality, site: str, syntax: UID) -> Dataset:
    storage, name, part = _CLASSES[modality]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = storage
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = storage
    ds.Modality = name
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "ct" else ["ORIGINAL", "PRIMARY"]
    ds.Manufacturer = "fedgraft phantom"
    ds.InstitutionName = site
    ds.StudyDate, ds.StudyTime = "20200101", "000000"
    ds.PatientName = ""
    ds.PatientBirthDate = ""
    ds.PatientAge, ds.PatientSex = "000Y", "O"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "", ""
    ds.SeriesNumber = 1
    ds.BodyPartExamined = part
    ds.PixelSpacing = [_decimal(scanner.spacing_mm)] * 2
    if modality == "xr":
        ds.ViewPosition = "PA"
    else:
        _place(ds, site)
    _describe_pixels(ds, scanner, modality)
    for tag in scanner.missing_tags:
        delattr(ds, tag)
    return ds


def _place(ds: Dataset, site: str) -> None:
    """Where a slice lies: required of CT and MR, the same for all."""
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[site, "frame"])
    ds.PositionReferenceIndicator = ""
    ds.ImagePositionPatient = [0.0, 0.0, 0.0]
    ds.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    ds.SliceThickness = 5.0
    if ds.Modality == "CT":
        ds.KVP, ds.AcquisitionNumber = 120, 1
    else:
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "NONE", "", "2D"
        ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = 500, 15, 1


def _describe_pixels(ds: Dataset, scanner: Scanner, modality: Modality) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = scanner.polarity
    ds.Rows = ds.Columns = scanner.matrix
    ds.BitsAllocated = 8 if scanner.bits_stored == 8 else 16
    ds.BitsStored, ds.HighBit = scanner.bits_stored, scanner.bits_stored - 1
    ds.PixelRepresentation = int(scanner.signed)
    if (rescale := scanner.rescale(modality)) is not None:
        ds.RescaleSlope, ds.RescaleIntercept = map(_decimal, rescale)
        ds.RescaleType = "HU" if modality == "ct" else "US"
    if shown := windows(scanner, modality):
        centres, widths = zip(*shown, strict=True)
        ds.WindowCenter, ds.WindowWidth = list(map(_decimal, centres)), list(map(_decimal, widths))
    if (lut := voi_lut(scanner, modality)) is not None:
        item = Dataset()
        item.add_new(0x00283002, "US", [len(lut), 0, 16])  # LUTDescriptor: entries, first pixel mapped, bits
        item.add_new(0x00283006, "OW", _in_order(lut, _SYNTAXES[scanner.syntax]).tobytes())
        ds.VOILUTSequence = Sequence([item])


def _in_order(values: NDArray[Any], syntax: UID) -> NDArray[Any]:
    """The values with their bytes in the file's order."""
    return values.astype(values.dtype.newbyteorder(">" if syntax is ExplicitVRBigEndian else "<"))


def _decimal(value: float) -> str:
    """A number as a decimal string, which has at most 16 characters."""
    return f"{value:.9g}"

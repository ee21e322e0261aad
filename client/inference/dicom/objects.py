"""DICOM objects about one source image: a segmentation, a structured report, a secondary capture.

Each says by which model it was made, refers to its source, and belongs to its patient and study. UIDs are new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from highdicom import sr
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage

from fedgraft.client.inference.answers import Points, chosen_class, positive_labels
from fedgraft.client.inference.dicom.concepts import (
    ABNORMAL,
    ABSENT,
    IMAGING,
    MANUFACTURER,
    PRESENT,
    PROBABILITY,
    Algorithm,
    concept,
    unit,
    word,
)
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task

_CAPTURED = "A model's map over the image that it saw; not validated for any use."
_UTF_8 = "ISO_IR 192"


@dataclass(frozen=True)
class ObjectPlace:
    """Where an object stands: its series, the series' number, and its own number in it."""

    series: str
    series_number: int
    number: int


@dataclass(frozen=True)
class Answer:
    """What the model says of one frame: by task as `Reader.answers` gives it, and its operating points by task."""

    said: Mapping[str, np.ndarray]
    points: Mapping[str, Points]


def _segmentation(
    source: Dataset, masks: Mapping[str, np.ndarray], algorithm: Algorithm, place: ObjectPlace
) -> Dataset:
    """A binary segmentation with a segment for each task, of masks (frames, H, W) of 0 and 1 of the source's frames."""
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=word(task),
            segmented_property_category=ABNORMAL,
            segmented_property_type=concept(task),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm.for_segments(),
            tracking_uid=hd.UID(),
            tracking_id=word(task),
        )
        for number, task in enumerate(masks, start=1)
    ]
    return hd.seg.Segmentation(
        source_images=[source],
        pixel_array=np.stack(list(masks.values()), axis=-1).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=place.series,
        series_number=place.series_number,
        sop_instance_uid=hd.UID(),
        instance_number=place.number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.software,
        device_serial_number=algorithm.version,
        content_description="not validated for any use",
        content_label="FEDGRAFT",
        series_description=word(f"{algorithm.name}: masks"),
        specific_character_set=_UTF_8,
    )


def segmentations(
    source: Dataset, masks: Mapping[str, np.ndarray], algorithm: Algorithm, places: Sequence[ObjectPlace]
) -> list[Dataset]:
    """One `segmentation`, or one for each frame where nothing says how these lie to each other, as in ultrasound.

    `places` are as many as there are frames; what is not needed of them is left.
    """
    if _lies_in_space(source):
        return [_segmentation(source, masks, algorithm, places[0])]
    made = []
    for at, place in enumerate(places):
        one = _segmentation(_alone(source), {task: own[at : at + 1] for task, own in masks.items()}, algorithm, place)
        _refer(one, source, at + 1)
        one.PatientOrientation = source.get("PatientOrientation") or ""
        made.append(one)
    return made


def _lies_in_space(source: Dataset) -> bool:
    """Whether a file says of all its frames where in the patient they lie."""
    if "SharedFunctionalGroupsSequence" in source:
        needed: tuple[str, ...] = ("FrameOfReferenceUID",)
    else:
        needed = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient")
        needed += ("PixelSpacing", "SliceThickness")
    return all(source.get(key) not in (None, "") for key in needed)


def _alone(source: Dataset) -> Dataset:
    """The header of one frame as that of an image of no place: masks of it are aligned with its pixels all the same."""
    alone = Dataset()
    alone.update(source)
    alone.file_meta = source.file_meta
    alone.add_new("SOPClassUID", "UI", SecondaryCaptureImageStorage)  # to set it would change the source's element
    # A pixel's size without a slice's thickness is written by highdicom, and then not read by it.
    for key in ("NumberOfFrames", "FrameOfReferenceUID", "PixelSpacing"):
        alone.pop(key, None)
    return alone


def _refer(made: Dataset, source: Dataset, number: int) -> None:
    """Let all references to a frame that stood alone be to what it is: this one of its file's, by its number."""

    def mend(item: Dataset, element: DataElement) -> None:
        if element.keyword == "ReferencedSOPInstanceUID" and element.value == source.SOPInstanceUID:
            item.ReferencedSOPClassUID = source.SOPClassUID
            if "NumberOfFrames" in source:
                item.ReferencedFrameNumber = number

    made.walk(mend)


def report(
    source: Dataset, answers: Sequence[Answer], tasks: Sequence[AnyTask], algorithm: Algorithm, place: ObjectPlace
) -> Dataset:
    """A measurement report (TID 1500) with a group for each frame: classes and labels, probabilities, values.

    It is complete, preliminary and verified by nobody.
    """
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(),
        name=algorithm.name,
        manufacturer_name=MANUFACTURER,
        model_name=algorithm.software,
        serial_number=algorithm.version,
    )
    observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    several = "NumberOfFrames" in source
    groups = [
        _group(source, (answer, number if several else None), tasks, algorithm)
        for number, answer in enumerate(answers, start=1)
    ]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=IMAGING,
        imaging_measurements=groups,
    )
    document = sr.ComprehensiveSR(
        evidence=[source],
        content=content,
        series_instance_uid=place.series,
        series_number=place.series_number,
        sop_instance_uid=hd.UID(),
        instance_number=place.number,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=word(f"{algorithm.name}: answers"),
        specific_character_set=_UTF_8,
    )
    document.PreliminaryFlag = "PRELIMINARY"
    _made_by(document, algorithm)
    return document


def capture(source: Dataset, drawn: np.ndarray, what: str, algorithm: Algorithm, place: ObjectPlace) -> Dataset:
    """A secondary capture of an overlay (H, W, 3) uint8; `what` says which map it is, and of which frame."""
    made = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=source,
        pixel_array=drawn,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        series_instance_uid=place.series,
        series_number=place.series_number,
        sop_instance_uid=hd.UID(),
        instance_number=place.number,
        manufacturer=MANUFACTURER,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description=word(f"{algorithm.name}: {what}"),
        specific_character_set=_UTF_8,
    )
    # Padded to a square, so that its rows and columns are no more those of the source.
    made["PatientOrientation"].value = source.get("PatientOrientation") or ""
    side = source.get("Laterality") or source.get("ImageLaterality")
    made.Laterality = side if side in ("L", "R") else ""
    made.BurnedInAnnotation = "NO"
    made.ImageComments = f"{_CAPTURED} Model {algorithm.name}, sha256 {algorithm.version}"
    made.DerivationDescription = what
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    made.SourceImageSequence = [reference]
    _made_by(made, algorithm)
    return made


def _made_by(made: Dataset, algorithm: Algorithm) -> None:
    """The equipment module, which highdicom fills for segmentations alone."""
    made.ManufacturerModelName, made.SoftwareVersions = algorithm.name, algorithm.software
    made.DeviceSerialNumber = algorithm.version


def _group(
    source: Dataset, of: tuple[Answer, int | None], tasks: Sequence[AnyTask], algorithm: Algorithm
) -> sr.MeasurementsAndQualitativeEvaluations:
    answer, frame = of
    measured: list[sr.Measurement] = []
    judged: list[sr.QualitativeEvaluation] = []
    for task in tasks:
        own, points = answer.said[task.name], answer.points[task.name]
        match task:
            case Task():
                judged.append(sr.QualitativeEvaluation(concept(task.name), concept(chosen_class(task, own, points))))
                measured += _probabilities(task.name, task.classes, own)
            case Multilabel():
                yes = positive_labels(task, own, points)
                judged += [sr.QualitativeEvaluation(concept(n), PRESENT if n in yes else ABSENT) for n in task.labels]
                measured += _probabilities(task.name, task.labels, own)
            case Regression():
                measured.append(sr.Measurement(concept(task.name), float(own), unit(task.unit)))
            case Segmentation():
                pass
    image = sr.SourceImageForMeasurementGroup(
        source.SOPClassUID, source.SOPInstanceUID, None if frame is None else [frame]
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=hd.UID(), identifier="image" if frame is None else f"frame {frame}"
        ),
        algorithm_id=algorithm.for_reports(),
        measurements=measured or None,
        qualitative_evaluations=judged or None,
        source_images=[image],
    )


def _probabilities(task: str, names: Sequence[str], own: np.ndarray) -> list[sr.Measurement]:
    return [
        sr.Measurement(concept(f"{task}: {PROBABILITY} of {name}"), float(share), unit(""))
        for name, share in zip(names, own, strict=True)
    ]

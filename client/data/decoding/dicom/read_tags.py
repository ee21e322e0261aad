"""What is read of DICOM files, of images and of segmentations."""

from __future__ import annotations

from pydicom.tag import Tag

from fedgraft.common.study.subgroups import TAGS

_FORM = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
"""What the numbers of an object are like."""

IMAGE = [
    "PatientID",
    *TAGS,
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "ImageType",
    "Modality",
    "BurnedInAnnotation",
    "SpecificCharacterSet",
    *_FORM,
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "FloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue",
    "DoubleFloatPixelPaddingRangeLimit",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "PixelAspectRatio",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
"""All that is read; names, birth dates, addresses and the like are not among it."""
IMAGE_TAGS = [Tag(name) for name in IMAGE]
"""The same as pydicom looks them up without translating each name for each file."""

SEGMENTATION = [
    "SOPClassUID",
    "SpecificCharacterSet",
    "SegmentationType",
    "MaximumFractionalValue",
    "SegmentSequence",
    "ReferencedSeriesSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *_FORM,
    "PixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]
"""All that is read of a segmentation: not whose it is, which the images say that it refers to."""
SEGMENTATION_TAGS = [Tag(name) for name in SEGMENTATION]

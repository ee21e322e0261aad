"""What files say of themselves is told in words of fixed lists, whatever stands in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from fedgraft.client.data.decoding.dicom.facts import MODALITIES, facts

FREE_TEXT = ("Modality", "Manufacturer", "PhotometricInterpretation", "BurnedInAnnotation")


def said(**elements: object) -> dict[str, str]:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return facts(dataset, 0)


def test_an_empty_file_says_nothing():
    assert set(said().values()) == {"not stated"}


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\\"), max_size=16))
def test_free_text_never_gets_through(text):
    dataset = Dataset()
    for name in FREE_TEXT:
        dataset.add_new(name, "LO", f"DOE{text}")
    found = facts(dataset, 0)
    assert not [value for value in found.values() if "DOE" in value]
    assert found["modality"] == "other"


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("SIEMENS", "Siemens"),
        ("Siemens Healthineers", "Siemens"),
        ("GE MEDICAL SYSTEMS", "GE"),
        ("GE", "GE"),
        ("Philips Medical Systems", "Philips"),
        ("TOSHIBA_MEC", "Canon"),
        ("FUJIFILM Corporation", "Fujifilm"),
        ("Imaging by Philips", "Philips"),
        ("Gemeinschaftspraxis Dr. Gerber", "other"),
        ("Agfamiller", "Agfa"),
        ("", "not stated"),
    ],
)
def test_vendors(text, vendor):
    assert said(Manufacturer=text)["vendor"] == vendor


def test_modalities_are_those_of_the_standard():
    assert {"CT", "MR", "CR", "DX", "US", "MG", "PT", "NM"} <= MODALITIES
    assert said(Modality="ct ")["modality"] == "CT"


@pytest.mark.parametrize(
    ("elements", "spacing"),
    [
        ({"PixelSpacing": [0.14300001, 0.143]}, "0.14 mm"),
        ({"ImagerPixelSpacing": [0.2, 0.2]}, "0.2 mm"),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.2]}, "0.2 mm"),
        ({"PixelSpacing": [-1, 1]}, "not stated"),
        ({"PixelSpacing": "1"}, "not stated"),
    ],
)
def test_spacing(elements, spacing):
    assert said(**elements)["spacing"] == spacing


@pytest.mark.parametrize(
    ("elements", "window"),
    [
        ({"WindowCenter": 40, "WindowWidth": 400}, "window"),
        ({"WindowCenter": 40, "WindowWidth": 0}, "not stated"),
        ({"WindowCenter": 40}, "not stated"),
        ({"WindowCenter": [40, 50], "WindowWidth": [400, 500]}, "window"),
    ],
)
def test_a_window_counts_if_the_reader_would_use_it(elements, window):
    assert said(**elements)["window"] == window


def test_a_look_up_table_counts_as_one(item):
    found = said(VOILUTSequence=[item(LUTDescriptor=[2, 0, 8], LUTData=[0, 255])])
    assert found["window"] == "look-up table"


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("045Y", "40 to 49 years"),
        ("009Y", "0 to 9 years"),
        ("011M", "0 to 9 years"),
        ("089Y", "80 to 89 years"),
        ("090Y", "90 years and over"),
        ("104Y", "90 years and over"),
        ("DOE", "other"),
        ("45", "other"),
        ("", "not stated"),
    ],
)
def test_an_age_is_told_as_its_decade(text, age):
    assert said(PatientAge=text)["age"] == age

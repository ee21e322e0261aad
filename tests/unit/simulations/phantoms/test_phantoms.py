"""Phantoms: the finding is where its mask says, as large as it says, and nothing depends on anything else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedgraft.common.base.seeds import derive
from fedgraft.simulations.phantoms.patients import draw_patient
from fedgraft.simulations.phantoms.phantoms import (
    FINDINGS,
    PhantomFindings,
    draw_phantoms,
    render,
)
from fedgraft.simulations.phantoms.scenario import PhantomSite

LOOKS = PhantomFindings(size=(0.2, 0.36), contrast=0.3)
MODALITIES = ("ct", "mr", "xr")
FOUND = FINDINGS[1:]


def draw(modality, kind, number, images=1):
    return draw_phantoms(modality, kind, LOOKS, derive(5, modality, kind, number), images)


def without(phantom):
    return dataclasses.replace(phantom, lesion=dataclasses.replace(phantom.lesion, kind="none"))


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("kind", FOUND)
def test_the_mask_covers_the_finding_and_nothing_else_changes(modality, kind):
    phantoms = [draw(modality, kind, number)[0] for number in range(12)]
    images, masks = render(phantoms, 64)
    healthy, empty = render([without(phantom) for phantom in phantoms], 64)
    assert not empty.any()
    change = images - healthy
    for phantom, difference, mask in zip(phantoms, change, masks, strict=True):
        strength = phantom.lesion.strength
        if kind == "ring":  # bright around, dark in the middle
            assert difference[mask].max() > 0.5 * strength
            assert difference[mask].min() < -0.3 * strength
        else:
            assert np.median(difference[mask]) > 0.85 * strength
            assert difference[mask].min() > 0.49 * strength
        assert np.abs(difference[~mask]).max() < 0.51 * strength
        grown = mask.copy()
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            grown |= np.roll(mask, step, axis)
        grown |= np.roll(grown, 1, 0) | np.roll(grown, -1, 0)
        assert np.abs(difference[~grown]).max() < 0.2 * strength


@pytest.mark.parametrize("kind", FOUND)
def test_the_diameter_is_that_of_the_disc_of_the_masks_area(kind):
    pixels = 128
    phantoms = [draw("xr", kind, number)[0] for number in range(20)]
    _, masks = render(phantoms, pixels)
    measured = 2 * np.sqrt(masks.sum((1, 2)) / np.pi)
    told = np.array([phantom.lesion.diameter * phantom.pose[3] for phantom in phantoms]) * pixels / 2
    assert np.abs(measured - told).max() < 1
    assert LOOKS.size[0] * 64 <= told.min() / 0.97
    assert told.max() / 1.03 <= LOOKS.size[1] * 64


def test_without_a_finding_there_is_no_mask_and_no_diameter():
    phantom = draw("ct", "none", 0)[0]
    _, mask = render([phantom], 64)
    assert not mask.any()
    assert phantom.lesion.diameter == 0


def test_outlines_differ_as_their_names_say():
    """Area over that of the circle around it: smooth is compact, spiculated is not."""
    compact = {}
    for kind in ("smooth", "spiculated"):
        _, masks = render([draw("xr", kind, number)[0] for number in range(20)], 128)
        shares = []
        for mask in masks:
            y, x = np.nonzero(mask)
            reach = np.hypot(x - x.mean(), y - y.mean()).max()
            shares.append(mask.sum() / (np.pi * reach**2))
        compact[kind] = np.array(shares)
    assert compact["smooth"].min() > compact["spiculated"].max()


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_same_arguments_give_the_same_image_whatever_is_rendered_with_it(modality):
    many = [draw(modality, kind, number)[0] for number in range(3) for kind in FINDINGS]
    together, masks = render(many, 64)
    for index in (0, 5, 11):
        alone, mask = render([many[index]], 64)
        assert np.array_equal(alone[0], together[index])
        assert np.array_equal(mask[0], masks[index])
    assert together.dtype == np.float32
    assert len({image.tobytes() for image in together}) == len(many)


def test_images_of_a_patient_share_anatomy_and_finding_but_not_the_pose():
    first, second, third = draw("xr", "smooth", 1, images=3)
    assert first.lesion is second.lesion
    assert first.anatomy is third.anatomy
    assert len({first.pose, second.pose, third.pose}) == 3
    assert draw("xr", "smooth", 1, images=1)[0].pose == first.pose


def test_hounsfield_units_are_those_of_air_lung_water_and_bone():
    image, _ = render([draw("ct", "none", 3)[0]], 64)
    hounsfield = image[0] * 2000 - 1000
    assert hounsfield[0, 0] == pytest.approx(-1000, abs=20)
    assert -900 < hounsfield[32, 20] < -500
    assert hounsfield[20, 32] == pytest.approx(40, abs=120)
    assert hounsfield[44:52, 28:36].max() > 300


def test_a_patient_depends_on_no_other_patient_and_on_no_other_site():
    few = PhantomSite(patients=3, images_per_patient=(1, 3))
    many = PhantomSite(patients=300, images_per_patient=(1, 3))
    for index in range(3):
        one, other = draw_patient(few, 77, index), draw_patient(many, 77, index)
        assert one.row == other.row
        assert np.array_equal(render(one.phantoms, 64)[0], render(other.phantoms, 64)[0])
    assert draw_patient(few, 78, 0).row != draw_patient(few, 77, 0).row


@pytest.mark.parametrize("patients", [24, 400])
def test_prevalences_are_met_even_at_a_tiny_site(patients):
    wanted = {"none": 0.5, "smooth": 0.25, "spiculated": 0.15, "ring": 0.1}
    for modality in ("xr", ("ct", "mr")):
        spec = PhantomSite(patients=patients, prevalence=wanted, modality=modality)
        for seed in range(5):
            drawn = [draw_patient(spec, seed, index) for index in range(patients)]
            for finding, share in wanted.items():
                count = sum(patient.finding == finding for patient in drawn)
                assert abs(count - share * patients) <= (2 if isinstance(modality, str) else 4), finding


def test_a_finding_of_prevalence_zero_never_occurs():
    spec = PhantomSite(patients=200, prevalence={"none": 0.3, "ring": 0.7})
    assert {draw_patient(spec, 4, index).finding for index in range(200)} == {"none", "ring"}


def test_labels_are_missing_and_wrong_as_often_as_asked():
    spec = PhantomSite(patients=1000, label_noise=0.2, missing_labels=0.3)
    drawn = [draw_patient(spec, 4, index) for index in range(1000)]
    told = [patient for patient in drawn if patient.reported]
    assert 0.25 < 1 - len(told) / 1000 < 0.35
    assert 0.15 < np.mean([patient.reported != patient.finding for patient in told]) < 0.25
    assert all(patient.row[1:3] == ("", "") for patient in drawn if not patient.reported)
    silent = spec.model_copy(update={"unlabelled": True})
    assert {draw_patient(silent, 4, index).reported for index in range(50)} == {""}


def test_the_laboratory_columns_tell_something_of_the_finding():
    spec = PhantomSite(patients=400)
    drawn = [draw_patient(spec, 4, index) for index in range(400)]

    def mean(finding, column):
        return np.mean([np.log1p(patient.laboratory[column]) for patient in drawn if patient.finding == finding])

    assert mean("ring", 0) > mean("none", 0) + 0.5
    assert mean("spiculated", 1) > mean("none", 1) + 0.5
    assert mean("spiculated", 2) > mean("none", 2) + 0.3

"""What phantom scanners see is what the product's own DICOM reader gives a model, however the files are written."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom
from fedgraft.common.base.seeds import derive
from fedgraft.simulations.phantoms.hospitals import grey_images, make_hospitals
from fedgraft.simulations.phantoms.patients import draw_patient
from fedgraft.simulations.phantoms.scenario import Scenario, load_scenario

STEP = {"harbour": 1 / 3400, "hilltop": 2 * (0.5 / 4095) ** 0.5, "valley": 1 / 1023}
"""Twice the largest rounding error of a site's pixels. Hilltop stores the square of the grey value in 12 bits, which
its LUT undoes: whatever is below half a step is 0, and half a step is the root of it."""


def few(scenario: Scenario) -> Scenario:
    """The same sites with fewer patients, who are the first ones of the whole."""
    sites = [
        site.model_copy(update={"phantom": site.phantom.model_copy(update={"patients": 6})})
        for site in scenario.sites
        if site.phantom
    ]
    return scenario.model_copy(update={"sites": tuple(sites)})


@pytest.mark.parametrize("name", ["xray5", "shift", "source_ctmr"])
def test_the_reader_gives_back_the_grey_values_of_every_site(name, tmp_path):
    scenario = few(load_scenario(name))
    cohorts = make_hospitals(scenario, tmp_path / "out")
    for site in scenario.sites:
        assert site.phantom is not None
        seed = derive(scenario.seed, "site", site.name)
        patients = [draw_patient(site.phantom, seed, index) for index in range(6)]
        for modality in site.phantom.modality:
            for shots, images, _ in grey_images(site.phantom, modality, patients):
                for (patient, number, _), grey in zip(shots, images, strict=True):
                    read = read_dicom(cohorts[site.name].root / f"{patient.id}_{number}.dcm", None, "middle")
                    assert read.keys["patient"] == patient.id
                    frame = read.frames[0]
                    if site.phantom.scanner.window == "none":  # the reader can but stretch what is there
                        assert np.corrcoef(frame.ravel(), grey.ravel())[0, 1] > 0.999
                    else:
                        assert np.abs(frame - grey).max() <= STEP.get(site.name, 1 / 2000) / 2 + 1e-5, site.name

"""What docs/deploy.md says of a test consortium: with the simulated split keys its splits are the simulated ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedgraft.client.data.cohorts.cohort import load_cohort
from fedgraft.client.enrolment.cohort_request import cohort_request
from fedgraft.client.enrolment.config import read_site
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Hospitals, prepare, simulated_cohort

KEY = "patients.key"


def splits_of(study: Study, run: Path, state: Path) -> dict[str, list[int]]:
    """The splits at a deployed site that has the simulated site's data, and its own state folder."""
    config = read_site(run / "sites" / "south").model_copy(update={"state": state, "many_studies": True})
    place = place_of(config, study.digest)
    cohort = load_cohort(config.name, config.cohort, cohort_request(config, study), place)
    return {name: indices.tolist() for name, indices in cohort.splits.items()}


@pytest.mark.parametrize("copied", [True, False])
def test_with_the_simulated_key_splits_are_those_of_the_simulation_and_without_it_others(
    hospitals: Hospitals, make_study, tmp_path: Path, copied: bool
):
    study, run = make_study(), tmp_path / "run"
    prepare(study, hospitals, run)
    state = tmp_path / "site" / "state"
    state.mkdir(parents=True, mode=0o700)
    if copied:
        shutil.copy(run / "sites" / "south" / KEY, state / KEY)
    simulated = {name: split.tolist() for name, split in simulated_cohort(study, run, "south").splits.items()}
    assert (splits_of(study, run, state) == simulated) is copied

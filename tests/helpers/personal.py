"""Sites that answer with heads of their own: what they keep, what the run reports, and what it should report."""

from __future__ import annotations

import json

import numpy as np

from fedgraft.client.data.cohorts.cohort import CohortRequest, load_cohort
from fedgraft.client.enrolment.config import read_config
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.client.inference.model import LoadedModel
from fedgraft.common.base.files import load_tensors
from fedgraft.server.runs.run_folder import RunFolder
from helpers.tables import Floats, Trial, head


def remembered(t: Trial, site: str, owner: str, field: str) -> Floats:
    """The head among what a method remembers at a site."""
    (folder,) = (t.run / "sites" / site / "local_state").iterdir()
    found = load_tensors(sorted(folder.iterdir())[-1])
    begin = f"train:{owner}:{field}:"
    return head({key.removeprefix(begin): array for key, array in found.items() if key.startswith(begin)})


def answering(t: Trial, site: str) -> Floats:
    """The head with which `predict --site` answers."""
    reader = LoadedModel(str(t.run), t.run / "sites" / site, everything=True)
    return head(reader.local_model.read(["heads.cls.weight", "heads.cls.bias"]))


def reported(t: Trial) -> dict[str, float]:
    """By site the accuracy on its test cases."""
    sites = json.loads((t.run / "result.json").read_text())["metrics"]["cls"]["sites"]
    return {site: round(values["accuracy"], 9) for site, values in sites.items()}


def accuracies(t: Trial, heads: dict[str, Floats]) -> dict[str, float]:
    """The same of these heads."""
    asked, state = RunFolder(t.run).study(), load_tensors(t.run / "model.safetensors")
    mean, std = (next(state[key] for key in state if key.endswith(f"standardise.{what}")) for what in ("mean", "std"))
    found = {}
    for site, own in heads.items():
        config = read_config(t.run / "sites" / site / "site.json")
        wanted = CohortRequest(asked.tasks, asked.input, asked.split, asked.seed)
        cohort = load_cohort(site, config.cohort, wanted, place_of(config, asked.digest))
        at = cohort.splits["test"].numpy()
        x = (cohort.inputs.numpy()[at].astype(float) - mean) / std
        said = (np.hstack([x, np.ones((len(x), 1))]) @ own).argmax(axis=1)
        found[site] = round(float((said == cohort.targets["cls"].numpy()[at]).mean()), 9)
    return found

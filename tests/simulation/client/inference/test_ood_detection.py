"""Images unlike those of the training sites are flagged, the sites' own are not: a study, then `fedgraft predict`."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Command
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.inference.model import LoadedModel
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.training.model.loader import Loader
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import OPEN, Hospitals, simulated_cohort
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import PhantomSite, Scenario, SiteEntry
from helpers.simulated import simulate
from helpers.work import MakeStudy

SITES = {"north": {"noise": 0.1}, "harbour": {"noise": 0.1, "gamma": 1.2}, "valley": {"noise": 0.12, "gain": 0.9}}
QUANTILE = 0.95


def phantoms(folder: Path, seed: int, **sites: dict[str, object]) -> dict[str, CohortSpec]:
    made = tuple(SiteEntry(name=name, phantom=PhantomSite.model_validate(keys)) for name, keys in sites.items())
    return make_hospitals(Scenario(name="made", seed=seed, sites=made), folder)


def study(method: dict[str, object], secure_aggregation: bool = False) -> Study:
    asked = {
        "name": "flagged",
        "tasks": [{"name": "cls", "classes": ["none", "smooth", "spiculated", "ring"]}],
        "input": {"kind": "image", "size": 64},
        "split": {"train": 0.5, "val": 0.4, "test": 0.1},
        "model": {"backbone": "slim_resnet", "weights": "slim-ctmr-synthetic"},
        "method": method,
        "evaluate": {"every": 0},
        "secure_aggregation": secure_aggregation,
    }
    plan = [stage.model_dump(mode="json") for stage in parse_study(asked, "test").plan]
    for stage in plan:
        if stage["aggregate"]["kind"] == "threshold":
            stage["aggregate"]["quantile"] = QUANTILE
    del asked["method"]
    return parse_study(asked | {"plan": plan}, "test")


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    """Three X-ray hospitals."""
    keys = {name: {"modality": "xr", "patients": 70, "scanner": scanner} for name, scanner in SITES.items()}
    return Hospitals(phantoms(tmp_path_factory.mktemp("xrays") / "data", 3, **keys))


@pytest.fixture(scope="module")
def run(xrays: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their classes solved on a backbone from CT and MR, with flags."""
    return simulate(
        study({"name": "ridge_probe", "ood_detection": True}), xrays, tmp_path_factory.mktemp("ood_detection") / "run"
    )


def flagged(command: Command, model: object, images: Path, out: str, *more: object) -> float:
    code, _, err = command("predict", model, images, "--out", out, *more)
    assert code == 0, err
    with Path(out, "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = read_json(Path(str(model)) / "moments.json")
    assert all((float(row["distance"]) > known["threshold"]) == (row["ood"] == "yes") for row in rows)
    return sum(row["ood"] == "yes" for row in rows) / len(rows)


@pytest.mark.slow
def test_other_modalities_and_noise_are_flagged_and_own_images_are_not(
    run: Path, command: Command, tmp_path: Path
) -> None:
    keys: dict[str, dict[str, object]] = {
        "own": {"modality": "xr", "patients": 150, "scanner": SITES["north"]},
        "ct": {"modality": "ct", "patients": 60, "scanner": SITES["north"]},
        "mr": {"modality": "mr", "patients": 60, "scanner": SITES["north"]},
        "negative": {"modality": "xr", "patients": 60, "scanner": {"gain": -1, "offset": 1, "noise": 0.1}},
    }
    keys = {name: own | {"images_per_patient": (1, 1)} for name, own in keys.items()}
    made = phantoms(tmp_path / "new", 11, **keys)
    rates = {name: flagged(command, run, spec.root, name) for name, spec in made.items()}
    noise = tmp_path / "noise"
    noise.mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64), np.uint8)
        Image.fromarray(pixels).save(noise / f"{number}.png")
    rates["noise"] = flagged(command, run, noise, "noise_out")
    assert rates["own"] < 0.12  # 1 - QUANTILE asked for
    assert rates["ct"] > 0.5
    assert rates["mr"] > 0.6
    assert rates["negative"] > 0.9
    assert rates["noise"] == 1.0


def test_the_moments_are_those_of_all_sites_cases_together(run: Path, xrays: Hospitals) -> None:
    """A naive twin: the features of all sites' training images in one array."""
    reader, asked = LoadedModel(str(run)), study({"name": "ridge_probe", "ood_detection": True})
    train, far = [], []
    for site in xrays.cohorts:
        cohort = simulated_cohort(asked, run, site)
        loader = Loader(cohort, asked.input, reader.local_model.device)
        for split, into in (("train", train), ("val", far)):
            (batch,) = loader.batches([loader.labelled(split)])
            into.append(reader.local_model.model.features(batch.inputs).detach().double().numpy())
    features = np.vstack(train)
    known = reader.ood_model
    assert known is not None
    np.testing.assert_allclose(known.mean, features.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(known.covariance, np.cov(features.T, bias=True), rtol=1e-3, atol=1e-5)
    distances = np.sort(known.distances(np.vstack(far)))
    rank = int(np.ceil((len(distances) + 1) * QUANTILE))
    assert known.cases == len(distances)
    assert distances[rank - 1] * 0.999 <= known.threshold <= distances[rank - 1] * 1.02


def test_masked_sites_give_the_same_flags(run: Path, xrays: Hospitals, tmp_path: Path) -> None:
    secure_aggregation = simulate(
        study({"name": "ridge_probe", "ood_detection": True}, secure_aggregation=True),
        xrays,
        tmp_path / "secure_aggregation",
    )
    mine, theirs = read_json(run / "moments.json"), read_json(secure_aggregation / "moments.json")
    assert (mine["threshold"], mine["cases"]) == (theirs["threshold"], theirs["cases"])
    gram, other = (load_tensors(folder / "moments.safetensors")["cls/gram"] for folder in (run, secure_aggregation))
    np.testing.assert_allclose(gram, other, atol=1e-4)


def test_a_site_that_lets_nothing_plain_out_is_in_no_moment(xrays: Hospitals, tmp_path: Path) -> None:
    strict = SitePolicy(**(OPEN.model_dump() | {"allow_non_dp": False}))
    noised = {"name": "ridge_probe", "ood_detection": True, "sums": {"epsilon": 8.0}}
    some = replace(xrays, policies={"north": strict})
    done = simulate(study(noised), some, tmp_path / "run")
    refusals = read_json(done / "result.json")["refusals"]
    assert {"site": "north", "code": "policy"}.items() <= refusals[0].items()
    assert read_json(done / "moments.json")["cases"] < 2 * 60


@pytest.mark.slow
def test_without_moments_it_is_said_once(
    run: Path, xrays: Hospitals, make_study: MakeStudy, command: Command, tmp_path: Path
) -> None:
    images = xrays.cohorts["north"].root
    code, out, _ = command("predict", "slim-ctmr-synthetic", images, "--out", "p")
    assert code == 0
    assert out.count("No image is flagged") == 1
    assert "ood" not in Path("p/predictions.csv").read_text().splitlines()[0]
    code, out, _ = command("predict", run, images, "--out", "q", "--adapt")
    assert "--adapt makes it another model" in out
    adapted = simulate(
        study({"name": "graft", "rounds": 1, "local": {"steps": 1}, "ood_detection": True}), xrays, tmp_path / "g"
    )
    code, out, _ = command("predict", adapted, images, "--out", "r", "--site", adapted / "sites" / "north")
    assert code == 0
    assert "the site's own entries make other features" in out
    assert flagged(command, adapted, images, "s") < 0.2

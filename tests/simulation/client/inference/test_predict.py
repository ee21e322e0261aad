"""A finished model on a folder of images: the table is what the run says, and the heat lies where the lesion is."""

from __future__ import annotations

import csv
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Command
from fedgraft.client.inference.heat import HEATS, layer_cam, occlusion
from fedgraft.client.inference.model import LoadedModel
from fedgraft.common.base.files import read_json
from fedgraft.common.models.model import build_model
from fedgraft.simulations.engines.run import Hospitals
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import PhantomSite, Scenario, SiteEntry
from helpers.simulated import simulate
from helpers.work import MakeStudy

SOURCE = "slim-ctmr-synthetic"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital in the source model's own style."""
    site = PhantomSite(modality=("ct", "mr"), patients=160, images_per_patient=(1, 1), scanner={"noise": 0.1})  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("phantoms") / "one"
    make_hospitals(Scenario(name="one", seed=77, sites=(SiteEntry(name="here", phantom=site),)), folder)
    return folder / "here"


@pytest.fixture(scope="module")
def truth(phantoms: Path) -> list[dict[str, str]]:
    with (phantoms / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_table_holds_every_file(command: Command, phantoms: Path, truth: list[dict[str, str]]) -> None:
    (phantoms / "dicom" / "broken.dcm").write_bytes(b"no image")
    code, out, err = command("predict", SOURCE, phantoms / "dicom", "--out", "p", "--heat", "cam")
    (phantoms / "dicom" / "broken.dcm").unlink()
    assert code == 0, err
    assert "1 files could not be used" in out
    rows = {row["file"]: row for row in table(Path("p/predictions.csv"))}
    assert len(rows) == 161
    assert rows.pop("broken.dcm")["problem"]
    right = 0
    for one in truth:
        row = rows[one["file"].removeprefix("dicom/")]
        shares = [float(row[f"cls:{name}"]) for name in ("none", "smooth", "spiculated", "ring")]
        assert sum(shares) == pytest.approx(1, abs=2e-4)
        assert row["cls"] == ("none", "smooth", "spiculated", "ring")[int(np.argmax(shares))]
        assert Image.open(Path("p") / row["cam"]).size == (256, 256)
        right += row["cls"] == one["finding"]
    assert right / 160 > 0.7
    assert stat.S_IMODE(Path("p").stat().st_mode) == 0o700
    assert stat.S_IMODE(Path("p/predictions.csv").stat().st_mode) == 0o600


def pointing(heats: torch.Tensor, masks: np.ndarray) -> float:
    """The share of maps whose hottest point lies in the lesion."""
    return float(np.mean([mask.flat[int(heat.argmax())] for heat, mask in zip(heats, masks, strict=True)]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least", "every"), [("cam", 0.8, 1), ("occlusion", 0.7, 3)])
def test_the_heat_falls_into_the_lesion(
    name: str, least: float, every: int, phantoms: Path, truth: list[dict[str, str]]
) -> None:
    """Of every third lesion where a map takes 225 passes, by each of two networks."""
    from fedgraft.client.inference.cases import Reading, read_cases

    reader = LoadedModel(SOURCE)
    by_file = {one["file"].removeprefix("dicom/"): one for one in truth}
    classes = reader.tasks[0].classes
    some = [
        one
        for one in read_cases(phantoms / "dicom", reader.input, Reading()).all
        if by_file[one.file]["finding"] != "none"
    ]
    labels = torch.tensor([classes.index(by_file[one.file]["finding"]) for one in some])
    masks = np.stack([np.asarray(Image.open(phantoms / by_file[one.file]["mask"])) > 0 for one in some])
    (batch,) = reader.loader(some).batches([torch.arange(len(some))])
    found = torch.from_numpy(reader.shares(some)["cls"]).argmax(1) == labels
    assert found.sum() > 60
    inputs, labels, masks = batch.inputs[found][::every], labels[found][::every], masks[found.numpy()][::every]
    heats = HEATS[name](reader.local_model.model, inputs, "cls", labels)
    assert heats.shape == inputs[:, 0].shape
    assert heats.min() >= 0
    assert heats.max() <= 1
    hit = pointing(heats, masks)
    random = build_model("slim_resnet", {"cls": 4}, channels=1, seed=0).eval()
    chance = pointing(HEATS[name](random, inputs, "cls", labels), masks)
    print(f"pointing game, {name}: {hit:.2f} over {len(masks)} lesions; random network {chance:.2f}")
    print(f"share of the image that is lesion: {masks.mean():.3f}")
    assert hit >= least
    assert chance < 0.3


def test_heat_is_of_the_class_that_is_asked_for(phantoms: Path) -> None:
    reader = LoadedModel(SOURCE)
    from fedgraft.client.inference.cases import Reading, read_cases

    some = read_cases(phantoms / "dicom", reader.input, Reading()).usable[:8]
    (batch,) = reader.loader(some).batches([torch.arange(8)])
    one, other = (layer_cam(reader.local_model.model, batch.inputs, "cls", torch.full((8,), label)) for label in (0, 3))
    assert (one - other).abs().amax((1, 2)).min() > 0.05


@pytest.mark.slow
def test_backbones_of_other_kinds(phantoms: Path) -> None:
    inputs = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in ("resnet18", "efficientnet_b0", "densenet121"):
        heats = layer_cam(build_model(name, {"cls": 3}, channels=1, seed=0).eval(), inputs, "cls", torch.tensor([0, 1]))
        assert heats.shape == (2, 64, 64)
        assert heats.isfinite().all()
    model = build_model("resnet18", {"cls": 3}, channels=1, seed=0).eval()
    assert occlusion(model, inputs, "cls", torch.tensor([0, 1])).shape == (2, 64, 64)


def test_a_site_s_own_entries_and_what_a_run_says(
    command: Command, make_study: MakeStudy, hospitals: Hospitals, tmp_path: Path
) -> None:
    """With SiloBN, each site has its own norm statistics: only with them the table is what the run measured."""
    study = make_study(evaluate={"every": 0})
    run = simulate(study, hospitals, tmp_path / "run")
    result = read_json(run / "result.json")
    site = run / "sites" / "south"
    tested = {line.split(",")[0] for line in (site / "splits.csv").read_text().splitlines() if line.endswith(",test")}
    code, _, err = command("predict", run, hospitals.cohorts["south"].root, "--out", "own", "--site", site)
    assert code == 0, err
    from fedgraft.client.data.cohorts.cohort import Place
    from fedgraft.client.enrolment.pseudonyms import patient_key

    place = Place(site, site, patient_key(site))
    whose = {row["path"]: row["patient"] for row in table(hospitals.cohorts["south"].root / "images.csv")}
    rows = [row for row in table(Path("own/predictions.csv")) if place.patient(whose.get(row["file"], "")) in tested]
    right = np.mean([row["cls"] == row["file"].split("/")[0] for row in rows])
    assert len(rows) == result["metrics"]["cls"]["sites"]["south"]["n"]
    assert right == pytest.approx(result["metrics"]["cls"]["sites"]["south"]["accuracy"])
    code, _, _ = command("predict", run, hospitals.cohorts["south"].root, "--out", "merged")
    assert code == 0
    assert Path("own/predictions.csv").read_bytes() != Path("merged/predictions.csv").read_bytes()
    code, _, _ = command("predict", run, hospitals.cohorts["south"].root, "--out", "adapted", "--adapt")
    assert code == 0
    assert Path("adapted/predictions.csv").read_bytes() != Path("merged/predictions.csv").read_bytes()


def test_what_cannot_be_answered_is_said(command: Command, phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for words, fault in (
        (("nowhere", phantoms), "No weights are called 'nowhere'"),
        ((SOURCE, tmp_path / "gone"), "is no folder"),
        ((SOURCE, tmp_path / "empty"), "nothing in it can be used"),
        ((SOURCE, phantoms, "--heat", "warm"), "No heat map is called 'warm'"),
        ((SOURCE, phantoms, "--task", "size"), "no task 'size'"),
        ((SOURCE, phantoms, "--class", "blob"), "no class 'blob'"),
        ((SOURCE, phantoms, "--site", tmp_path), "has no study.yaml"),
    ):
        code, _, err = command("predict", *words, "--out", "none")
        assert code == 2
        assert fault in " ".join(err.split())
    assert command("predict", SOURCE, phantoms, "--out", tmp_path / "full")[0] == 2

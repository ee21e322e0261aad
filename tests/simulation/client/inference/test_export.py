"""A finished model in other programs' hands: onnxruntime, TorchScript and MONAI say of files what `predict` says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

import fedgraft as fg
from conftest import Command
from fedgraft.client.inference import export as exporting
from fedgraft.common.base.errors import InputError
from fedgraft.simulations.engines.run import Hospitals
from fedgraft.simulations.phantoms.hospitals import hospitals_of, make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario, load_scenario
from helpers.simulated import simulate
from helpers.work import MakeStudy

QUICK = {"name": "fedbn", "rounds": 1, "local": {"steps": 2, "batch_size": 8, "lr": 0.001}}


@pytest.fixture(scope="module")
def images_run(make_study: MakeStudy, hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = make_study(method=QUICK, evaluate={"every": 0, "floor": 1})
    return simulate(study, hospitals, tmp_path_factory.mktemp("images") / "run")


@pytest.fixture(scope="module")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = fg.Study.read("breast_cancer", "evaluate.operating_point={sensitivity: 0.9}", "evaluate.every=0")
    return simulate(study, hospitals_of(load_scenario("breast_cancer")), tmp_path_factory.mktemp("table") / "run")


@pytest.fixture(scope="module")
def all_kinds_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes, a value and a mask at once, in colour and with fixed normalisation."""
    phantom = {"modality": ["xr"], "patients": 24, "images_per_patient": [1, 1]}
    scenario = Scenario.parse({"name": "two", "sites": [{"name": name, "phantom": phantom} for name in ("a", "b")]})
    cohorts = make_hospitals(scenario, tmp_path_factory.mktemp("two") / "hospitals")
    values = fg.Study.read("multi_task").model_dump(mode="json", exclude={"plan"})
    values |= {"input": {"kind": "image", "size": 64, "channels": 3, "normalise": "fixed"}, "method": QUICK}
    values["model"] = {"backbone": "slim_resnet", "weights": None}
    return simulate(fg.Study.parse(values), Hospitals(cohorts), tmp_path_factory.mktemp("all") / "run")


def exported(command: Command, run: Path, kind: str, out: str = "out") -> dict[str, Any]:
    code, _, err = command("export", run, "--to", kind, "--out", out)
    assert code == 0, err
    return json.loads(Path(out, "model.json").read_text())


def near(found: Any, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-4)


@pytest.mark.slow
def test_onnx_answers_as_predict_does(images_run: Path, hospitals: Hospitals, command: Command) -> None:
    facts = exported(command, images_run, "onnx")
    paths = sorted(hospitals.cohorts["east"].root.rglob("*.png"))[:7]
    said = fg.load_run(images_run).model().predict(paths)
    session = onnxruntime.InferenceSession("out/model.onnx")
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])[:, None].astype(np.float32) / 255
    (found,) = session.run(["cls"], {"image": pixels})
    near(found, said.answers["cls"])
    assert facts["outputs"] == [
        {"name": "cls", "is": "probabilities", "adds_up_to": 1, "classes": list(said.classes["cls"])}
    ]
    assert json.loads(session.get_modelmeta().custom_metadata_map["fedgraft"]) == facts
    onnx.checker.check_model("out/model.onnx")


def test_a_table_s_model_keeps_its_operating_point_and_takes_gaps(table_run: Path, command: Command) -> None:
    facts = exported(command, table_run, "onnx")
    model = fg.load_run(table_run).model()
    rows = np.random.default_rng(0).normal(15, 5, (6, facts["input"]["shape"][1])).astype(np.float32)
    rows[2, 3] = np.nan
    (found,) = onnxruntime.InferenceSession("out/model.onnx").run(None, {"rows": rows})
    near(found, model.predict(rows).answers["diagnosis"])
    (point,) = facts["operating_points"]["diagnosis"]
    assert point["probability"] == pytest.approx(1 / (1 + np.exp(-point["log_odds"])))
    assert facts["input"]["columns"]["numeric"]
    code, _, err = command("export", table_run, "--to", "monai-bundle", "--out", "bundle")
    assert (code, Path("bundle").exists()) == (2, False)
    assert "is for images" in err


def test_torchscript_takes_images_of_any_size(all_kinds_run: Path, command: Command, tmp_path: Path) -> None:
    """Higher and wider, grey and colour, larger and smaller than the model's."""
    exported(command, all_kinds_run, "torchscript")
    whole = torch.jit.load("out/model.pt")
    model = fg.load_run(all_kinds_run).model()
    draw = np.random.default_rng(1)
    for number, shape in enumerate([(64, 64), (100, 70, 3), (30, 200), (50, 20, 3)]):
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        x = torch.from_numpy(pixels).float().div(255)
        found = whole(x[None, None] if x.ndim == 2 else x.permute(2, 0, 1)[None])
        for task, own in model.predict(path).answers.items():
            got = found[task].numpy()
            if own.ndim == 3:
                assert ((got > 0.5) == (own > 0)).mean() > 0.999
            else:
                np.testing.assert_allclose(got, own, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_onnx_has_every_kind_of_task(all_kinds_run: Path, command: Command) -> None:
    facts = exported(command, all_kinds_run, "onnx")
    model = fg.load_run(all_kinds_run).model()
    pixels = np.random.default_rng(2).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession("out/model.onnx")
    found = session.run(None, {"image": pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255})
    for one, got in zip(facts["outputs"], found, strict=True):
        own = model.predict(pixels).answers[one["name"]]
        if "mask" in one:
            assert ((got > 0.5) == (own > 0)).mean() > 0.999
        else:
            np.testing.assert_allclose(got, own, rtol=1e-3, atol=1e-3)
    assert {"value", "probability of each pixel"} < {one["is"] for one in facts["outputs"]}


def test_monai_opens_the_bundle_and_says_the_same(
    images_run: Path, hospitals: Hospitals, command: Command, tmp_path: Path
) -> None:
    exported(command, images_run, "monai-bundle")
    folder = tmp_path / "some"
    folder.mkdir()
    source = sorted(hospitals.cohorts["north"].root.rglob("*.png"))[0]
    Image.open(source).crop((0, 0, 20, 32)).save(folder / "narrow.png")
    Image.open(source).save(folder / "square.png")
    parser = ConfigParser()
    parser.read_config("out/configs/inference.json")
    parser.read_meta("out/configs/metadata.json")
    parser["bundle_root"], parser["dataset_dir"] = "out", str(folder)
    answers = parser.get_parsed_content("answers")
    said = fg.load_run(images_run).model().predict([folder / "narrow.png", folder / "square.png"])
    near(torch.cat([one["cls"] for one in answers]), said.answers["cls"])
    channels = parser["_meta_#network_data_format#outputs#cls#channel_def"]
    assert channels == {str(at): name for at, name in enumerate(said.classes["cls"])}


def test_safetensors_are_weights_for_the_next_study(images_run: Path, command: Command) -> None:
    exported(command, images_run, "safetensors")
    images = np.zeros((2, 32, 32))
    near(
        fg.TrainedModel("out").predict(images).answers["cls"],
        fg.load_run(images_run).model().predict(images).answers["cls"],
    )


@pytest.mark.slow
def test_a_site_s_own_model_is_another(images_run: Path, command: Command) -> None:
    code, _, err = command(
        "export", images_run, "--to", "torchscript", "--out", "own", "--site", images_run / "sites/east"
    )
    assert code == 0, err
    exported(command, images_run, "torchscript")
    x = torch.rand(2, 1, 32, 32)
    own, common = torch.jit.load("own/model.pt")(x)["cls"], torch.jit.load("out/model.pt")(x)["cls"]
    near(own, fg.load_run(images_run).model("east").predict(x[:, 0].numpy()).answers["cls"])
    assert not torch.allclose(own, common)


def test_what_answers_otherwise_is_not_let_out(
    images_run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = exporting.WithGeometry

    class Wrong(plain):
        def __init__(self, inner: torch.nn.Module, given: Any) -> None:
            super().__init__(
                torch.jit.trace(lambda x: {"cls": torch.zeros(len(x), 3)}, torch.rand(3, 1, 32, 32), strict=False),
                given,
            )

    monkeypatch.setattr(exporting, "WithGeometry", Wrong)
    code, _, err = command("export", images_run, "--to", "torchscript", "--out", "out")
    assert (code, list(Path().iterdir())) == (1, [])
    assert "model.pt does not answer as the model does: cls is off by" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "onx", "--out", "out"), "did you mean onnx?"),
        (("--to", "onnx", "--out", "."), ". is not empty"),
        (("--to", "safetensors", "--out", "out", "--site", "."), "no part of the weights' file"),
    ],
)
def test_what_cannot_be_written_is_refused(
    images_run: Path, words: tuple[str, ...], said: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("")
    code, _, err = command("export", images_run, *words)
    assert (code, [path.name for path in tmp_path.iterdir()]) == (2, ["mine"])
    assert said in " ".join(err.split())


def test_a_missing_package_is_named(images_run: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = command("export", images_run, "--to", "onnx", "--out", "out")
    assert (code, Path("out").exists()) == (2, False)
    assert "onnxruntime is not installed" in err
    assert "fedgraft[export]" in err


def test_a_module_that_torch_cannot_write_is_an_error_in_a_line(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleDict({"Ω": torch.nn.Linear(4, 4)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers["Ω"](x)

    def write() -> None:
        with exporting._in("TorchScript"):
            torch.jit.save(torch.jit.trace(Odd(), torch.zeros(1, 4)), tmp_path / "odd.pt")
            torch.jit.load(tmp_path / "odd.pt")

    with pytest.raises(InputError, match=r"cannot be written as TorchScript \(RuntimeError: .+\)\. Use another form"):
        write()
    with pytest.raises(MemoryError), exporting._in("ONNX"):
        raise MemoryError

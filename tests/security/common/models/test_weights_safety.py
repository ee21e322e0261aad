"""A weights file is a stranger's: nothing in it is run, nothing is fetched, and a changed bit is noticed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from fedgraft.common.base.errors import WeightsError
from fedgraft.common.base.files import without_seal
from fedgraft.common.models.model import build_model, state_arrays
from fedgraft.common.models.weights import (
    find,
    list_weights,
    load_manifest,
    load_weights,
    save_weights,
    verify,
)
from fedgraft.common.study.inputs import ImageInput
from fedgraft.simulations.weights.weights_import import WeightsSource, import_weights


@pytest.fixture(autouse=True)
def _own_home_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good weights."""
    arrays = {
        key: value.copy() for key, value in state_arrays(build_model("slim_resnet", {}, channels=1, seed=0)).items()
    }
    where = tmp_path / "home" / "weights" / "good"
    save_weights(where, arrays, facts("good"))
    return where


def facts(name: str) -> dict[str, Any]:
    words = {"trained_on": "noise", "licence": "CC0-1.0", "how": "by hand"}
    return {"id": name, "backbone": "slim_resnet", "input": ImageInput(), "classes": {}, "synthetic": True, **words}


def edit(folder: Path, **changes: Any) -> None:
    """As somebody would who means it: the seal is gone too."""
    manifest = without_seal(json.loads((folder / "model.json").read_text())) | changes
    (folder / "model.json").write_text(json.dumps({key: value for key, value in manifest.items() if value is not ...}))


# The file and its digest.


@pytest.mark.parametrize("old", ["by hand", "CC0-1.0", "slim_resnet", '"synthetic": true'])
def test_one_changed_letter_of_the_manifest_is_noticed(folder: Path, old: str) -> None:
    """An operating point that had changed was used by `predict`, without a word."""
    text = (folder / "model.json").read_text()
    for new in (old[:-1] + chr(ord(old[-1]) ^ 1), old[:-1] + chr(ord(old[-1]) ^ 4)):
        (folder / "model.json").write_text(text.replace(old, new, 1))
        with pytest.raises(WeightsError, match=r"model\.json: is no"):
            load_weights("good")
    (folder / "model.json").write_text(text)
    load_weights("good")


@pytest.mark.parametrize("where", [0, 9, 5000, 600_000, -1])
def test_one_flipped_bit_is_noticed(folder: Path, where: int) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.safetensors: is not the file that its manifest describes"):
        load_weights("good")


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data[:100], lambda data: b"", lambda data: data + b"\0"]
)
def test_a_file_of_another_length_is_noticed(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(WeightsError, match="is not the file"):
        load_weights("good")


def test_a_wrong_digest_in_the_manifest_is_noticed(folder: Path) -> None:
    edit(folder, sha256="0" * 64)
    with pytest.raises(WeightsError, match="is not the file"):
        load_weights("good")


def test_a_damaged_file_with_a_right_digest_is_no_weights_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    edit(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(WeightsError, match="is not a whole safetensors file"):
        load_weights("good")


def test_a_wrong_count_is_noticed(folder: Path) -> None:
    edit(folder, keys=3)
    with pytest.raises(WeightsError, match=r"has 72 entries, but its manifest says 3"):
        verify("good")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read"):
        load_weights("good")


# The manifest.


@pytest.mark.parametrize(
    "change",
    [
        {"run_me": "os.system('true')"},
        {"format": 2},
        {"sha256": "ABC"},
        {"sha256": ...},
        {"licence": ...},
        {"id": "../good"},
        {"keys": "many"},
        {"input": {"kind": "image", "size": 10**9}},
    ],
)
def test_a_manifest_with_more_or_less_or_other_than_it_may_hold(folder: Path, change: dict[str, Any]) -> None:
    edit(folder, **change)
    with pytest.raises(WeightsError, match=r"model\.json: is no manifest of weights"):
        load_weights("good")
    assert "good" not in {manifest.id for manifest in list_weights()}


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_a_broken_manifest_is_named(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.json: is no manifest of weights"):
        load_manifest("good")


def test_a_manifest_that_is_a_folder_is_named(folder: Path) -> None:
    (folder / "model.json").unlink()
    (folder / "model.json").mkdir()
    with pytest.raises(WeightsError, match=r"model\.json: cannot be read"):
        load_manifest(str(folder))


# Names that lead elsewhere.

ELSEWHERE = ["../good", "..", ".", "a/../../x", "/tmp/x", "..\\x", "", "a" * 65, "-rf", ".hidden", "a\n", "a\0b", "ü"]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_nothing_is_kept_under_a_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    torch.save(build_model("slim_resnet", {}, channels=1, seed=0).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="id"):
        import_weights(WeightsSource(tmp_path / "w.pth", "slim_resnet", "CC0-1.0"), name)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["w.pth"]


@pytest.mark.parametrize(
    "name", ["../weights/good", "..", "x/../good", "good/../good", "..\\good", "", "a\0b", "x" * 5000]
)
def test_an_id_that_leads_elsewhere_is_not_found(folder: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(WeightsError):
        load_weights(name)
    assert find("good") == folder


# Pickles.


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "inside"])
def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, form: str) -> None:
    made, path = tmp_path / "made", tmp_path / "w.pth"
    state = build_model("slim_resnet", {}, channels=1, seed=0).state_dict()
    if form == "torch":
        torch.save(Payload(made), path)
    elif form == "legacy":
        torch.save(Payload(made), path, _use_new_zipfile_serialization=False)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(Payload(made)))
    else:
        torch.save({"state_dict": state, "optimizer": Payload(made)}, path)
    with pytest.raises(WeightsError, match=r"w\.pth: holds more than tensors"):
        import_weights(WeightsSource(path, "slim_resnet", "CC0-1.0"), "theirs")
    assert not made.exists()
    assert not (tmp_path / "home").exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())  # noqa: S301
    assert made.exists(), "the payload works where it is let"


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.mobilenet_v3_small(weights=None), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds more than tensors.*Save model\.state_dict\(\) alone"):
        import_weights(WeightsSource(tmp_path / "w.pth", "mobilenet_v3_small", "BSD-3-Clause"), "theirs")


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {"state_dict": {"a": "b"}}, torch.zeros(3), {"model": {}}, {}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        import_weights(WeightsSource(tmp_path / "w.pth", "slim_resnet", "CC0-1.0"), "theirs")


@pytest.mark.parametrize("kind", ["sparse", "meta", "complex"])
def test_odd_tensors_are_refused(tmp_path: Path, kind: str) -> None:
    state = dict(build_model("slim_resnet", {}, channels=1, seed=0).state_dict())
    weight = torch.ones(16)
    odd = {
        "sparse": weight.to_sparse,
        "meta": lambda: weight.to("meta"),
        "complex": lambda: weight + 1j,
    }[kind]()
    torch.save(state | {"backbone.bn1.weight": odd}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        import_weights(WeightsSource(tmp_path / "w.pth", "slim_resnet", "CC0-1.0"), "theirs")


def test_every_damage_to_a_file_is_a_weights_error(tmp_path: Path) -> None:
    small = {"backbone.conv1.weight": torch.zeros(2, 1, 3, 3), "backbone.bn1.num_batches_tracked": torch.tensor(1)}
    rng = np.random.default_rng(0)
    for suffix, new in ((".pth", True), (".pth", False), (".safetensors", True)):
        path = tmp_path / f"w{suffix}"
        torch.save(small, path, _use_new_zipfile_serialization=new)
        data = path.read_bytes()
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), 3):
                broken[at] = rng.integers(256)
            path.write_bytes(broken[: rng.integers(1, len(data))] if rng.random() < 0.3 else broken)
            with pytest.raises(WeightsError):
                import_weights(WeightsSource(path, "slim_resnet", "CC0-1.0"), "theirs")
    with pytest.raises(WeightsError, match=r"none\.pth: cannot be read"):
        import_weights(WeightsSource(tmp_path / "none.pth", "slim_resnet", "CC0-1.0"), "theirs")


# torchvision's own files, by the name of their enum.

ENUM = "ResNet18_Weights.IMAGENET1K_V1"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, which torchvision says is its own."""
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    name = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    look = SimpleNamespace(crop_size=[224], mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    known = SimpleNamespace(url=f"https://example.org/resnet18-{name}.pth", transforms=lambda: look)
    monkeypatch.setattr(torchvision.models, "get_weight", lambda enum: known)
    return path


def test_torchvisions_own_file_is_taken(published: Path) -> None:
    manifest, report = import_weights(WeightsSource(published, "resnet18", "BSD-3-Clause", enum=ENUM), "theirs")
    assert manifest.trained_on == f"as torchvision's {ENUM}"
    assert manifest.input == ImageInput(
        size=224, channels=3, normalise="fixed", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    assert len(report.loaded) == 120
    assert verify("theirs") == manifest


def test_another_file_is_not_torchvisions(published: Path) -> None:
    wanted = hashlib.sha256(published.read_bytes()).hexdigest()[:8]
    published.write_bytes(published.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match=f"is not torchvision's file for .* must start with {wanted}"):
        import_weights(WeightsSource(published, "resnet18", "BSD-3-Clause", enum=ENUM), "theirs")
    assert not list_of_home(published)


def test_a_file_of_random_entries_is_not_torchvisions(tmp_path: Path) -> None:
    """With torchvision's real table: ResNet-18's published file is known by f37072fd."""
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="must start with f37072fd"):
        import_weights(WeightsSource(tmp_path / "w.pth", "resnet18", "BSD-3-Clause", enum=ENUM), "theirs")


def test_a_pickle_is_refused_even_with_torchvisions_digest(tmp_path: Path, published: Path, monkeypatch) -> None:
    torch.save(Payload(tmp_path / "made"), published)
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    known = SimpleNamespace(
        url=f"x-{digest[:8]}.pth", transforms=lambda: SimpleNamespace(crop_size=[224], mean=[0], std=[1])
    )
    monkeypatch.setattr(torchvision.models, "get_weight", lambda enum: known)
    with pytest.raises(WeightsError, match="holds more than tensors"):
        import_weights(WeightsSource(published, "resnet18", "BSD-3-Clause", enum=ENUM), "theirs")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("enum", ["", "ResNet18_Weights", "ResNet18_Weights.NONE", "os.system", "A.B.C", "x" * 999])
def test_an_unknown_enum_is_named(tmp_path: Path, enum: str) -> None:
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(WeightsError, match="torchvision has no weights called"):
        import_weights(WeightsSource(tmp_path / "w.pth", "resnet18", "BSD-3-Clause", enum=enum), "theirs")


def list_of_home(published: Path) -> list[Path]:
    return list((published.parent / "home").rglob("*"))

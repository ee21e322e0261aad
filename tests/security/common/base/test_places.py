"""A command that comes to write only at its end finds out at its start whether it can: before hours are spent."""

from __future__ import annotations

import errno
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.client.enrolment.join import rejoin
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.provision import Authority
from fedgraft.simulations.engines.run import Hospitals, prepare
from helpers.members import code_of, enrolled, joined

Command = Callable[..., tuple[int, str, str]]

SPENDS = {
    "simulate": ("simulations.api.simulate.check_hospitals", ("simulate", "{study}", "--out", "{place}")),
    "compare": ("simulations.compare.command.check_hospitals", ("compare", "{study}", "--out", "{place}")),
    "audit": ("simulations.audit.command.attack", ("privacy", "audit", "{study}", "--out", "{place}")),
    "curve": ("simulations.cli.curve_commands.measure", ("privacy", "curve", "{study}", "--out", "{place}")),
    "pretrain": (
        "simulations.cli.commands.simulate",
        ("weights", "pretrain", "{study}", "--id", "mine", "--out", "{place}"),
    ),
    "predict": ("client.inference.command.LoadedModel", ("predict", "{run}", "{run}", "--out", "{place}")),
    "resolve": (
        "server.rounds.resolve._finished",
        ("server", "resolve", "{run}", "--without", "x", "--out", "{place}"),
    ),
    "share": (
        "client.cli.governance_commands.Check",
        ("site", "check", "--home", "{run}/sites/east", "--share", "{place}"),
    ),
    "plot": ("client.cli.commands.budget", ("site", "budget", "{run}/sites/east", "--plot", "{place}")),
}
"""What takes time in a command, and how it is called."""

PLACES = ("README.md/x", "y" * 300, "/proc/self/x")


def trip_wire(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def spent(*_: object, **__: object) -> None:
        raise AssertionError(f"{where}: begun")

    module, _, name = f"fedgraft.{where}".rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), name, spent)


@pytest.fixture
def files(tmp_path: Path, hospitals: Hospitals, make_study) -> dict[str, Path]:
    """A study with its hospitals, and a run's folder that was set up."""
    (tmp_path / "README.md").write_text("a file")
    site = {"name": "east", "cohort": {"kind": "images", "root": str(hospitals.cohorts["east"].root)}}
    (tmp_path / "mine.yaml").write_text(json.dumps({"name": "mine", "sites": [site]}))
    content = make_study(method="fedavg").model_dump(mode="json")
    (tmp_path / "study.yaml").write_text(json.dumps({"scenario": "mine.yaml", **content}))
    prepare(make_study(), hospitals, tmp_path / "run")
    return {"study": tmp_path / "study.yaml", "run": tmp_path / "run"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPENDS)
def test_a_place_that_cannot_be_written_is_told_before_anything_is_spent(
    files: dict[str, Path], command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An audit, a curve and a pretraining ran to their ends, and were lost."""
    wire, words = SPENDS[name]
    trip_wire(monkeypatch, wire)
    for place in PLACES:
        code, out, err = command(*(word.format(place=place, **files) for word in words))
        assert code == 2, (place, out, err)
        assert place in err
        assert "begun" not in err
    code, _, err = command(*(word.format(place="fine", **files) for word in words))
    assert code == 1, "the wire is in the way of the command"
    assert "AssertionError" in err


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        ("simulations.weights.soup.load_for", ("soup", "{run}", "{run}", "--id", "mine")),
        (
            "simulations.weights.weights_import._read",
            ("import", "{run}", "--backbone", "resnet18", "--id", "mine", "--licence", "none"),
        ),
    ],
)
def test_so_is_the_home_in_which_weights_are_kept(
    files: dict[str, Path], command: Command, monkeypatch: pytest.MonkeyPatch, wire: str, words: tuple[str, ...]
) -> None:
    trip_wire(monkeypatch, wire)
    monkeypatch.setenv("FEDGRAFT_HOME", "README.md")
    code, _, err = command("weights", *(word.format(**files) for word in words))
    assert code == 2
    assert "README.md/weights/mine: Not a directory" in err


def test_so_is_the_folder_of_a_site_that_adapts_a_model(
    files: dict[str, Path], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip_wire(monkeypatch, "client.inference.adapt.LoadedModel")
    config = files["run"] / "sites" / "east" / "site.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"state": "/proc/self/state"}))
    code, _, err = command("site", "adapt", files["run"], "--home", config.parent)
    assert code == 2
    assert "/proc/self/state: " in err


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    content = {"name": "trial", "server": {"host": "localhost"}, "sites": ["north", "south"]}
    Authority(tmp_path / "kits").provision(Consortium.model_validate(content))
    return tmp_path / "kits"


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")


@pytest.mark.parametrize("last", ["write_mask_keys", "_enrolment"])
def test_joining_that_broke_off_can_be_repeated(kits: Path, tmp_path: Path, last: str) -> None:
    """It was told that the folder is in use, and to rejoin, which said to join first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"fedgraft.client.enrolment.join.{last}", full)
        with pytest.raises(OSError, match="No space left"):
            joined(kits)
    home = joined(kits)
    Authority(kits).enrol(home.path / "north.enrolment.json")
    Authority(kits).renew_site("north")
    with pytest.raises(InputError, match="is in use"):
        joined(kits)
    (tmp_path / "south").mkdir()
    (tmp_path / "south" / "thesis.docx").write_text("somebody's")
    with pytest.raises(InputError, match="is in use"):
        joined(kits, "south")


def test_keys_are_not_lost_to_a_kit_that_is_not_taken_over(kits: Path) -> None:
    """With a fault in site.yaml the old keys were gone, and nothing enrolled the new ones."""
    home = enrolled(kits)
    Authority(kits).renew_site("north")
    before = home.node_file.read_bytes(), home.masking_file.read_bytes()
    text = home.config.read_text()
    home.config.write_text(f"{text}\nno_such_key: 1\n")
    with pytest.raises(StudyError, match="no_such_key"):
        rejoin(kits / "north.zip", code_of(kits), home)
    assert (home.node_file.read_bytes(), home.masking_file.read_bytes()) == before
    home.config.write_text(text)
    done = rejoin(kits / "north.zip", code_of(kits), home)
    assert done.enrolment is not None
    assert home.node_file.read_bytes() != before[0]


def test_provisioning_that_broke_off_leaves_no_half_of_an_authority(tmp_path: Path) -> None:
    """With a key and no certificate it was an authority that nothing could be done with."""
    consortium = Consortium.model_validate({"name": "trial", "server": {"host": "localhost"}, "sites": ["north"]})
    module, written = "fedgraft.server.provisioning.provision", 0
    real = importlib.import_module(module).write_atomic
    for most in range(20):
        written = 0

        def until_full(*facts: object, most: int = most, **more: object) -> None:
            nonlocal written
            written += 1
            if written > most:
                full()
            real(*facts, **more)

        out = tmp_path / str(most)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{module}.write_atomic", until_full)
            try:
                Authority(out).provision(consortium)
                break
            except OSError:
                pass
        if (out / "authority" / "ca.key").exists():
            Authority(out).provision(consortium)
            assert enrolled(out, "north", out / "site").joined().site == "north"
        else:
            with pytest.raises(InputError, match=r"holds no authority\. Choose another --out, or remove it"):
                Authority(out).provision(consortium)
    assert written > 5

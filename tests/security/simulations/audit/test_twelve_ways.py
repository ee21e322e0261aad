"""The audit fails for a site, a server or a program that is sabotaged in any of twelve ways, one for each promise.

The ways are those in which a review broke the first edition; docs/privacy-tests.md lists them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest

from fedgraft.common.base.files import CONFIGS
from fedgraft.common.study.study import find_study
from fedgraft.simulations.audit.attack import attack
from fedgraft.simulations.audit.classes import as_classes
from fedgraft.simulations.audit.findings import AttackAttempt
from fedgraft.simulations.audit.program import supply
from fedgraft.simulations.audit.promises import promises
from helpers import careless, careless_at_home, careless_server

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
Patch = pytest.MonkeyPatch
ATTEMPTS: Mapping[str, AttackAttempt] = {attempt.name: attempt for attempt in promises("every stage", 0)}


def a_floating_version(patch: Patch) -> None:
    """A line of the lock that any file with that name and version would fit."""
    real = Path.read_text

    def text(self: Path, *how: str, **more: str) -> str:
        found = real(self, *how, **more)
        return found + "left-pad==1.0\n" if self.name == "requirements.lock" else found

    patch.setattr(Path, "read_text", text)


TWELVE = {
    1: (careless_at_home.true_number_divides, "number of patients"),
    2: (careless_at_home.dealt_by_rank, "one patient more"),
    3: (careless.stage_not_checked, "coordinator, elsewhere"),
    4: (careless.masks_without_the_split, "coordinator, elsewhere"),
    5: (careless_at_home.everybody_is_pinned, "members"),
    6: (careless_at_home.a_new_model_is_another_question, "figures shown once"),
    7: (careless_at_home.rows_are_patients, "whose a case is"),
    8: (careless_at_home.records_not_asked, "records put back"),
    9: (careless_at_home.rules_read_once, "rules changed"),
    10: (careless_server.anybody_speaks_for_anybody, "names of others"),
    11: (a_floating_version, "what was installed"),
    12: (careless_server.traces_are_printed, "words of a command"),
}


def slowly(ways: Iterable[Any], slow: set[Any]) -> list[Any]:
    return [pytest.param(way, marks=pytest.mark.slow) if way in slow else way for way in ways]


@pytest.mark.slow
@pytest.mark.parametrize("name", slowly(ATTEMPTS, {"coordinator, elsewhere"}))
def test_what_is_sound_holds(name: str) -> None:
    found = ATTEMPTS[name].find()
    assert found.passed, found.words


@pytest.mark.slow
@pytest.mark.parametrize("way", slowly(TWELVE, {3, 4}))
def test_a_sabotaged_part_in_each_of_the_twelve_ways_fails_the_audit(way: int, monkeypatch: Patch) -> None:
    sabotage, name = TWELVE[way]
    sabotage(monkeypatch)
    assert ATTEMPTS[name].find().fails


@pytest.mark.parametrize("study", ["private", "private_table", "quickstart"])
def test_the_twelve_are_looked_at_whatever_the_study(study: str) -> None:
    names = [attempt.name for attempt in attack(find_study(Path(study))[0], 200, allow_plain=True)]
    assert set(ATTEMPTS) <= set(names)
    assert len(ATTEMPTS) == len(promises("x", 0))


SHIPPED = sorted(path.stem for path in (CONFIGS / "studies").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_audit_of_every_study_that_ships_holds(name: str) -> None:
    """All that depends on the study; what does not is tried once, above."""
    found = [one.find() for one in attack(find_study(Path(name))[0], 200, allow_plain=True) if one.name not in ATTEMPTS]
    assert len(found) >= 5
    assert "coordinator" in {one.name for one in found}
    assert [f"{one.name}: {one.words}" for one in found if one.fails] == []


def test_values_labels_and_masks_are_attacked_as_classes_and_the_audit_says_so() -> None:
    study, _ = find_study(Path("multi_task"))
    classes, others = as_classes(study)
    assert others == ("lesion", "size_mm")
    assert [task.kind for task in classes.tasks] == ["multiclass"] * 4
    assert classes.plan == study.plan
    (said,) = [one.find() for one in attack(study, 200, allow_plain=True) if one.name == "other answers"]
    assert said.passed is None
    assert "lesion, size_mm asked for two classes instead" in said.words
    assert as_classes(classes) == (classes, ())


CARELESS: list[tuple[Callable[[Patch], None], str]] = [
    (careless_server.shapes_are_believed, "lies in replies"),
    (careless_server.replies_are_not_looked_at, "lies in replies"),
    (careless_server.counts_are_believed, "lies in replies"),
    (careless_server.signatures_hold_for_ever, "names of others"),
    (careless_server.all_of_flower_is_open, "names of others"),
    (careless_server.everybody_is_let_in, "crowd at the door"),
    (careless_server.first_come_first_served, "crowd at the door"),
    (careless_server.nobody_is_told_where_it_listens, "crowd at the door"),
    (careless_server.folders_are_as_the_mask_has_them, "files of others"),
    (careless_server.site_files_for_all, "files of others"),
    (careless_server.panics_are_no_exceptions, "words of a command"),
    (careless_server.values_are_in_the_trace, "words of a command"),
    (careless_server.traces_for_all, "words of a command"),
    (careless_server.libraries_say_where_logs_go, "words of a command"),
    (careless_server.commands_print_their_own, "words of a command"),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("broken", "name"), CARELESS, ids=lambda value: getattr(value, "__name__", None))
def test_a_careless_server_or_program_is_found_out(
    broken: Callable[[Patch], None], name: str, monkeypatch: Patch
) -> None:
    broken(monkeypatch)
    assert ATTEMPTS[name].find().fails


# What was installed.


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the audit looks at of a checkout, to be spoilt."""
    for name in supply.LOOKED_AT:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("requirements.lock", "h11==", "h11>=", "h11>="),
        ("requirements.lock", "h11==", "h12==", "h11 is needed, and not locked"),
        ("deploy/build.lock", "    --hash=sha256:", "    --hash=md5:", "is not fixed to its bytes"),
        ("deploy/sbom.json", '"version": "', '"version": "9', "the bill of materials is not that of the lock"),
        ("deploy/sbom.json", "{", "", "missing or damaged"),
        ("deploy/Dockerfile", "@sha256:${PYTHON_SHA256}", ":3.11", "the image is built on"),
        ("deploy/Dockerfile", "--require-hashes", "", "the image takes what a registry gives"),
        (".dockerignore", "**/kits", "", ".dockerignore does not keep **/kits out"),
        (".gitignore", "kits/", "", ".gitignore does not keep kits/ out"),
    ],
)
def test_a_spoilt_checkout_is_found_out(checkout: Path, file: str, old: str, new: str, said: str) -> None:
    assert list(supply.faults_of_checkout(checkout)) == []
    path = checkout / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert said in "; ".join(supply.faults_of_checkout(checkout))


@pytest.fixture
def wheel(tmp_path: Path) -> PathDistribution:
    """A package as pip has put it there."""
    (tmp_path / "fedgraft").mkdir()
    (tmp_path / "fedgraft" / "a.py").write_bytes(b"")
    (inner := tmp_path / "fedgraft-1.dist-info").mkdir()
    (inner / "METADATA").write_text("Metadata-Version: 2.1\nName: fedgraft\nVersion: 1\n")
    empty = "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
    (inner / "RECORD").write_text(f"fedgraft/a.py,{empty},0\nfedgraft-1.dist-info/RECORD,,\n")
    return PathDistribution(inner)


def test_a_file_that_was_changed_after_it_was_installed_is_found(wheel: PathDistribution, tmp_path: Path) -> None:
    assert list(supply.changed_files(wheel)) == []
    (tmp_path / "fedgraft" / "b.py").write_text("import os\n")
    (tmp_path / "fedgraft" / "a.py").write_text("import os\n")
    said = list(supply.changed_files(wheel))
    assert [line.rpartition("fedgraft")[2] for line in said] == ["/a.py was changed", "/b.py was put there"]
    (tmp_path / "fedgraft" / "a.py").unlink()
    assert "a.py is gone" in "; ".join(supply.changed_files(wheel))


def test_files_that_nobody_vouches_for_are_said_to_be_that(tmp_path: Path, monkeypatch: Patch) -> None:
    """Copied to a machine by hand, neither a checkout nor installed: not tested, in so many words."""
    monkeypatch.setattr(supply, "PACKAGE", tmp_path / "somewhere")
    found = supply.supply("every stage").find()
    assert found.passed is None
    assert "neither a wheel nor the project" in found.words


def test_an_audit_of_the_installed_wheel_looks_at_its_record(wheel: PathDistribution, monkeypatch: Patch) -> None:
    monkeypatch.setattr(supply, "PACKAGE", Path(str(wheel.locate_file("fedgraft"))))
    monkeypatch.setattr(supply, "distribution", lambda name: wheel)
    found = supply.supply("every stage").find()
    assert found.passed
    assert "record of the wheel" in found.words

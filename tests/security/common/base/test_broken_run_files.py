"""Every file of a run and of a site, broken in every way, through every command that reads it: the file is named.

No trace, no exit code 0, nothing that should not have happened. Tests run as root, for whom nothing is without rights:
a link to the process's own memory is a file that is there and cannot be read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.simulations.engines.run import Hospitals
from helpers.no_room import files_up_to
from helpers.simulated import simulate

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(hospitals: Hospitals, make_study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    two = Hospitals({name: hospitals.cohorts[name] for name in ("east", "north")})
    return simulate(make_study(method="fedavg"), two, tmp_path_factory.mktemp("broken") / "run")


def unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to("/proc/self/mem")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


BREAKS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "a folder": folder,
    "no rights": unreadable,
    "a loop": a_loop,
    "a list": lambda path: path.write_bytes(b"[1, 2]\n"),
    "a number": lambda path: path.write_bytes(b"7\n"),
    "a word": lambda path: path.write_bytes(b'"x"\n'),
    "another object": lambda path: path.write_bytes(b'{"a": 1}\n'),
    "gone": lambda path: path.unlink(),
}
SITE = "sites/east/site.json"
RESUME = ("study.yaml", "simulation.json", "history.jsonl", "sites/index.json", SITE)
CASES = {
    "resume": (("simulate", "--resume", "{run}"), RESUME),
    "report": (("report", "{run}"), ("history.jsonl", "result.json", "environment.json")),
    "predict": (("predict", "{run}", "{run}", "--out", "{out}"), ("model.json", "model.safetensors")),
    "verify": (("weights", "verify", "{run}"), ("model.json", "model.safetensors")),
    "show": (("weights", "show", "{run}"), ("model.json",)),
    "egress": (("site", "egress", "{run}/sites/east"), (SITE, "sites/east/egress.jsonl")),
    "budget": (("site", "budget", "{run}/sites/east"), (SITE,)),
    "check": (("site", "check", "--home", "{run}/sites/east", "--part", "policy"), (SITE,)),
    "adapt": (("site", "adapt", "{run}", "--home", "{run}/sites/east"), (SITE, "model.json", "model.safetensors")),
}
HARMLESS = {
    ("report", "result.json", "gone"),  # of a run that is not over yet
    ("report", "environment.json", "gone"),
    ("report", "environment.json", "another object"),
    ("report", "result.json", "another object"),
    ("report", "history.jsonl", "empty"),
    ("report", "history.jsonl", "another object"),
    ("resume", "history.jsonl", "cut"),  # of the evaluation at the end, which is done again
}
"""What is no fault: reports show what there is, and a run goes on from its last checkpoint."""


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    copy = tmp_path / "own" / "run"
    shutil.copytree(run, copy)
    for config in copy.glob("sites/*/site.json"):
        config.write_text(config.read_text().replace(str(run), str(copy)))
    return copy


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, (_, files) in CASES.items() for file in files])
def test_whatever_is_broken_is_named(own: Path, command: Command, tmp_path, name: str, file: str):
    path, before = own / file, (own / file).read_bytes()
    for how, breaks in BREAKS.items():
        if (name, file, how) in HARMLESS:
            continue
        breaks(path)
        words = [word.format(run=own, out=tmp_path / f"out {how}") for word in CASES[name][0]]
        code, out, err = command(*words)
        assert code in (1, 2), (how, code, out)
        assert "should not have happened" not in err, (how, err)
        assert "Traceback" not in out + err, (how, err)
        assert any(one in err + out for one in (path.name, path.with_suffix(".yaml").name)), (how, err)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        path.write_bytes(before)


def test_what_a_run_writes_anew_may_be_broken(own: Path, command: Command):
    for file in ("result.json", "model.json", "model.safetensors", "environment.json"):
        BREAKS["binary"](own / file)
    assert command("simulate", "--resume", own)[0] == 0
    assert json.loads((own / "result.json").read_text())["status"] == "completed"


def test_sites_that_are_gone_are_the_reason(own: Path, command: Command):
    shutil.rmtree(own / "sites")
    code, _, err = command("simulate", "--resume", own)
    assert code == 1
    assert f"{own / 'sites' / 'index.json'}: is gone" in err
    assert "not_approved" not in err


def test_a_study_that_was_changed_meanwhile_is_the_reason(own: Path, command: Command):
    """It said that no site had approved it."""
    text = (own / "study.yaml").read_text()
    (own / "study.yaml").write_text(text.replace("lr: 0.001", "lr: 0.002"))
    assert (own / "study.yaml").read_text() != text
    code, _, err = command("simulate", "--resume", own)
    assert code == 1
    assert "study.yaml: is not the study that this run was begun with" in err


def test_a_flipped_digit_of_the_study_s_digest_is_told_with_the_file_that_has_it(own: Path, command: Command):
    """It said that the digest was 297a84fb289f and is 297a84fb289f now."""
    digest = json.loads((own / "simulation.json").read_text())["study"]
    changed = f"{digest[:-1]}{'0' if digest[-1] != '0' else '1'}"
    (own / "simulation.json").write_text((own / "simulation.json").read_text().replace(digest, changed))
    code, _, err = command("simulate", "--resume", own)
    assert code == 1
    assert f"its digest was {changed} by simulation.json, and is {digest} now" in err


@pytest.mark.parametrize(("names", "said"), [(["east"], "does not name north"), (["east", "norti"], "norti")])
def test_a_list_of_sites_that_is_not_what_is_there_is_told(own: Path, command: Command, names, said: str):
    """Fewer sites gave another model, and a success."""
    (own / "sites" / "index.json").write_text(json.dumps(names))
    code, _, err = command("simulate", "--resume", own)
    assert code == 1
    assert "index.json" in err
    assert said in err


@pytest.mark.parametrize("file", ["approvals.json", "splits.csv", "patients.key", "egress.jsonl"])
def test_what_keeps_a_simulated_site_out_is_told_with_the_code(own: Path, command: Command, file: str):
    """`missing: north, not_approved` was all, of a damaged file."""
    (own / "sites" / "north" / file).write_bytes(b"\0" * 40)
    code, _, err = command("simulate", "--resume", own)
    assert code == 1
    assert "missing: north" in err
    told = next(line for line in err.splitlines() if line.startswith("  north: "))
    assert f"{own}/sites/north/{file}" in told, err


PLACES = {
    "below a file": "README.md/run",
    "a name that is too long": "x" * 300,
    "where nothing can be made": "/proc/self/run",
    "a file": "README.md",
}
WRITERS = {
    "simulate": ("simulate", "{study}"),
    "make": ("data", "make", "xray5"),
    "predict": ("predict", "{run}", "{run}"),
    "provision": ("server", "provision", "{consortium}"),
    "compare": ("compare", "{study}"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_cannot_be_written_is_named(
    own: Path, hospitals: Hospitals, command: Command, tmp_path, name: str
):
    (tmp_path / "README.md").write_text("a file")
    site = {"name": "east", "cohort": {"kind": "images", "root": str(hospitals.cohorts["east"].root)}}
    (tmp_path / "hospitals.yaml").write_text(json.dumps({"name": "mine", "sites": [site]}))
    study = json.loads(json.dumps({"scenario": "hospitals.yaml"})) | _study()
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    consortium = {"name": "trial", "server": {"host": "localhost"}, "sites": ["east"]}
    (tmp_path / "consortium.yaml").write_text(json.dumps(consortium))
    files = {"run": own, "study": tmp_path / "study.yaml", "consortium": tmp_path / "consortium.yaml"}
    for what, place in PLACES.items():
        code, out, err = command(*(word.format(**files) for word in WRITERS[name]), "--out", place)
        assert code in (1, 2), (what, out)
        assert "should not have happened" not in err, (what, err)
        assert Path(place).name[:200] in err or "README.md" in err, (what, err)


def _study() -> dict[str, object]:
    return {
        "name": "tiny",
        "tasks": [{"name": "cls", "classes": ["left", "right", "middle"]}],
        "input": {"kind": "image", "size": 32},
        "model": {"backbone": "slim_resnet", "weights": None},
        "method": {"name": "fedavg", "rounds": 1},
    }


def test_a_disk_that_takes_no_more_is_told_with_the_file(command: Command, own: Path):
    """Writing fails in the middle of a file, which names none."""
    with files_up_to(400_000):
        code, _, err = command("simulate", "--resume", own)
    assert code in (1, 2)
    assert "should not have happened" not in err
    assert f"{own / 'model.safetensors'}: File too large. Files may not be so large there" in err
    assert f"Then continue with `fedgraft simulate --resume {own}`." in err


@pytest.mark.slow
def test_two_processes_do_not_work_on_one_run(own: Path, command: Command):
    from fedgraft.server.runs.run_folder import RunFolder

    with RunFolder(own).held():
        before = (own / "history.jsonl").read_bytes()
        code, _, err = command("simulate", "--resume", own)
        assert (own / "history.jsonl").read_bytes() == before
    assert code == 1
    assert f"{own}: another process is at work on this run" in err
    assert command("simulate", "--resume", own)[0] == 0

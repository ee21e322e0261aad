"""What an installed wheel is: whole, alone under its own name, and untouched by what lies where somebody works.

The wheel is installed into a fresh environment beside other people's packages `common`, `client`, `server` and
`configs`, and runs in folders where modules lie that a run must never pick up.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.server.operations.bundle import manifest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOREIGN = ("common", "client", "server", "configs")
SMALL = ("plan.1.rounds=1", "plan.1.local.epochs=1", "input.size=32")
BESIDE = {"pyproject.toml", "hatch_build.py", "README.md", "CHANGELOG.md", "LICENSE", "PKG-INFO", ".gitignore"}
DATA = (
    "py.typed",
    "configs/studies/quickstart.yaml",
    "configs/scenarios/xray5.yaml",
    "configs/sites/hospital.yaml",
    "configs/notebooks/own_images.ipynb",
    "configs/weights/slim-ctmr-synthetic/model.json",
    "configs/weights/slim-ctmr-synthetic/model.safetensors",
    "server/report/page.html.jinja",
    "server/report/compare.html.jinja",
    "server/watch/page.html",
    "server/watch/page.js",
    "server/watch/page.css",
)
TRAP = """\
from pathlib import Path
Path(__file__).with_name("picked_up").touch()
raise SystemExit("a module of the working folder was picked up")
"""


def pip(*words: str | Path, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *map(str, words)]
    subprocess.run(command, env=os.environ | environment, check=True)


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path
    from_sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Wheel and sdist of the checkout, and the wheel that the sdist gives."""
    folder = tmp_path_factory.mktemp("built")
    pip(
        "install",
        "--target",
        folder / "tools",
        *tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"],
    )
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    build = f"from hatchling.build import build_sdist; build_sdist({str(folder)!r})"
    tools = {"PYTHONPATH": str(folder / "tools")}
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, env=os.environ | tools, check=True)
    sdist = next(folder.glob("*.tar.gz"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "again", sdist, **tools)
    return Built(next(folder.glob("*.whl")), sdist, next((folder / "again").glob("*.whl")))


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and the folders in which somebody works."""

    python: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """As a person's shell has it: no path to any checkout, and the environment's programs."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        programs = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        return kept | {"PATH": programs, "FEDGRAFT_HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1"}

    def run(self, *words: str, where: str) -> str:
        """What a program of the environment says in that folder."""
        command = [str(self.python.parent / words[0]), *words[1:]]
        done = subprocess.run(
            command, cwd=self.folder / where, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip())
    # The libraries of this environment, so that nothing large is installed; its own fedgraft comes after the wheel.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    for name in FOREIGN:
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(f"OWNER = 'the other {name}'\n", encoding="utf-8")
    pip("--python", python, "install", "--no-deps", built.wheel)
    _flower_programs(python.parent)
    for where, traps in {
        "desk": ("common.py", "client/__init__.py"),
        # What even Python's own helpers would pick up from the folder in which they are started.
        "worse": ("common.py", "client/__init__.py", "fedgraft.py", "random.py", "queue.py", "socket.py"),
    }.items():
        for trap in traps:
            path = folder / where / trap
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(TRAP, encoding="utf-8")
    return Installed(python, folder)


def _flower_programs(programs: Path) -> None:
    """Flower's commands, run by this environment's Python."""
    for path in Path(sysconfig.get_path("scripts")).glob("fl*"):
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        assert first.startswith("#!")
        (programs / path.name).write_text(f"#!{programs / 'python'}\n{rest}", encoding="utf-8")
        (programs / path.name).chmod(0o755)


@pytest.fixture(autouse=True)
def _nothing_is_picked_up(installed: Installed):
    yield
    assert not list(installed.folder.rglob("picked_up"))


def names_in(archive: Path) -> list[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.namelist()
    with tarfile.open(archive) as sdist:
        assert all(member.isfile() for member in sdist), "a link in an sdist is nothing on a machine without links"
        return [member.name.partition("/")[2] for member in sdist]


def test_wheel_and_sdist_hold_the_package_alone_and_every_file_once(built: Built):
    wheel, sdist = names_in(built.wheel), names_in(built.sdist)
    assert len(set(wheel)) == len(wheel)
    assert len(set(sdist)) == len(sdist)
    assert names_in(built.from_sdist) == wheel
    package = {name for name in wheel if name.startswith("fedgraft/")}
    described = set(wheel) - package
    assert {Path(name).parts[0] for name in described} == {
        f"{built.wheel.stem.removesuffix('-py3-none-any')}.dist-info"
    }
    assert any(name.endswith("LICENSE") for name in described)
    assert {name for name in sdist if not name.startswith("src/")} == BESIDE
    assert {name.removeprefix("src/") for name in sdist} - BESIDE == package
    there = {path.relative_to(ROOT) for name in (*FOREIGN, "simulations") for path in (ROOT / name).rglob("*")}
    there = {path for path in there if (ROOT / path).is_file() and path.suffix != ".pyc"}
    own = {path.name for path in (ROOT / "src" / "fedgraft").iterdir() if path.is_file()}
    assert package == {f"fedgraft/{name}" for name in [*own, *map(str, there)]}
    assert {f"fedgraft/{name}" for name in DATA} <= package


def test_a_copy_without_links_builds_nothing_and_says_what_to_do(tmp_path: Path):
    package = tmp_path / "src" / "fedgraft"
    package.mkdir(parents=True)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    for path in (ROOT / "src" / "fedgraft").glob("*.py"):
        shutil.copy(path, package)
    for name in (*FOREIGN, "simulations"):
        (package / name).write_text(f"../../{name}", encoding="utf-8")  # as git writes a link where there are none
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path / "nowhere", tmp_path]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert [line for line in refused.stderr.splitlines() if "run `python hatch_build.py` to make the links" in line]
    assert not (tmp_path / "nowhere").exists()


def test_the_wheel_is_what_runs_and_other_packages_stay_theirs(installed: Installed):
    code = "import fedgraft, common, client, server, configs; "
    code += "print(fedgraft.__file__, common.OWNER, client.OWNER, server.OWNER, configs.OWNER, sep='|')"
    said = installed.run("python", "-P", "-c", code, where="desk").strip().split("|")
    assert Path(said[0]).is_relative_to(installed.folder / "venv")
    assert said[1:] == [f"the other {name}" for name in FOREIGN]


def test_what_people_type_works_from_the_wheel(installed: Installed):
    assert "Federated transfer learning" in installed.run("fedgraft", "--help", where="desk")
    checked = installed.run("python", "-m", "fedgraft", "study", "check", "quickstart", where="desk")
    assert "no faults" in checked
    assert installed.run("fedgraft", "study", "check", "quickstart", where="worse") == checked
    verified = installed.run("fedgraft", "weights", "verify", "slim-ctmr-synthetic", where="desk")
    assert "as its manifest says" in verified


def simulate(installed: Installed, out: str, *words: str, where: str) -> Path:
    sets = [word for key in SMALL for word in ("--set", key)]
    installed.run(
        "fedgraft", "simulate", "quickstart", "--out", str(installed.folder / out), *sets, *words, where=where
    )
    run = installed.folder / out
    assert read_json(run / "result.json")["status"] == "completed"
    return run


def same(one: Path, other: Path) -> bool:
    left, right = (load_tensors(run / "model.safetensors") for run in (one, other))
    return left.keys() == right.keys() and all((left[key] == right[key]).all() for key in left)


@pytest.fixture(scope="module")
def in_process(installed: Installed) -> Path:
    return simulate(installed, "in_process", where="desk")


def test_a_run_of_the_wheel_has_its_report(installed: Installed, in_process: Path):
    (in_process / "report.html").unlink()
    installed.run("fedgraft", "report", str(in_process), where="worse")
    assert "quickstart" in (in_process / "report.html").read_text(encoding="utf-8")


def test_pool_workers_of_the_wheel_keep_out_of_the_working_folder(installed: Installed, in_process: Path):
    run = simulate(installed, "pool", "--engine", "pool", "--workers", "2", where="worse")
    assert same(run, in_process)


@pytest.mark.ray
def test_ray_workers_of_the_wheel_keep_out_of_the_working_folder(installed: Installed, in_process: Path):
    run = simulate(installed, "ray", "--engine", "ray", "--workers", "2", where="worse")
    assert same(run, in_process)


def test_flower_finds_both_apps_in_the_wheel(installed: Installed):
    apps = tomllib.loads(manifest())["tool"]["flwr"]["app"]["components"]
    code = "import sys, json; from importlib import import_module; found = {}\n"
    code += "for key, name in json.loads(sys.argv[1]).items():\n"
    code += "    module, _, attribute = name.partition(':'); place = import_module(module)\n"
    code += "    found[key] = [type(getattr(place, attribute)).__name__, place.__file__]\n"
    code += "print(json.dumps(found))"
    found = json.loads(installed.run("python", "-P", "-c", code, json.dumps(apps), where="desk"))
    assert {key: kind for key, (kind, _) in found.items()} == {"serverapp": "ServerApp", "clientapp": "ClientApp"}
    assert all(Path(place).is_relative_to(installed.folder / "venv") for _, place in found.values())

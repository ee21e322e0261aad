"""A kind of data of one's own: an installed reader, and one in a file, give what fedgraft's own would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedgraft as fg
from fedgraft.client.data.cohorts.cohort import CohortRequest, Place, load_cohort
from fedgraft.client.data.decoding.decoder import read_images
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.study.study import Study
from fedgraft.simulations.compare.running.models import ModelJob
from fedgraft.simulations.engines.run import OPEN, Engine, Hospitals, simulated_cohort
from fedgraft.simulations.phantoms.scenario import Scenario
from helpers.plugins import EXAMPLE, fresh, install, wheel_of
from helpers.simulated import simulate

assert fresh
pytestmark = pytest.mark.usefixtures("fresh")
MakeStudy = Callable[..., Study]
METHOD = {"name": "fedavg", "rounds": 1, "local": {"steps": 2, "batch_size": 8, "lr": 0.003}}


@pytest.fixture
def installed(hospitals: Hospitals, tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    read_images(next(hospitals.cohorts["east"].root.rglob("*.png")), "first")  # whoever decodes is at work before
    fresh.syspath_prepend(install(wheel_of(EXAMPLE, tmp_path / "wheels"), tmp_path / "packages"))


@pytest.fixture
def arrays(hospitals: Hospitals, tmp_path: Path) -> Hospitals:
    """Two hospitals whose PNG images are .npy files, by the reader of the example."""
    cohorts = {}
    for name in ("east", "north"):
        root = hospitals.cohorts[name].root
        for path in sorted(root.rglob("*.png")):
            out = tmp_path / name / path.relative_to(root).with_suffix(".npy")
            out.parent.mkdir(parents=True, exist_ok=True)
            np.save(out, np.asarray(Image.open(path)))
        (tmp_path / name / "left" / "torn.npy").write_bytes(b"\x93NUMPY torn")
        cohorts[name] = CohortSpec(kind="npy", root=tmp_path / name)
    return Hospitals(cohorts)


def model_of(run: Path) -> str:
    return str(json.loads((run / "model.json").read_text())["sha256"])


def test_an_installed_reader_gives_what_images_give(
    installed: None, arrays: Hospitals, hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(method=METHOD)
    one = simulate(study, arrays, tmp_path / "one")
    pool = simulate(study, arrays, tmp_path / "pool", Engine(name="pool", workers=2))
    assert model_of(one) == model_of(pool)
    own = simulated_cohort(study, one, "east")
    plain = CohortSpec(kind="images", root=hospitals.cohorts["east"].root)
    place = Place(tmp_path / "state", tmp_path / "cache", b"secret")
    wanted = CohortRequest(study.tasks, study.input, study.split, study.seed)
    same = load_cohort("east", plain, wanted, place)
    assert torch.equal(own.inputs, same.inputs)
    assert torch.equal(own.targets["cls"], same.targets["cls"])
    left = (one / "sites" / "east" / "left_out.csv").read_text()
    assert left.splitlines()[1:] == ['"left/torn.npy",undecodable']


def test_a_reader_in_a_file_is_registered_by_a_line(tmp_path: Path, arrays_file: Path, make_study: MakeStudy) -> None:
    fg.load_plugin(arrays_file)
    for label in ("left", "right", "middle"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for at in range(8):
            (tmp_path / "d" / label / f"{at}.txt").write_text(f"0.{at}")
    by = {"kind": "shards", "sites": 2, "per_site": 3}
    shared = {"cohort": {"kind": "shade", "root": str(tmp_path / "d")}, "by": by}
    scenario = Scenario.parse({"name": "shades", "seed": 4, "partition": shared})
    run = fg.simulate(make_study(method=METHOD), scenario, out=tmp_path / "run", progress=False)
    assert len(run.sites) == 2
    facts = json.loads((tmp_path / "run" / "simulation.json").read_text())
    assert facts["partition"]["seed"] == 4
    assert sum(site["cases"] for site in facts["partition"]["sites"].values()) == 24


@pytest.fixture
def arrays_file(tmp_path: Path) -> Path:
    file = tmp_path / "my_reader.py"
    file.write_text(
        "from collections import Counter\n"
        "import numpy as np\n"
        "import fedgraft as fg\n"
        "from fedgraft.client.data.kinds import DataKind\n"
        "from fedgraft.client.data.readers.reader import Case, Contents\n"
        "class Shade:\n"
        "    def __init__(self, spec, tasks, wanted): pass\n"
        "    def read(self, path, name):\n"
        "        return Contents([Case(np.full((16, 16), float(path.read_text()), np.float32))])\n"
        "    def finish(self): return Counter()\n"
        "fg.register_reader('shade', DataKind(Shade, folder_labels=True))\n"
    )
    return file


def test_a_site_with_rules_of_its_own_lists_its_reader_or_takes_no_part(
    arrays_file: Path, make_study: MakeStudy, tmp_path: Path
) -> None:
    fg.load_plugin(arrays_file)
    specs = {}
    for name in ("east", "north", "south"):
        for label in ("left", "right", "middle"):
            (tmp_path / name / "t" / label).mkdir(parents=True, exist_ok=True)
            for at in range(8):
                (tmp_path / name / "t" / label / f"{at}.txt").write_text(f"0.{at}")
        specs[name] = CohortSpec(kind="shade", root=tmp_path / name / "t")
    strict = OPEN.model_copy(update={"plugins": {"my_reader.py": "0" * 64}})
    study = make_study(method=METHOD, rounds={"min_sites": 1, "quorum": 0.5})
    run = simulate(study, Hospitals(specs, policies={"north": strict}), tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    assert {(one["site"], one["code"]) for one in result["refusals"]} == {("north", "plugin_digest")}
    exec(compile(arrays_file.read_text().replace("'shade'", "'typed'"), "<cell>", "exec"), {"__name__": "__main__"})
    typed = Hospitals({name: spec.model_copy(update={"kind": "typed"}) for name, spec in specs.items()})
    with pytest.raises(InputError, match="'typed' was registered in this session, and other processes do not know it"):
        simulate(study, typed, tmp_path / "pool", Engine(name="pool", workers=2))
    compared = ModelJob(study, "together", typed.cohorts).code  # of which a comparison's digests are, and its processes
    assert [plugin.distribution for plugin in compared] == ["session-typed"] * 3


def test_names_that_are_taken_or_unknown_and_what_is_no_reader(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fedgraft has a kind of data 'images' itself"):
        fg.register_reader("images", fg.register_reader)
    with pytest.raises(InputError, match=r"'mine' is no fedgraft\.client\.data\.kinds\.DataKind"):
        fg.register_reader("mine", object)
    with pytest.raises(StudyError, match="there is no kind 'npi'"):
        Scenario.parse({"name": "x", "sites": [{"name": "a", "cohort": {"kind": "npi", "root": str(tmp_path)}}]})

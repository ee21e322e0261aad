"""A program of one's own, run in a folder with files that are called as Python's modules are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedgraft
from fedgraft.common.base.files import read_json
from fedgraft.simulations.engines.run import Hospitals
from helpers.work import MakeStudy

TRAP = "from pathlib import Path\nPath(__file__).with_name('picked_up').touch()\nraise SystemExit(1)\n"
TRAPS = ("common.py", "client.py", "fedgraft.py", "random.py", "queue.py", "socket.py", "torch.py")
HEAD = """\
import json
import sys
from pathlib import Path

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.study.study import parse_study
from fedgraft.simulations.compare.running.cells import cells, run
from fedgraft.simulations.compare.question import BUILT_IN, Question
from fedgraft.simulations.engines.run import Engine, Hospitals, simulate

if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    study, out = parse_study(asked["study"], "study"), Path(asked["out"])
    sites = Hospitals({name: CohortSpec.model_validate(spec) for name, spec in asked["cohorts"].items()})
"""
PROGRAMS = {
    "pool": '    simulate(study, sites, out / "run", Engine(name="pool", workers=2))\n',
    "compare": """\
    arms = cells(study, Question(arms=(BUILT_IN["study"], BUILT_IN["scratch"])), sites, 1, "study")
    print(len(list(run(arms, out, 1, 1))))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_workers_are_not_misled_by_the_working_folder(
    make_study: MakeStudy, hospitals: Hospitals, tmp_path: Path, program: str
) -> None:
    work = {"name": "fedavg", "rounds": 1, "local": {"steps": 2, "batch_size": 8}}
    study = make_study(method=work, evaluate={"every": 0})
    cohorts = {name: hospitals.cohorts[name].model_dump(mode="json") for name in ("east", "south")}
    asked = {"study": study.model_dump(mode="json"), "cohorts": cohorts, "out": str(tmp_path / "out")}
    desk, elsewhere = tmp_path / "desk", tmp_path / "elsewhere"
    for folder in (desk, elsewhere):
        folder.mkdir()
    for trap in TRAPS:
        (desk / trap).write_text(TRAP, encoding="utf-8")
    (elsewhere / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    (elsewhere / "program.py").write_text(HEAD + PROGRAMS[program], encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(fedgraft.__file__).parents[1])}
    environment.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, elsewhere / "program.py", elsewhere / "asked.json"]
    done = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, check=False)
    assert not (desk / "picked_up").exists()
    assert done.returncode == 0, done.stderr
    if program == "pool":
        assert read_json(tmp_path / "out" / "run" / "result.json")["status"] == "completed"
    else:
        assert done.stdout == "1\n"

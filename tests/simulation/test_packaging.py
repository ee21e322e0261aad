"""What `pip install .` installs is whole: the commands, the packages, the configurations and the weights that ship."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_runs_on_its_own(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True
    )
    wheel = next(tmp_path.glob("fedgraft-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert "configs/studies/quickstart.yaml" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "FEDGRAFT_HOME": str(tmp_path / "home")}
    code = "import fedgraft, sys; print(fedgraft.__file__); sys.argv = ['fedgraft', *sys.argv[1:]]; fedgraft.main()"
    for words in (["weights", "verify", "slim-ctmr-synthetic"], ["study", "explain", "quickstart"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env=environment,
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        assert str(tmp_path / "installed") in done.stdout.splitlines()[0]

"""What the program writes is its owner's alone, even for a person whose mask would let everybody read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.provision import Authority
from fedgraft.simulations.audit.checks import NOBODY
from fedgraft.simulations.audit.home.hospital import PRIVATE, Hospital, home_study
from fedgraft.simulations.engines.run import Hospitals, prepare, resume

_COLUMNS, _PATIENTS = 4, 40


def files_of_others(folder: Path) -> Iterator[str]:
    """A site's home, a run of two sites, and kits, each made under a mask that lets everybody read."""
    folder.chmod(0o755)
    study = home_study(_COLUMNS, PRIVATE | {"rounds": 1})
    with _open_mask():
        site = Hospital(folder / "home", study, range(_PATIENTS))
        site.greet()
        site.ask(1)
        site.restart()
        run = folder / "run"
        cohorts = dict.fromkeys(("north", "south"), site.config.cohort)
        prepare(study, Hospitals(cohorts, policies=dict.fromkeys(cohorts, site.config.policy)), run)
        resume(run, report=False)
        server = {"host": "localhost"}
        Authority(folder / "kits").provision(
            Consortium.model_validate({"name": "audit", "server": server, "sites": ["north"]})
        )
    for words, made in (
        ("a site's home", site.home),
        ("a run's folder", run),
        ("the coordinator's kits", folder / "kits"),
    ):
        if not any(made.iterdir()):
            yield NOBODY
        if found := [path.relative_to(made).as_posix() for path in (made, *made.rglob("*")) if _open(path)]:
            yield f"{words} is open to others: {', '.join(sorted(found)[:3])}"


def _open(path: Path) -> bool:
    return not path.is_symlink() and bool(path.stat().st_mode & 0o077)


@contextmanager
def _open_mask() -> Iterator[None]:
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)

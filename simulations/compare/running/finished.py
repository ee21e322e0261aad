"""What the sites of a finished run kept for themselves: its figures were of the model with these entries in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from fedgraft.client.runtime.visit.personal import kept_at_the_end
from fedgraft.common.models.weights import find
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.study import Study, read_study


def kept(study: Study, home: Path, site: str, tags: Tags, state: Arrays) -> dict[str, np.ndarray]:
    """What the site has in place of the aggregated entries, `state`, at the end of a run of this study in `home`."""
    return kept_at_the_end(home / "sites" / site / _own(study), study, tags, state)


def kept_there(ref: str, site: str, tags: Tags, state: Arrays) -> dict[str, np.ndarray]:
    """The same of the finished run that `ref` names; nothing where that is no run, or has no such site."""
    run = find(ref)
    there = (run / "study.yaml").is_file() and (run / "sites" / site).is_dir()
    return kept(read_study(run / "study.yaml")[0], run, site, tags, state) if there else {}


def kept_digest(ref: str) -> str:
    """SHA-256 of all that the sites of a finished run keep; of nothing where that is no run."""
    run, digest = find(ref), hashlib.sha256()
    if (run / "study.yaml").is_file():
        study, _ = read_study(run / "study.yaml")
        for path in sorted(run.glob(f"sites/*/{_own(study)}/**/*.[sj]*")):
            digest.update(f"{path.relative_to(run)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _own(study: Study) -> str:
    return f"local_state/{study.digest}"

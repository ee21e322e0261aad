"""Real sites with made-up patients in a short form of a study, and what an honest coordinator asks of them."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedgraft.client.attacks.attack_target import seen_at, shape
from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.masking.masked_upload import Sealer
from fedgraft.client.privacy.policy import Metrics, SitePolicy
from fedgraft.client.runtime.log import close
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.seeds import derive
from fedgraft.common.closed_form.moments import COVARIANCE, MEAN, FeatureMoments
from fedgraft.common.methods.memory.carried import going_down, sides_of
from fedgraft.common.methods.memory.given import MomentsSide, Taught, TeacherSide
from fedgraft.common.models.model import state_arrays
from fedgraft.common.protocol.instructions import AggregationGroups, Answer, Instruction
from fedgraft.common.protocol.routing import requires_source
from fedgraft.common.protocol.states import State
from fedgraft.common.secure_aggregation.summing import METRICS, TENSORS
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.plan import Gradient, Stage
from fedgraft.common.study.schedule import Step, schedule, split_at
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.keys import make_keys

VICTIM = "west"
"""The site that is lied to."""
WITNESS = "east"
"""Under secure aggregation: a site that is told the truth."""
_SITES = (WITNESS, "north", "south", VICTIM)
_CASES = 24
_ROUNDS = 2
_LOG = "site.log"
_TURNED_DOWN = "refusals"


def short(study: Study) -> Study:
    """The study with at most two rounds a stage and one step a visit: what is refused does not depend on either."""
    plan = [
        stage.model_copy(update={"rounds": min(stage.rounds, _ROUNDS), "local": _brief(stage)}) for stage in study.plan
    ]
    small = {"plan": [stage.model_dump() for stage in plan], "input": seen_at(study).input.model_dump()}
    return Study.model_validate(study.model_dump() | small)


def policy_for(study: Study, metrics: Metrics) -> SitePolicy:
    """A policy that allows the study, whatever it asks for."""
    asked = [getattr(getattr(stage.local, "private", None), "delta", None) for stage in study.plan]
    return SitePolicy(
        allow_non_dp=True,
        metrics=metrics,
        metrics_epsilon=50.0,
        metrics_lifetime=100.0,
        min_patients=1,
        epsilon_per_study=100.0,
        epsilon_lifetime=100.0,
        delta=min([delta for delta in asked if delta is not None], default=1e-5),
        sample_rate_max=1.0,
        steps_max=10**6,
        retain_statistics=True,
    )


class AuditedSites:
    """Four sites if the study has secure aggregation, else one; each in a folder of its own below `folder`.

    `local_model` is shared by all. Raises Refused if the study is not for such sites.
    """

    def __init__(self, study: Study, local_model: LocalModel, folder: Path, metrics: Metrics) -> None:
        self.study = study
        self.steps = tuple(step for step in schedule(study) if asked_of_hospitals(study, step))
        self.metrics = metrics
        self.number = 0
        """Of the last masked sum that was asked for."""
        self._model, self._folder = local_model, folder
        self.names = _SITES if study.secure_aggregation else (VICTIM,)
        for name in self.names:
            (folder / name).mkdir(parents=True)
        keys = make_keys(folder, self.names) if study.secure_aggregation else {}
        self._settings = {name: one.model_copy(update={"regroup": "never"}) for name, one in keys.items()}
        self.sites = {name: self.open(name) for name in self.names}
        self.nonces: dict[str, str] = {}
        self.greet()
        self.state = {key: array.copy() for key, array in state_arrays(local_model.model).items()}

    def greet(self) -> None:
        """A coordinator's first word to all sites. Raises Refused."""
        self.nonces = {name: site.greet().nonce for name, site in self.sites.items()}

    @property
    def shows_once(self) -> bool:
        """Whether policy lets figures out once in a study."""
        return self.metrics in ("noised", "suppressed")

    def place(self, name: str = VICTIM) -> Path:
        """A site's folder."""
        return self._folder / name

    def open(self, name: str = VICTIM, place: Path | None = None) -> Site:
        """The site as it starts with what lies in its folder, or in a copy of that. Raises RosterError."""
        mine, place = _cohort(self.study, name), place or self.place(name)
        guard = PrivacyGuard(
            self.study, policy_for(self.study, self.metrics), place, learning_patients(self.study, mine)
        )
        sealer = Sealer(self.study, self._settings[name], name, place) if self._settings else None
        return Site(self.study, mine, self._model, place, guard, sealer, sync=False)

    def ask(self, instruction: Instruction, name: str = VICTIM) -> Answer:
        """What the site answers."""
        return self.sites[name].visit(instruction)

    def honest(self, step: Step) -> Instruction:
        """What the study has for this step, with a new number under secure aggregation."""
        groups = None
        split = split_at(self.study, step)
        if self._settings:
            self.number += 1
            parts = [part for part, wanted in ((TENSORS, step.work), (METRICS, split is not None)) if wanted]
            groups = AggregationGroups(self.number, {part: dict(self.nonces) for part in parts})
        tensors = self.state | (self.auxiliary(step) if step.work else {})
        return Instruction(
            self.study.digest, step.exchange, step.stage, step.round, step.work, split, tensors, groups=groups
        )

    def auxiliary(self, step: Step) -> dict[str, np.ndarray]:
        """What comes beside the model in this step, of the right shape."""
        stage = self.study.plan[step.stage]
        on = self._model.ground(stage)
        found: dict[str, np.ndarray] = {}
        for side in sides_of(on):
            if isinstance(side, TeacherSide):
                state: State = Taught(self._model.any_teacher(stage))
            elif isinstance(side, MomentsSide):
                (size,), _ = side.down(on)["moments"][MEAN]
                released = {MEAN: np.zeros(size, np.float32), COVARIANCE: np.eye(size, dtype=np.float32)}
                state = FeatureMoments(released, {})
            else:
                state = side.begin_common(on, self.state)
            found |= going_down(on, side, state)
        return found

    def on_disk(self) -> dict[str, str]:
        """What the victim has on its disk, file by file with a digest of each, all but its log."""
        return written(self.place())

    def close(self) -> None:
        """Let go of the sites' logs."""
        for name in self.names:
            close(self.place(name))


def written(place: Path) -> dict[str, str]:
    """The files of a folder, each with a digest of what is in it, all but a site's log and files that are empty.

    Of a database the tables count, without those that only note what was turned down.
    """
    found = {}
    for folder, _, names in os.walk(place):
        for name in names:
            # Asked before and after every lie, where objects for paths took a tenth of all the time.
            path = os.path.join(folder, name)  # noqa: PTH118
            if name != _LOG and os.path.isfile(path) and os.path.getsize(path):  # noqa: PTH113, PTH202
                found[os.path.relpath(path, place).replace(os.sep, "/")] = _digest(Path(path))
    return dict(sorted(found.items()))


def _digest(path: Path) -> str:
    if path.suffix != ".sqlite":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        rows = [db.execute(f'SELECT * FROM "{name}"').fetchall() for name in tables if name != _TURNED_DOWN]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def asked_of_hospitals(study: Study, step: Step) -> bool:
    """Whether the step is for hospitals: work with public source data is for the source alone."""
    return not step.work or study.plan[step.stage].where != "source"


def _brief(stage: Stage) -> object:
    if not isinstance(stage.local, Gradient):
        return stage.local
    steps = (stage.local.heads_first or 0) + 1
    size = min(stage.local.batch_size, 8)
    return stage.local.model_copy(update={"epochs": None, "steps": steps, "batch_size": size})


def _cohort(study: Study, name: str) -> Cohort:
    """Made-up patients with one case each, in all splits; a source beside them if the study learns from one."""
    draw = torch.Generator().manual_seed(derive(0, name) % 2**31)
    inputs = torch.randn(_CASES, *shape(study), generator=draw)
    if isinstance(study.input, ImageInput):
        inputs = (inputs * 5000).round().clamp(-32768, 32767).to(torch.int16)
    at = torch.arange(_CASES)
    targets = {task.name: at % task.outputs for task in study.tasks}
    splits = {"train": at[:14], "val": at[14:19], "test": at[19:], "all": at}
    mine = Cohort(name, inputs, targets, tuple(map(str, range(_CASES))), splits, (), {})
    return replace(mine, source=replace(mine, name=f"{name} source")) if requires_source(study) else mine

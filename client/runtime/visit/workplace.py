"""A site's cases, and the model that they are fed to, in one study: loaded for a visit, entry by entry."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.tables.targets import known
from fedgraft.client.runtime.visit.received_state import ReceivedState
from fedgraft.client.training.microbatching import Microbatching
from fedgraft.client.training.model.features import Features
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.methods.memory.carried import in_place, personal
from fedgraft.common.protocol.instructions import TRUNK, Arrays, LastDigest
from fedgraft.common.protocol.routing import Routing, own, privacy_request, stays
from fedgraft.common.study.inputs import Split
from fedgraft.common.study.plan import Gradient, Recalibrate, Role, Stage
from fedgraft.common.study.stages.losses import looks_further
from fedgraft.common.study.study import Study


class Workplace:
    """What the steps of a visit share. The local model may be shared with other sites of the same process."""

    def __init__(
        self, study: Study, cohort: Cohort, local_model: LocalModel, folder: Path, *, keep_features: bool, noised: bool
    ) -> None:
        """`noised` says that figures leave with noise, whatever the study asks for."""
        self.study = study
        self.cohort = cohort
        self.local_model = local_model
        self.loader = Loader(cohort, study.input, local_model.device)
        source = cohort.source
        self.source = Loader(source, study.input, local_model.device) if source is not None else None
        self.received = ReceivedState(local_model)
        self.used: dict[str, np.ndarray] = {}
        """The entries that the model was last put together from."""
        self.alike = noised or any(privacy_request(stage) is not None for stage in study.plan)
        """Whether what is worked out of one case must not depend on others, not even in its last digit."""
        self.features = Features(self.loader, folder, study.digest, keep=keep_features, alike=self.alike)
        self._backbone = [key for key, tag in local_model.tags.items() if tag.role is not Role.HEAD]
        self._backbone_digest = LastDigest(local_model.digests)
        self._routings = {stage.name: Routing.of(stage, local_model.tags) for stage in study.plan}

    def labelled(self) -> dict[str, float]:
        """How many training cases have a known label: by task, and under `TRUNK` how many have any."""
        indices = self.loader.labelled("train")
        counts = {task.name: float(known(self.loader.targets(task.name, indices)).sum()) for task in self.study.tasks}
        return counts | {TRUNK: float(len(indices))}

    def routing(self, stage: Stage) -> Routing:
        """What a visit in this stage does with the model's entries."""
        if stage.name not in self._routings:  # a study that only measures has no stage of its own
            self._routings[stage.name] = Routing.of(stage, self.local_model.tags)
        return self._routings[stage.name]

    def own(self, stage: Stage | None, local_state: Arrays) -> dict[str, np.ndarray]:
        """The entries that the site has for itself and trains on in this stage, in place of the coordinator's."""
        tags = self.local_model.tags
        return {k: a for k, a in local_state.items() if stage is not None and k in tags and own(stage, tags, k)}

    def answering(self, stage: Stage | None, local_state: Arrays) -> None:
        """Put the model together with which the site answers after this stage."""
        mine = {} if stage is None else in_place(self.local_model.ground(stage), local_state, self.received.entries)
        self._put(mine)

    def recalibrate(self, stage: Stage) -> None:
        """Let norm statistics that `stage` moves be those of the site's own images, until a model is put in again."""
        tags = self.local_model.tags
        if statistics := [key for key in self.routing(stage).changed if tags[key].role is Role.NORM_STATS]:
            self.local_model.touched(statistics)
            Microbatching(self.local_model).recalibrate(self.loader, Recalibrate())

    def bare(self, worked: frozenset[int], stage: Stage | None) -> frozenset[str]:
        """Entries that `stage` takes from the site itself, if it has them, and that stages before computed bare.

        Bare is: from the site's data, without noise. Whether they are there is not looked at, since work that failed in
        silence leaves none, and what follows must not tell.
        """
        stages = [self.study.plan[index] for index in worked if index < len(self.study.plan)]
        tags = self.local_model.tags
        if stage is None:
            return frozenset()
        plain = [one for one in stages if privacy_request(one) is None and one.personalise != "best"]
        found = {key for one in plain for key in stays(one, tags)}
        bare = {key for key in found if own(stage, tags, key)}
        if personal(stage) and any(one.name == stage.name for one in stages):
            bare |= set(self.routing(stage).changed)
        return frozenset(bare)

    def load(self, stage: Stage | None, local_state: Arrays) -> None:
        """Put the model together: what the coordinator sent, and in its place what this site keeps for itself."""
        self._put(self.own(stage, local_state))

    def _put(self, mine: Arrays) -> None:
        self.used = {**self.received.entries, **mine}
        self.local_model.load(self.used)

    def through_backbone(self, split: Split) -> Loader:
        """The cases through the backbone that is loaded, as features."""
        backbone = {key: self.used[key] for key in self._backbone}
        return self.features.loader(self.local_model, self._backbone_digest.of(backbone), split)

    def training_cases(self, stage: Stage, local: Gradient) -> Loader:
        """The training cases: as features where the backbone is frozen, unless images are to be changed at random."""
        plain = local.augment is None and local.rollback is None and not looks_further(local.losses)
        frozen = self.routing(stage).frozen and plain and not self.local_model.model.decodes
        return self.through_backbone("train") if frozen else self.loader

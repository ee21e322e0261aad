"""A finished model, ready to be asked: from a run's folder, or any weights that have heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.inference.adapted_model import read_adapted
from fedgraft.client.inference.images import Picture
from fedgraft.client.runtime.visit.local_state import LocalState
from fedgraft.client.training.model.evaluate import predictions
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel, device_named
from fedgraft.client.training.recalibrate import recalibrate
from fedgraft.common.base.errors import InputError, WeightsError
from fedgraft.common.closed_form.ood import OodModel
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import find, load_manifest
from fedgraft.common.protocol.routing import own
from fedgraft.common.study.model_spec import BaseModelSpec, Model
from fedgraft.common.study.plan import (
    Recalibrate,
    Role,
    Stage,
    named,
)
from fedgraft.common.study.study import Study, read_study
from fedgraft.common.study.tasks import UNKNOWN, Regression, Task

_LATEST = 1 << 40


class Reader:
    """A model that answers for images. WeightsError if the weights have no heads, or are not for images.

    `site` is a simulated or deployed site's folder of a run: its own norm layers and heads then stand in for the
    aggregated ones. InputError if there is no such folder, or no run.
    """

    def __init__(self, ref: str, site: Path | None = None) -> None:
        manifest = load_manifest(ref)
        if manifest.input is None or not manifest.classes:
            raise WeightsError(f"{ref}: has no head, or is not for images.", fix="Name the folder of a finished run.")
        self.input = manifest.input
        self.tasks = tuple(Task(name=name, classes=classes) for name, classes in manifest.classes.items())
        adapt = Stage(name="adapt", local=Recalibrate(), keep=named("norm_stats"))
        base_models = tuple(BaseModelSpec(backbone=backbone) for backbone in manifest.base_models)
        model = Model(backbone=manifest.backbone, weights=str(find(ref)), heads="weights", base_models=base_models)
        # An ensemble was built for all its tasks; those of other kinds are not shown.
        self._others = manifest.tasks if base_models else ()
        tasks = (*self.tasks, *self._others)
        self.manifest = manifest
        self.study = Study(name="predict", tasks=tasks, input=manifest.input, model=model, plan=(adapt,))
        self.local_model = LocalModel(self.study, device_named("auto"))
        state = initialise(self.study).state()
        mine = _of_site(find(ref), site, self) if site is not None else {}
        self.local_model.load(state | mine)
        self.local_model.model.eval()
        self.ood_model = OodModel.read(find(ref), manifest.sha256)
        self.no_ood_because = (
            "" if self.ood_model else "the model brings no moments of its sites (method.ood_detection of the study)"
        )
        """Why it cannot be told which images are out of distribution for the training sites; "" if it can."""
        if self.ood_model is not None and any(self.local_model.tags[key].role is not Role.HEAD for key in mine):
            self.ood_model, self.no_ood_because = (
                None,
                "the site's own entries make other features than those described",
            )

    def loader(self, some: Sequence[Picture]) -> Loader:
        """Images as the model sees them; all are given."""
        stored = torch.from_numpy(np.stack([one.stored for one in some if one.stored is not None]))
        everything, nothing = torch.arange(len(stored)), torch.arange(0)
        targets = {task.name: torch.full((len(stored),), UNKNOWN) for task in self.tasks}
        for task in self._others:
            shape = (len(stored),) if isinstance(task, Regression) else (len(stored), task.outputs)
            targets[task.name] = torch.full(shape, torch.nan)
        splits = {"train": everything, "val": nothing, "test": nothing}
        patients = tuple(map(str, range(len(stored))))
        return Loader(Cohort("here", stored, targets, patients, splits, (), {}), self.input, self.local_model.device)

    def adapt(self, some: Sequence[Picture]) -> None:
        """Let norm layers take their statistics from these images (AdaBN). InputError for fewer than two."""
        if len(some) < 2:
            raise InputError("--adapt needs two images or more.")
        if self.study.model.base_models:
            raise InputError("An ensemble's base models are finished, and take no statistics from these images.")
        recalibrate(self.local_model, self.loader(some), Recalibrate())
        if self.ood_model is not None:
            self.ood_model, self.no_ood_because = (
                None,
                "--adapt makes it another model than the one that the sites described",
            )

    def distances(self, some: Sequence[Picture]) -> np.ndarray | None:
        """How far images are from those of the training sites, (N,); None if `no_ood_because` says why not."""
        if self.ood_model is None:
            return None
        (batch,) = self.loader(some).batches([torch.arange(len(some))])
        with torch.inference_mode():
            features = self.local_model.model.features(batch.inputs).double().cpu().numpy()
        return self.ood_model.distances(features)

    def shares(self, some: Sequence[Picture]) -> dict[str, np.ndarray]:
        """Probabilities (N, classes) by task, of N pictures."""
        logits = predictions(self.local_model, self.loader(some), "all", labelled=False)
        return {task.name: torch.from_numpy(logits[task.name][0]).softmax(1).numpy() for task in self.tasks}


def _of_site(run: Path, site: Path, reader: Reader) -> dict[str, np.ndarray]:
    """What the site has fitted to itself afterwards, or else what it keeps of the study."""
    local_model = reader.local_model
    if (adapted := read_adapted(site, reader.manifest.sha256)) is not None:
        return {key: array for key, array in adapted.items() if key in local_model.tags}
    if not (run / "study.yaml").is_file():
        raise InputError(f"{run}: has no study.yaml, so that a site's own entries cannot be found.")
    study, _ = read_study(run / "study.yaml")
    folder = site / "local_state" / study.digest[:16]
    if not folder.is_dir():
        raise InputError(f"{site}: keeps nothing of study {study.name}.", fix="Leave --site out.")
    kept = LocalState(folder).before(_LATEST)
    return {
        key: array
        for key, array in kept.items()
        if key in local_model.tags and own(study.plan[-1], local_model.tags, key)
    }

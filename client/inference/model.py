"""A finished model, ready to be asked: from a run's folder, or any weights that have heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.enrolment.config import read_site
from fedgraft.client.inference.adapted_model import read_adapted
from fedgraft.client.inference.cases import InputCase
from fedgraft.client.runtime.visit.personal import kept_at_the_end
from fedgraft.client.training.model.evaluate import BATCH, predictions
from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel, device_named
from fedgraft.client.training.recalibrate import recalibrate
from fedgraft.common.base.disk import understood
from fedgraft.common.base.errors import InputError, WeightsError
from fedgraft.common.closed_form.ood import OodModel
from fedgraft.common.models.backbones.merging import merged
from fedgraft.common.models.cluster_models import clusters_of, model_for
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.model import state_arrays
from fedgraft.common.models.weights import WeightsManifest, find, load_manifest
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.inputs import InputSpec
from fedgraft.common.study.model_spec import BaseModelSpec, Model
from fedgraft.common.study.plan import (
    Recalibrate,
    Role,
    Stage,
    named,
)
from fedgraft.common.study.study import Study, read_study
from fedgraft.common.study.tasks import UNKNOWN, Multilabel, Regression, Segmentation, Task

_COMPARABLE = (Role.HEAD, Role.SITE_EFFECTS)
"""Entries of a site's own with which its features are still comparable with those of others."""


class LoadedModel:
    """A model that answers for images, by the classes of its tasks. WeightsError if the weights have no such heads.

    With `everything` it answers for tables too, and for tasks of other kinds. `site` is a simulated or deployed site's
    folder of a run: its own norm layers and heads then stand in for the aggregated ones, and of a run with clusters of
    sites it is the model of its own. InputError if there is no such folder, or no run.
    """

    def __init__(self, ref: str, site: Path | None = None, *, everything: bool = False) -> None:
        if site is not None and clusters_of(find(ref)):
            ref = str(model_for(find(ref), read_site(site).name))
        self.ref = ref
        """The folder of the model, or the id of weights."""
        manifest = load_manifest(ref)
        given = manifest.input or (manifest.table if everything else None)
        if given is None or not (manifest.classes or (everything and manifest.tasks)):
            what = "" if everything else ", or is not for images"
            raise WeightsError(f"{ref}: has no head{what}.", fix="Name the folder of a finished run.")
        self.input: InputSpec = given
        with understood(find(ref) / "model.json", "the manifest of a model"):
            self._build(ref, manifest, given, everything=everything)
        self.local_model = LocalModel(self.study, device_named("auto"))
        state = initialise(self.study).state()
        mine = _of_site(find(ref), site, self, state) if site is not None else {}
        self.local_model.load(state | mine)
        self.local_model.model.eval()
        self.ood_model = OodModel.read(find(ref), manifest.sha256)
        self.no_ood_because = (
            "" if self.ood_model else "the model brings no moments of its sites (method.ood_detection of the study)"
        )
        """Why it cannot be told which images are out of distribution for the training sites; "" if it can."""
        if self.ood_model is not None and any(self.local_model.tags[key].role not in _COMPARABLE for key in mine):
            self.ood_model, self.no_ood_because = (
                None,
                "the site's own entries make other features than those described",
            )

    def _build(self, ref: str, manifest: WeightsManifest, given: InputSpec, *, everything: bool) -> None:
        """The study that the model is of, as far as its manifest tells."""
        self.tasks = tuple(Task(name=name, classes=classes) for name, classes in manifest.classes.items())
        adapt = Stage(name="adapt", local=Recalibrate(), keep=named("norm_stats"))
        base_models = tuple(BaseModelSpec(backbone=backbone) for backbone in manifest.base_models)
        model = Model(
            backbone=manifest.backbone,
            weights=str(find(ref)),
            heads="weights",
            base_models=base_models,
            adapters=manifest.adapters,
        )
        # An ensemble was built for all its tasks.
        self.others = manifest.tasks if everything or base_models else ()
        """Tasks of other kinds than classes."""
        tasks = (*self.tasks, *self.others)
        self.manifest = manifest
        code = manifest.plugins
        self.study = Study(name="predict", tasks=tasks, input=given, model=model, plan=(adapt,), plugins=code)

    def merge(self) -> None:
        """Put low-rank adapters into the entries that they add to: the same answers, from the plain network."""
        if (adapters := self.study.model.adapters) is None:
            return
        plain = merged(state_arrays(self.local_model.model), adapters.scale)
        model = self.study.model.model_copy(update={"adapters": None})
        self.study = self.study.model_copy(update={"model": model})
        self.local_model = LocalModel(self.study, self.local_model.device)
        self.local_model.load(plain)
        self.local_model.model.eval()

    def loader(self, some: Sequence[InputCase]) -> Loader:
        """Images as the model sees them; all are given."""
        return self.over(torch.from_numpy(np.stack([one.stored for one in some if one.stored is not None])))

    def over(self, stored: Tensor) -> Loader:
        """Inputs (N, ...) as a cohort stores them, of which no label is known, as the model sees them."""
        everything, nothing = torch.arange(len(stored)), torch.arange(0)
        targets = {task.name: torch.full((len(stored),), UNKNOWN) for task in self.tasks}
        for task in self.others:
            if isinstance(task, Segmentation):
                targets[task.name] = torch.full((len(stored), 1, 1), UNKNOWN)
                continue
            shape = (len(stored),) if isinstance(task, Regression) else (len(stored), task.outputs)
            targets[task.name] = torch.full(shape, torch.nan)
        splits = {"train": everything, "val": nothing, "test": nothing}
        patients = tuple(map(str, range(len(stored))))
        return Loader(Cohort("here", stored, targets, patients, splits, (), {}), self.input, self.local_model.device)

    def adapt(self, some: Sequence[InputCase]) -> None:
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

    def distances(self, some: Sequence[InputCase]) -> np.ndarray | None:
        """How far images are from those of the training sites, (N,); None if `no_ood_because` says why not."""
        if self.ood_model is None:
            return None
        (batch,) = self.loader(some).batches([torch.arange(len(some))])
        with torch.inference_mode():
            features = self.local_model.model.features(batch.inputs).double().cpu().numpy()
        return self.ood_model.distances(features)

    def shares(self, some: Sequence[InputCase]) -> dict[str, np.ndarray]:
        """Probabilities (N, classes) by task, of N pictures."""
        found = self.answers(self.loader(some))
        return {task.name: found[task.name] for task in self.tasks}

    def answers(self, loader: Loader) -> dict[str, np.ndarray]:
        """What the model says of all cases of a loader, by task, in float64, in which no answer is rounded to certain.

        Probabilities (N, classes), which add up to 1, or (N, labels); values (N,) in their unit; masks (N, H, W) of 0
        and 1 as `masks` gives them.
        """
        found = predictions(self.local_model, loader, "all", labelled=False)
        said: dict[str, np.ndarray] = {}
        for task in (*self.tasks, *self.others):
            logits = found[task.name][0].astype(np.float64)
            match task:
                case Task():
                    said[task.name] = softmax(logits, axis=1)
                case Multilabel():
                    said[task.name] = expit(logits)
                case Regression():
                    said[task.name] = logits
                case Segmentation():
                    said[task.name] = self.masks(loader, task.name)
                case _:
                    assert_never(task)
        return said

    def masks(self, loader: Loader, task: str) -> np.ndarray:
        """Masks (N, H, W) uint8 of all cases, at the size that the model sees: 1 where a pixel's logit is above 0."""
        drawn = []
        on_gpu = self.local_model.device.type == "cuda"
        # As `predictions` runs it, so that a mask is the one that figures are of.
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            for batch in loader.batches(in_order(loader.splits["all"], BATCH)):
                drawn.append((self.local_model.model(batch.inputs)[task] > 0).to(torch.uint8).cpu().numpy())
        return np.concatenate(drawn)


def _of_site(run: Path, site: Path, reader: LoadedModel, state: Arrays) -> dict[str, np.ndarray]:
    """What the site has fitted to itself afterwards, or else what it keeps of the study."""
    local_model = reader.local_model
    if (adapted := read_adapted(site, reader.manifest.sha256)) is not None:
        return {key: array for key, array in adapted.items() if key in local_model.tags}
    if not (run / "study.yaml").is_file():
        raise InputError(f"{run}: has no study.yaml, so that a site's own entries cannot be found.")
    study, _ = read_study(run / "study.yaml")
    folder = site / "local_state" / study.digest
    if not folder.is_dir() and study.clusters is not None:
        return {}  # its name has chosen the model
    if not folder.is_dir():
        raise InputError(f"{site}: keeps nothing of study {study.name}.", fix="Leave --site out.")
    return kept_at_the_end(folder, study, local_model.tags, state)

"""`fedgraft site embed`: features of a site's images, made once with local weights, for studies that begin there."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from fedgraft.client.data.cohorts.batches import stacked_inputs
from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.cohorts.scan import Scan, files_of, scan
from fedgraft.client.data.decoding.feature_files import EXTRACTOR, FEATURES
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.table import NOBODY
from fedgraft.client.enrolment.config import read_site
from fedgraft.client.governance.plugins import allowed_to_look
from fedgraft.client.training.model.evaluate import BATCH
from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel, device_named
from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import DataError, InputError, WeightsError
from fedgraft.common.base.files import write_atomic
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import WeightsManifest, load_manifest
from fedgraft.common.study.inputs import Extractor, ImageInput
from fedgraft.common.study.model_spec import Model
from fedgraft.common.study.plan import Recalibrate, Stage
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task

_PATIENT, _SPLIT = "patient", "split"
_KEYS = ("path", "study", "series", "sop")


def embed(home: Path, spec: CohortSpec | None, weights: str, out: Path) -> None:
    """Write the features of all images of a cohort, that of the site in `home` if none is given, and say how to use it.

    WeightsError for weights that are not for images; DataError if nothing can be used.
    """
    if out.suffix != ".npz" or out.exists():
        raise InputError(f"--out {out}: must be a new file NAME.npz.", fix="Choose another name.")
    demand_place(out)
    cohort = spec or read_site(home).cohort
    manifest = load_manifest(weights)
    if manifest.input is None:
        raise WeightsError(f"{weights}: are not for images.", fix="See `fedgraft weights list`.")
    with allowed_to_look(read_site(home).policy) if spec is None else nullcontext():
        found = scan(cohort, (), manifest.input, files_of(cohort))
        if not found.inputs:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(found.problems.items())) or "no files"
            raise DataError(f"{cohort.root}: nothing in it can be used ({reasons}).")
        features = _features(weights, manifest, manifest.input, stacked_inputs(found.inputs))
    extractor = extractor_of(manifest, manifest.input)
    write_atomic(out, _packed(features, extractor, found, cohort), private=True)
    say(f"{len(features):,} images: {features.shape[1]} features each in {out}; keep it as closed as the images")
    for reason, count in sorted(found.problems.items()):
        say(f"{reason.replace('_', ' ')}: {count}")
    say("The study's input, and the cohort of the site:")
    asked = {"kind": "features", "count": features.shape[1], "extractor": extractor.model_dump()}
    say(yaml.safe_dump({"input": asked, "cohort": _cohort(out, cohort)}, sort_keys=False, width=200))


def extractor_of(manifest: WeightsManifest, size: ImageInput) -> Extractor:
    """What is said of the features: the same at all sites that use the same weights."""
    prepared = f"fedgraft: square of {size.size} px, {size.channels} channels, {size.normalise}"
    if size.normalise == "fixed":
        mean, std = (" ".join(f"{one:.6g}" for one in numbers) for numbers in (size.mean, size.std))
        prepared += f", mean {mean}, std {std}"
    return Extractor(name=manifest.backbone, weights=manifest.sha256, preprocessing=prepared)


def _features(weights: str, manifest: WeightsManifest, size: ImageInput, stored: NDArray[Any]) -> NDArray[np.float32]:
    """Features (N, dim) of images as stored, always in full precision, so that two machines differ in last digits."""
    head = Task(classes=("no", "yes"))  # a model has one; it is never asked
    stage = Stage(name="adapt", local=Recalibrate())
    model = Model(backbone=manifest.backbone, weights=weights)
    study = Study(name="embed", tasks=(head,), input=size, model=model, plan=(stage,))
    local_model = LocalModel(study, device_named("auto"))
    local_model.load(initialise(study).state())
    local_model.model.eval()
    inputs, everything = torch.from_numpy(stored), torch.arange(len(stored))
    splits = {"train": everything, "val": everything[:0], "test": everything[:0]}
    cohort = Cohort("here", inputs, {}, tuple(map(str, range(len(stored)))), splits, (), {})
    batches = Loader(cohort, size, local_model.device).batches(in_order(everything, BATCH))
    with torch.inference_mode():
        parts = [local_model.model.features(batch.inputs).float().cpu() for batch in batches]
    return np.asarray(torch.cat(parts).numpy())


def _packed(features: NDArray[np.float32], extractor: Extractor, found: Scan, spec: CohortSpec) -> bytes:
    arrays: dict[str, NDArray[Any]] = {
        FEATURES: features,
        EXTRACTOR: np.array(json.dumps(extractor.model_dump())),
    }
    if spec.knows_patients:  # else each file would seem to be one whom somebody has named
        arrays[_PATIENT] = np.array(["" if patient == NOBODY else patient for patient in found.patients])
    for key in _KEYS:
        if any(column := [case.get(key, "") for case in found.keys]):
            arrays[key] = np.array(column)
    if found.splits:
        arrays[_SPLIT] = np.array(found.splits)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    return content.getvalue()


def _cohort(out: Path, spec: CohortSpec) -> dict[str, Any]:
    """The cohort whose file this is: labels are joined as those of the images were."""
    keys: Sequence[str] = ("labels", "key_column", "label_columns", "label_map", "missing", "missing_values")
    given = spec.model_dump(mode="json", include=set(keys), exclude_defaults=True)
    split = {"split_column": _SPLIT} if spec.split_column or spec.split_file or spec.kind == "npz" else {}
    patient = {"patient_column": _PATIENT} if spec.knows_patients else {}
    return {"kind": "features", "root": str(out), "join": spec.joined_by, **patient, **split, **given}

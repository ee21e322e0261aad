"""The site's first update without noise, made again as the site made it: nothing is sent, charged or put on record."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgraft.client.attacks.reconstruction import RECOGNISED_DB, Layer, found_cases, linear_inputs
from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients
from fedgraft.client.evidence.statement import Statement
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.runtime.log import close
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.evaluate import BATCH
from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.compression.changes import restored
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import load_weights
from fedgraft.common.protocol.instructions import Answer, Arrays, Instruction, Update
from fedgraft.common.protocol.routing import changed, privacy_request, releases_plainly
from fedgraft.common.study.inputs import InputSpec, TableInput
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.schedule import Step, schedule
from fedgraft.common.study.stages.aggregates import Standardise


@dataclass(frozen=True)
class FirstUpdate:
    """What the site received, and what it sent."""

    received: Arrays
    sent: Arrays
    as_logged: bool
    """Whether it is to the bit what the egress log says has left."""


class CannotRepeat(Exception):
    """Why there is no first update to attack, in words for a person."""


def first_update(statement: Statement, cohort: Cohort, local_model: LocalModel) -> FirstUpdate:
    """Do the work of the first gradient stage's first round again, in a folder that is thrown away. CannotRepeat."""
    study, tags = statement.study, local_model.tags
    step = next(
        (one for one in schedule(study) if one.work and isinstance(study.plan[one.stage].local, Gradient)), None
    )
    if step is None:
        raise CannotRepeat("the study trains by sums alone, and the attack is on gradients")
    stage = study.plan[step.stage]
    if privacy_request(stage) is not None:
        raise CannotRepeat("the first update left with noise")
    if not releases_plainly(stage, tags):
        raise CannotRepeat("nothing that was trained left in the first stage")
    if study.secure_aggregation:
        raise CannotRepeat("the first update left masked, so that nobody saw it alone")
    if (logged := statement.update(step.exchange)) is None:
        raise CannotRepeat("this site sent nothing in the first round of training")
    before = _received(statement, step, local_model)
    with tempfile.TemporaryDirectory() as scratch:
        answer = _visit(statement, cohort, local_model, before, step, Path(scratch))
    if not isinstance(answer, Update):
        raise CannotRepeat("the first round of training cannot be made again from the study and the model alone")
    digests = {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in answer.tensors.items()}
    exact = digests == {key: digest for key, (_, _, digest) in logged.tensors.items()}
    return FirstUpdate(before, restored(stage, tags, answer.tensors, before), exact)


def attack_update(update: FirstUpdate, cohort: Cohort, local_model: LocalModel, spec: InputSpec) -> dict[str, Any]:
    """How many training patients come back from it, and as a comparison how many of those held out. CannotRepeat."""
    local_model.load(update.received)
    local_model.model.eval()
    loader = Loader(cohort, spec, local_model.device)
    sides = {"found": loader.labelled("train"), "found_held_out": held_out_cases(loader)}
    counts = {name: len(_found(update, cohort, local_model, loader, cases)) for name, cases in sides.items()}
    patients = len({cohort.patients[case] for case in sides["found"].tolist()})
    facts = {"psnr_db": RECOGNISED_DB, "sees_inputs": isinstance(spec, TableInput), "as_logged": update.as_logged}
    return {**counts, "patients": patients, **facts}


def held_out_cases(loader: Loader) -> torch.Tensor:
    """Labelled cases of patients who were in no training: those of validation and test."""
    return torch.cat([loader.labelled("val"), loader.labelled("test")])


def _found(
    update: FirstUpdate, cohort: Cohort, local_model: LocalModel, loader: Loader, cases: torch.Tensor
) -> set[str]:
    """The patients of these cases who come back."""
    batches = [batch.inputs for batch in loader.batches(in_order(cases, BATCH))]
    layers = {}
    for name, inputs in linear_inputs(local_model.model, batches).items():
        change = [
            update.sent[key].astype(np.float64) - update.received[key]
            for key in (f"{name}.weight", f"{name}.bias")
            if key in update.sent
        ]
        if len(change) == 2:
            layers[name] = Layer(change[0], change[1], inputs)
    if not layers and len(cases):
        raise CannotRepeat("no linear layer with a bias was in it, which is what this attack reads")
    return {cohort.patients[int(cases[at])] for at in found_cases(layers)}


def _received(statement: Statement, step: Step, local_model: LocalModel) -> dict[str, np.ndarray]:
    """What came with the first round of training: as the study begins, but for what no gradient changes."""
    study, tags = statement.study, local_model.tags
    if any(not isinstance(stage.aggregate, Standardise) for stage in study.plan[: step.stage]):
        raise CannotRepeat("what came with the first round of training was made by an earlier stage, and is not kept")
    trained = {key for stage in study.plan for key in changed(stage, tags)}
    start, (_, final) = initialise(study).state(), load_weights(str(statement.run))
    # Column statistics of the sites stand in the model as they were when training began.
    return {key: final[key] if step.stage and key not in trained else array for key, array in start.items()}


def _visit(
    statement: Statement, cohort: Cohort, local_model: LocalModel, before: Arrays, step: Step, scratch: Path
) -> Answer:
    study, config = statement.study, statement.config
    guard = PrivacyGuard(
        study,
        config.policy,
        scratch,
        learning_patients(study, cohort),
        is_source=config.public_source,
        patients_known=config.cohort.knows_patients,
    )
    local_model.touched(local_model.tags)
    site = Site(study, cohort, local_model, scratch, guard, sync=False)
    tensors = {key: before[key] for key in local_model.tags}
    asked = Instruction(study.digest, step.exchange, step.stage, step.round, work=True, evaluate=None, tensors=tensors)
    try:
        return site.visit(asked)
    finally:
        close(scratch)

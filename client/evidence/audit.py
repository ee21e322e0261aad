"""A hospital's attacks on a model that it helped to train, with its own patients: it alone knows the right answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fedgraft.client.attacks.membership import FEWEST, Patients, by_likelihood_ratio, by_loss, per_patient, told_apart
from fedgraft.client.data.cohorts.cohort import Cohort, load_cohort
from fedgraft.client.enrolment.cohort_request import cohort_request
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.client.evidence.canary_trial import canary_trial
from fedgraft.client.evidence.first_update import (
    CannotRepeat,
    FirstUpdate,
    attack_update,
    first_update,
    held_out_cases,
)
from fedgraft.client.evidence.statement import Statement
from fedgraft.client.governance.plugins import allowed_to_look
from fedgraft.client.privacy.ledger.public_counts import coarse
from fedgraft.client.training.model.evaluate import BATCH
from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.model.task_losses import losses_by_case
from fedgraft.common.base.environment import code_digest, fedgraft_version
from fedgraft.common.base.errors import InputError
from fedgraft.common.evidence.audit_sheet import NOT_TESTED
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import load_weights
from fedgraft.common.study.tasks import Task

_ATTACKS = {"by loss": by_loss, "by likelihood ratio": by_likelihood_ratio}
_DECIMALS = 2


def audit(statement: Statement) -> dict[str, Any]:
    """What all attacks found, as an audit sheet holds it: figures alone, rounded, and no patient.

    InputError if the study trains nothing, PolicyError if the policy no longer allows its plug-ins.
    """
    if not statement.study.plan:
        raise InputError(f"{statement.run}: its study trains nothing, so nobody is in the model by it.")
    with allowed_to_look(statement.config.policy):
        return _attacked(statement)


def _attacked(statement: Statement) -> dict[str, Any]:
    study, config = statement.study, statement.config
    if config.threads:
        torch.set_num_threads(config.threads)
    manifest, state = load_weights(str(statement.run))
    cohort = load_cohort(config.name, config.cohort, cohort_request(config, study), place_of(config, study.digest))
    local_model = LocalModel(study, torch.device("cpu"))
    loader = Loader(cohort, study.input, local_model.device)
    # What only training needs, such as a domain discriminator, is not in the file, and changes no answer.
    local_model.load(initialise(study).state() | {key: state[key] for key in local_model.tags if key in state})
    rows = list(membership("the final model", patient_losses(local_model, loader, cohort)))
    try:
        update = first_update(statement, cohort, local_model)
        local_model.load({**update.received, **_entries(update, local_model)})
        rows += membership("the first update that left", patient_losses(local_model, loader, cohort))
        reconstruction = attack_update(update, cohort, local_model, study.input)
    except CannotRepeat as why:
        rows.append({"target": "the first update that left", "attack": "all", NOT_TESTED: str(why)})
        reconstruction = {NOT_TESTED: str(why)}
    exact = config.policy.metrics == "exact"
    return {
        "site": config.name,
        "study": study.digest,
        "study_name": study.name,
        "model": manifest.sha256,
        "fedgraft": fedgraft_version(),
        "code": code_digest(),
        "patients": patient_counts(loader, cohort, exact=exact),
        "membership": rows,
        "reconstruction": reconstruction if exact else _coarse(reconstruction),
        "canaries": canary_trial(statement),
    }


def membership(target: str, patients: Patients) -> Iterator[dict[str, Any]]:
    """A row of the sheet for each attack on who was in training; `target` names the model in words."""
    for attack, score in _ATTACKS.items():
        told = told_apart(score(patients), patients.member)
        row: dict[str, Any] = {"target": target, "attack": attack}
        if told is None:
            yield row | {NOT_TESTED: f"fewer than {FEWEST} patients with labels in training, or held out"}
            continue
        yield row | {
            "auc": round(told.auc, _DECIMALS),
            "auc_interval": _rounded(told.auc_interval),
            "tpr": round(told.share, _DECIMALS + 1),
            "tpr_interval": _rounded(told.share_interval, 1),
            "fpr": round(told.false_positives, _DECIMALS + 1),
            "fpr_interval": _rounded(told.false_positives_interval, 1),
            "finds_members": told.finds,
        }


def patient_losses(local_model: LocalModel, loader: Loader, cohort: Cohort) -> Patients:
    """The losses of the model that is loaded, patient by patient."""
    train, held_out = loader.labelled("train"), held_out_cases(loader)
    cases = torch.cat([train, held_out])
    local_model.model.eval()
    losses: list[float] = []
    with torch.inference_mode():
        for batch in loader.batches(in_order(cases, BATCH)):
            answers = local_model.model(batch.inputs)
            each = losses_by_case(answers, batch.targets, local_model.tasks)
            losses += each.double().nan_to_num(0.0, 700.0, 700.0).tolist()
    first = next(iter(local_model.tasks.values()))
    groups = loader.targets(first.name, cases).tolist() if isinstance(first, Task) else [0] * len(cases)
    names = [cohort.patients[case] for case in cases.tolist()]
    return per_patient(losses, groups, names, [at < len(train) for at in range(len(cases))])


def _entries(update: FirstUpdate, local_model: LocalModel) -> dict[str, Any]:
    """What of an update are entries of the model."""
    return {key: array for key, array in update.sent.items() if key in local_model.tags}


def patient_counts(loader: Loader, cohort: Cohort, *, exact: bool) -> dict[str, Any]:
    """How many patients were in training and how many held out, coarse unless `exact`."""
    counted = {
        name: len({cohort.patients[case] for case in cases.tolist()})
        for name, cases in (("members", loader.labelled("train")), ("held_out", held_out_cases(loader)))
    }
    return {**(counted if exact else {name: coarse(n) for name, n in counted.items()}), "coarse": not exact}


def _coarse(found: dict[str, Any]) -> dict[str, Any]:
    """The same without the exact number of patients, where policy lets none out."""
    return found | {"patients": coarse(found["patients"])} if "patients" in found else found


def _rounded(interval: tuple[float, float], more: int = 0) -> list[float]:
    return [round(end, _DECIMALS + more) for end in interval]

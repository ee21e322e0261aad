"""What leaves without noise can be inverted: shown on the study's own model, stage by stage."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgraft.client.attacks.attack_target import (
    CPU,
    NOW,
    ExampleCases,
    loader_of,
    shape,
)
from fedgraft.client.attacks.measurement import Measurement
from fedgraft.client.attacks.reconstruction import psnr
from fedgraft.client.training.gradient import train
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.statistics import column_sums, feature_sums
from fedgraft.common.protocol.routing import sent
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.plan import (
    Gradient,
    Role,
    Stage,
    Statistics,
)
from fedgraft.common.study.study import Study

_BOUND_DB = 10.0
_PATIENTS = 24


def invert(study: Study, stage: Stage) -> Measurement:
    """How well the attacker gets one patient's numbers out of what this stage sends, as PSNR in dB."""
    local_model, people = LocalModel(study, CPU), _people(study)
    local_model.model.eval()
    if isinstance(stage.local, Statistics) and stage.local.of == "distances":
        words = "two answers tell how far a patient's image is from the mean; no attack is built in that finds more"
        return Measurement(float("inf"), _BOUND_DB, words)
    if isinstance(stage.local, Statistics) and stage.local.survival is not None:
        words = "a patient's bin of time and event, of hazards the features too, are the difference of two answers"
        return Measurement(float("inf"), _BOUND_DB, words)
    if isinstance(stage.local, Statistics) and stage.local.of in ("base_models", "answers"):
        words = "losses leave without noise: a case's is the difference of two answers; no attack on these is built in"
        return Measurement(float("inf"), _BOUND_DB, words)
    if isinstance(stage.local, Statistics):
        return _two_answers(study, stage.local, local_model, people)
    heads = [key for key in sent(stage, local_model.tags) if local_model.tags[key].role is Role.HEAD]
    if not heads:
        words = "trained entries leave without noise; no attack on these is built in, which is no reason for trust"
        return Measurement(float("inf"), _BOUND_DB, words)
    return _one_patient(study, local_model, people, heads)


def _one_patient(study: Study, local_model: LocalModel, people: ExampleCases, heads: list[str]) -> Measurement:
    """One step on one patient, by the study's own heads: their gradient gives the features away.

    More steps on more patients, as the study may ask for, blur this; they bound nothing.
    """
    one = people.only(torch.tensor([0]))
    loader = loader_of(study, one)
    task = str(local_model.tags[heads[0]].task)
    truth = _features(local_model, loader)[0]
    before = local_model.read(heads)
    spec = Gradient(steps=1, batch_size=1, optimiser="sgd", momentum=0.0, lr=1.0)
    train(local_model, loader, spec, heads, NOW)
    change = {key: torch.from_numpy(before[key] - array).double() for key, array in local_model.read(heads).items()}
    weight, bias = change[f"heads.{task}.weight"], change[f"heads.{task}.bias"]
    row = int(bias.abs().argmax())
    quality = psnr(weight[row] / bias[row], truth)
    what = "columns" if len(truth) == shape(study)[0] else "features"
    return Measurement(quality, _BOUND_DB, f"a patient's {len(truth)} {what} come out of one step at {quality:.0f} dB")


def _two_answers(study: Study, local: Statistics, local_model: LocalModel, people: ExampleCases) -> Measurement:
    """The same sums before and after a patient came: the patient is their difference."""
    whole, rest = loader_of(study, people), loader_of(study, people.only(torch.arange(1, len(people))))
    if local.of in ("columns", "harmonisation"):
        truth, what = people.inputs[0].double(), "columns"
        found = torch.from_numpy(column_sums(study, whole)["sum"] - column_sums(study, rest)["sum"])
        if local.of == "harmonisation" and isinstance(study.input, TableInput):  # which sends the sums of these alone
            at = list(study.input.harmonised.values())
            truth, found = truth[at], found[at]
    else:
        truth, what = _features(local_model, whole)[0].double(), "features"
        gram = f"{study.tasks[0].name}/gram"
        found = torch.from_numpy(feature_sums(local_model, whole)[gram] - feature_sums(local_model, rest)[gram])[
            -1, :-1
        ]
    quality = psnr(found, truth)
    words = f"a patient's {len(truth)} {what} are the difference of two answers, at {quality:.0f} dB"
    return Measurement(quality, _BOUND_DB, words)


def _features(local_model: LocalModel, loader: Loader) -> Tensor:
    local_model.model.eval()
    with torch.inference_mode():
        (batch,) = loader.batches([loader.splits["train"]])
        return local_model.model.features(batch.inputs)


def _people(study: Study) -> ExampleCases:
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(_PATIENTS, *shape(study), generator=draw)
    return ExampleCases(inputs, torch.arange(_PATIENTS), tuple(map(str, range(_PATIENTS))))

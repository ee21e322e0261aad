"""Private training as an outsider sees it: what the optimiser is given, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedgraft.client.attacks.attack_target import watched
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.study.plan import Gradient, Role
from fedgraft.common.study.stages.training import Private
from helpers.work import CPU, NOW, cohort, images

MakeModel = Callable[..., tuple[LocalModel, Loader]]


def private_work(steps: int = 1, **changes: Any) -> Gradient:
    """Private work by plain SGD; keys of `Private` are taken as such, all others are those of `Gradient`.

    The rate may be 0, so that one visit tells nothing to the next.
    """
    rate = changes.pop("lr", 1e-3)
    own = {key: changes.pop(key) for key in tuple(changes) if key in Private.model_fields}
    private = Private(
        **({"noise_multiplier": 1.0, "max_grad_norm": 1.0, "sample_rate": 1.0, "expected_units": 21} | own)
    )
    base = {"batch_size": 5, "optimiser": "sgd", "momentum": 0.0, "fixed_norm_stats": True}
    return Gradient(steps=steps, private=private, **(base | changes)).model_copy(update={"lr": rate})


def quiet(**changes: Any) -> Gradient:
    """Noise too small to be seen, so that what it is added to can be; the model stays as it is."""
    return private_work(**({"noise_multiplier": 1e-9, "lr": 0.0} | changes))


def trainable(local_model: LocalModel) -> list[str]:
    return [key for key, tag in local_model.tags.items() if tag.role is not Role.NORM_STATS]


def loader_of(like: Loader, inputs: Tensor, labels: Tensor) -> Loader:
    """A site of these cases, all for training; `inputs` are what the model sees."""
    made = Loader(cohort(images(len(inputs))[0], {"cls": labels}), like._spec, CPU)
    made._inputs = inputs
    return made


def sums(
    local_model: LocalModel, loader: Loader, patients: Sequence[str], spec: Gradient, keys: Sequence[str] = ()
) -> Tensor:
    """The noised sums of a visit's steps, (steps, coordinates), with the division by the expected batch undone."""
    assert spec.private is not None
    assert spec.private.expected_units is not None
    with watched() as seen:
        train_private(local_model, loader, patients, spec, keys or trainable(local_model), NOW)
    return torch.stack(seen) * (spec.private.sample_rate * spec.private.expected_units)

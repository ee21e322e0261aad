"""A small network on tables as its equations have it, in double precision: what runs with `table_mlp` must follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.base.files import load_tensors
from fedgraft.common.models.initialise import initialise
from fedgraft.common.study.study import Study
from helpers.tables import Trial

Net = dict[str, Tensor]
MODEL = {"model": {"backbone": "table_mlp", "weights": None}}


def net(state: Mapping[str, np.ndarray]) -> Net:
    """The parameters among a state's entries."""
    return {key: torch.tensor(array, dtype=torch.float64) for key, array in state.items() if "standardise" not in key}


def first(asked: Study) -> Net:
    """What a run begins with."""
    return net(initialise(asked).state())


def last(run: Path) -> Net:
    """What a run ended with."""
    return net(load_tensors(run / "model.safetensors"))


def features(w: Net, x: Tensor) -> Tensor:
    hidden = torch.relu(x @ w["backbone.layers.0.weight"].T + w["backbone.layers.0.bias"])
    return torch.relu(hidden @ w["backbone.layers.2.weight"].T + w["backbone.layers.2.bias"])


def answers(w: Net, x: Tensor) -> Tensor:
    return features(w, x) @ w["heads.cls.weight"].T + w["heads.cls.bias"]


def labels_loss(w: Net, x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(answers(w, x), y)


def cases(t: Trial) -> dict[str, tuple[Tensor, Tensor]]:
    """By site the standardised columns and the classes of its training cases."""
    return {site: (torch.tensor(z[:, :-1]), torch.tensor(y.argmax(1))) for site, (z, y) in t.cases.items()}


def slopes(w: Net, loss: Callable[[Net], Tensor]) -> Net:
    leaves = {key: value.clone().requires_grad_(True) for key, value in w.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True)
    return {k: torch.zeros_like(w[k]) if g is None else g for k, g in zip(leaves, found, strict=True)}


def descended(w: Net, loss: Callable[[Net], Tensor], steps: int, lr: float) -> Net:
    """After so many plain steps."""
    for _ in range(steps):
        g = slopes(w, loss)
        w = {key: w[key] - lr * g[key] for key in w}
    return w


def mean(nets: list[Net], weights: np.ndarray) -> Net:
    return {key: sum(float(p) * one[key] for p, one in zip(weights, nets, strict=True)) for key in nets[0]}  # type: ignore[misc]


def apart(one: Net, other: Net) -> float:
    """The largest difference of any number."""
    return max(float((one[key] - other[key]).abs().max()) for key in one)

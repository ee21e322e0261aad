"""What a linear layer's change gives away of the cases that it was trained on.

Row k of the gradient of its weights is a mean of inputs, weighted by entry k of the bias's gradient: where one case
outweighs all others, the quotient of the two is that case. The differences of neighbouring rows are tried as well,
since a layer that sorts cases has each in one of them (Fowl et al. 2021, "Robbing the Fed").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RECOGNISED_DB = 25.0
"""From this PSNR on a case counts as found."""
_BEST_DB = 200.0
_MOST = 2048
"""Of so many rows and cases at most: what is quick enough for a hospital's machine."""


@dataclass(frozen=True)
class Layer:
    """A linear layer: what its weights (outputs, inputs) and biases (outputs,) changed by, and what went in."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    inputs: NDArray[np.float64]
    """(cases, inputs)."""


def psnr(found: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, at most 200. Values that cannot be are brought into range, as anybody would."""
    low, high = float(truth.min()), float(truth.max())
    error = float((found.nan_to_num(low, high, low).clamp(low, high).double() - truth.double()).square().mean())
    span = high - low or 1.0
    return min(_BEST_DB, 10 * math.log10(span**2 / error)) if error > 0 else _BEST_DB


def found_cases(layers: Mapping[str, Layer]) -> set[int]:
    """Positions of the cases that come back from a layer at 25 dB or more, over all layers."""
    found: set[int] = set()
    for layer in layers.values():
        guesses = _guesses(layer)
        for at, truth in enumerate(layer.inputs[:_MOST]):
            low, high = truth.min(), truth.max()
            if len(guesses) and high > low:
                errors = np.square(guesses.clip(low, high) - truth).mean(axis=1)
                if errors.min() <= (high - low) ** 2 / 10 ** (RECOGNISED_DB / 10):
                    found.add(at)
    return found


def _guesses(layer: Layer) -> NDArray[np.float64]:
    """What each row, and each difference of neighbours, would be of if it were of one case."""
    weight, bias = layer.weight[:_MOST], layer.bias[:_MOST]
    weight = np.vstack([weight, weight[1:] - weight[:-1]])
    bias = np.concatenate([bias, bias[1:] - bias[:-1]])
    usable = np.abs(bias) > 1e-12
    quotients: NDArray[np.float64] = weight[usable] / bias[usable, None]
    return quotients[np.isfinite(quotients).all(axis=1)]


def linear_inputs(model: torch.nn.Module, batches: list[Tensor]) -> dict[str, NDArray[np.float64]]:
    """By name, what goes into each linear layer with a bias that is run once per case: (cases, inputs)."""
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear) and part.bias is not None:

            def keep(_part: torch.nn.Module, given: tuple[Tensor, ...], _out: Tensor, name: str = name) -> None:
                seen.setdefault(name, []).append(given[0].detach().double().cpu())

            hooks.append(part.register_forward_hook(keep))
    try:
        with torch.inference_mode():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    cases = sum(map(len, batches))
    joined = {name: torch.cat(parts).numpy() for name, parts in seen.items() if all(p.ndim == 2 for p in parts)}
    return {name: inputs for name, inputs in joined.items() if len(inputs) == cases}

"""The layers of which each case's gradient is known, and Opacus's hooks for them. Opacus trains in this file alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from fedgraft.client.privacy.dp.gradients.private_layers import convolution, fixed_norm

SAMPLERS: Mapping[type[nn.Module], Any] = {
    **{layer: GradSampleHooks.GRAD_SAMPLERS[layer] for layer in (nn.Linear, nn.GroupNorm, nn.LayerNorm)},
    nn.Conv2d: convolution,
    nn.BatchNorm1d: fixed_norm,
    nn.BatchNorm2d: fixed_norm,
}
"""Each takes a layer, its inputs and the gradient at its output, and gives (cases, ...) by parameter."""


class KeptHooks(GradSampleHooks):  # type: ignore[misc]  # Opacus has no types
    """Opacus looks away from layers in eval; ours are there because their statistics are fixed, and may still learn."""

    GRAD_SAMPLERS: ClassVar[Mapping[type[nn.Module], Any]] = SAMPLERS

    def capture_activations_hook(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Hold on to what the layer sees."""
        was, module.training = module.training, True
        super().capture_activations_hook(module, inputs, output)
        module.training = was

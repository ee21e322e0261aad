"""Clipped gradients of units, summed, in one pass backwards (Bu et al. 2023, "Differentially private optimization on
small and large models"): what a layer saw and what came back to it give the units' norms, and, weighted, the sum.

The very numbers that are summed are those that were measured. A second pass with weighted losses is another
calculation: models can be made for which its gradients are longer than those whose norms the first pass found.
The sum is looked at afterwards (`checked_sums`), since single precision can make more of what cancels than was there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from fedgraft.client.privacy.dp.gradients import checked_sums, patch_products
from fedgraft.client.privacy.dp.gradients.hooks import SAMPLERS
from fedgraft.client.privacy.dp.gradients.lengths import at_least_norms
from fedgraft.client.privacy.dp.gradients.patches import patches
from fedgraft.client.privacy.dp.units import Rows
from fedgraft.common.base.errors import InputError

_CANCEL = 1000.0
"""A gradient whose parts cancel to less than a thousandth of their lengths' sum counts as this thousandth: of what is
left then, single precision knows little."""

_LOST = 2.0**-126
"""Smaller numbers lose digits in single precision, or are 0 on some devices."""

_FEW_PLACES = 32


class UnitPart(Protocol):
    """The gradients of one parameter, of all units at once."""

    @property
    def parameter(self) -> Tensor:
        """Whose they are."""

    def norms(self, clip: float) -> Tensor:
        """At least each unit's norm, (units,) in float64; infinite or no number for a unit that is to count as none."""

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """The sum over the units of their gradients times `factors` (units,); units of factor 0 are not looked at."""

    def squared_error(self, factors: Tensor, summed: Tensor) -> Tensor:
        """How far `summed` is from what `weighted_sum` should be, by what is not bounded anyway; its square."""

    def exact_sum(self, factors: Tensor) -> Tensor:
        """What `weighted_sum` should be, in double precision."""


@dataclass(frozen=True)
class OfCases:
    """What a pass knows of one parameter's gradients, case by case: they themselves, or what gives them."""

    parameter: Tensor
    layer: nn.Conv2d | nn.Linear | None
    """Of gradients that are not made: the layer, whose inputs and what came back to it are in `known`."""
    known: tuple[Tensor, ...]
    """Each (cases, ...)."""

    def first(self, cases: int) -> OfCases:
        """The same of the first `cases`."""
        return OfCases(self.parameter, self.layer, tuple(own[:cases] for own in self.known))

    @staticmethod
    def joined(passes: Sequence[OfCases]) -> OfCases:
        """What several passes know of one parameter, all their cases in a row."""
        if len(passes) == 1:
            return passes[0]
        known = tuple(torch.cat(own) for own in zip(*(one.known for one in passes), strict=True))
        return OfCases(passes[0].parameter, passes[0].layer, known)

    def of_units(self, rows: Rows) -> UnitPart:
        """The gradients of the units that the cases belong to."""
        if self.layer is None:
            return Kept(self.parameter, rows.by_unit(self.known[0]), rows.of)
        inputs, backprops = self.known
        return Factored(self.layer, inputs, backprops, rows)


@dataclass(frozen=True)
class Kept:
    """Gradients (units, ...) that were made one by one."""

    parameter: Tensor
    gradients: Tensor
    of: int
    """How many units are in the step."""

    def norms(self, clip: float) -> Tensor:  # noqa: ARG002
        """See `at_least_norms`."""
        return at_least_norms(self.gradients.flatten(1))

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Those of factor 0 are left out."""
        used = _used(factors)
        return checked_sums.sum_of(factors[used], self.gradients[used], self.of)

    def squared_error(self, factors: Tensor, summed: Tensor) -> Tensor:  # noqa: ARG002
        """None: there are too few summands, and none is longer than the clip."""
        return summed.new_zeros((), dtype=torch.float64)

    def exact_sum(self, factors: Tensor) -> Tensor:
        """See `weighted_sum`."""
        return self.weighted_sum(factors)


@dataclass(frozen=True)
class Factored:
    """Gradients sum_t b_t a_t' of a weight, t over places and over a unit's cases, that are never made one by one."""

    layer: nn.Conv2d | nn.Linear
    inputs: Tensor
    backprops: Tensor
    rows: Rows

    @property
    def parameter(self) -> Tensor:
        """The layer's weight."""
        return self.layer.weight

    def norms(self, clip: float) -> Tensor:
        """From |sum_t b_t a_t'|^2 = sum_{t,s} (a_t a_s)(b_t b_s), in float64 since squares of small numbers are 0.

        More where numbers too small for single precision could come to a thousandth of `clip`, and infinite at twice
        that: a step between the two would let last digits decide.
        """
        products_a = self._products_seen()
        b = _of_units(self._came.double(), self.rows)
        products_b = b.mT @ b
        long_a, long_b = (products.diagonal(dim1=2, dim2=3).sqrt() for products in (products_a, products_b))
        squares = (products_a.flatten(1)[:, None] @ products_b.flatten(1)[:, :, None]).flatten()
        parts = (long_a * long_b).sum(dim=(1, 2))
        inputs, outputs = self.layer.weight[0].numel(), b.shape[2]
        small = math.sqrt(outputs) * long_a.sum(dim=(1, 2)) + math.sqrt(inputs) * long_b.sum(dim=(1, 2))
        norms = torch.maximum(squares.clamp(min=0).sqrt(), parts / _CANCEL)
        return norms / (2 - _LOST * small / (clip / 1000)).clamp(0, 1)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """What came back times the factors, with what was seen: no unit's gradient is made."""
        by_case = factors[self.rows.unit.to(factors.device)]
        used = _used(by_case)
        weights = by_case[used].to(self.backprops)
        if self._kept is not None:
            came = self._came[used] * weights.view(-1, 1, 1, 1)
            return torch.einsum("ngot,ngit->goi", came, self._kept[used]).reshape(self.layer.weight.shape)
        return self._summed(self.inputs[used], self.backprops[used], weights)

    def squared_error(self, factors: Tensor, summed: Tensor) -> Tensor:
        """See `checked_sums.squared_error`."""
        by_case = factors[self.rows.unit.to(factors.device)]
        used = _used(by_case)
        if not bool(by_case.any()):
            return by_case.new_zeros(())
        return checked_sums.squared_error(self.layer, self.inputs[used], self._came[used], by_case[used], summed)

    def exact_sum(self, factors: Tensor) -> Tensor:
        """Twice to many times as slow."""
        by_case = factors[self.rows.unit.to(factors.device)].double()
        used = _used(by_case)
        return self._summed(self.inputs[used].double(), self.backprops[used].double(), by_case[used])

    def _summed(self, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
        b = b * weights.view(-1, *[1] * (b.ndim - 1))
        if isinstance(self.layer, nn.Linear):
            return b.flatten(0, -2).T @ a.flatten(0, -2)
        conv = self.layer
        assert not isinstance(conv.padding, str)
        how = (conv.stride, conv.padding, conv.dilation, conv.groups)
        summed: Tensor = conv2d_weight(a, conv.weight.shape, b, *how)  # type: ignore[no-untyped-call]
        return summed

    def _products_seen(self) -> Tensor:
        """Of all that a unit's places saw the products with each other, (units, groups, places, places) in float64."""
        if isinstance(self.layer, nn.Conv2d) and self._kept is None:
            (height, width), places = self.inputs.shape[2:], self.backprops.shape[2:].numel()
            if patch_products.are_worth_it(self.layer, height * width, places, self.rows.may_have):
                pixels = _of_units(_by_group(self.layer, self.inputs.double(), self.layer.in_channels), self.rows)
                return patch_products.of_pixels(self.layer, pixels, height, width)
        seen = _seen_by_weights(self.layer, self.inputs) if self._kept is None else self._kept
        a = _of_units(seen.double(), self.rows)
        return a.mT @ a

    @cached_property
    def _kept(self) -> Tensor | None:
        """What the weights of a convolution with few places see, from the norms to the sum: for those a product of it
        is faster than torch's own function, and it is small."""
        few = isinstance(self.layer, nn.Conv2d) and self.backprops.shape[2:].numel() <= _FEW_PLACES
        return _seen_by_weights(self.layer, self.inputs) if few else None

    @cached_property
    def _came(self) -> Tensor:
        """What came back, (cases, groups, outputs of a group, places)."""
        return _by_group(self.layer, self.backprops, self.layer.weight.shape[0])


class Tape:
    """What the layers that learn see while it is attached to a model."""

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        trained = set(map(id, parameters))
        self._seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._handles = [
            part.register_forward_hook(self._see)
            for part in model.modules()
            if any(id(parameter) in trained for parameter in part.parameters(recurse=False))
        ]

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        if layer in self._seen:
            raise InputError(f"A {type(layer).__name__} that is used twice is not known.", fix="Use mode: hooks.")
        self._seen[layer] = inputs[0].detach(), output

    def gradients(self, losses: Tensor, weights: Tensor, cases: int = 1) -> list[OfCases]:
        """Those of `losses` (cases,) times `weights` (cases,), case by case, in the parameters' order.

        A unit may have so many `cases`: that, and not how many one has, says which gradients are made.
        """
        seen, self._seen = self._seen, {}
        outputs = [output for _, output in seen.values()]
        backprops = torch.autograd.grad(losses, outputs, weights, allow_unused=True)
        found: dict[int, OfCases] = {}
        for (layer, (inputs, output)), came in zip(seen.items(), backprops, strict=True):
            backprop = torch.zeros_like(output) if came is None else came
            for part in _parts(layer, inputs, backprop, cases):
                found[id(part.parameter)] = part
        return [found[id(parameter)] for parameter in self._parameters]

    def cleanup(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        self._seen.clear()


def _parts(layer: nn.Module, inputs: Tensor, backprops: Tensor, cases: int) -> Iterator[OfCases]:
    """The gradients of a layer's parameters, as far as these learn."""
    products = isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.requires_grad
    if isinstance(layer, nn.Conv2d | nn.Linear) and products and _are_long(layer, inputs, backprops, cases):
        yield OfCases(layer.weight, layer, (inputs, backprops))
        if layer.bias is not None and layer.bias.requires_grad:
            sums = _by_group(layer, backprops, layer.bias.numel()).flatten(1, 2).sum(dim=2)
            yield OfCases(layer.bias, None, (sums,))
        return
    for parameter, gradients in SAMPLERS[type(layer)](layer, [inputs], backprops).items():
        if parameter.requires_grad:
            yield OfCases(parameter, None, (gradients,))


def _are_long(layer: nn.Conv2d | nn.Linear, inputs: Tensor, backprops: Tensor, cases: int) -> bool:
    """Whether the units' gradients are longer than the products from which their norms follow without them."""
    places = backprops[0].numel() // layer.weight.shape[0]
    if isinstance(layer, nn.Conv2d) and patch_products.beat_gradients(layer, inputs[0, 0].numel(), places, cases):
        return True
    seen, outputs = layer.weight[0].numel(), layer.weight.shape[0] // _groups(layer)
    return 2 * places * cases * (seen + outputs) < seen * outputs


def _groups(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def _by_group(layer: nn.Conv2d | nn.Linear, values: Tensor, channels: int) -> Tensor:
    """A layer's inputs or outputs (cases, ...) as (cases, groups, channels of a group, places)."""
    if isinstance(layer, nn.Linear):
        return values.reshape(len(values), -1, channels).mT[:, None]
    return values.reshape(len(values), layer.groups, channels // layer.groups, -1)


def _seen_by_weights(layer: nn.Conv2d | nn.Linear, inputs: Tensor) -> Tensor:
    """What each place's outputs are made of, (cases, groups, inputs of an output, places)."""
    if isinstance(layer, nn.Linear):
        return _by_group(layer, inputs, layer.in_features)
    return patches(layer, inputs)


def _of_units(by_case: Tensor, rows: Rows) -> Tensor:
    """The places of a unit's cases side by side, (units, groups, channels, places); zeros where it has fewer cases."""
    if rows.alone and len(by_case) == rows.units:
        return by_case
    wide = by_case.new_zeros((rows.units, rows.most, *by_case.shape[1:]))
    wide[rows.unit.to(by_case.device), rows.nth.to(by_case.device)] = by_case
    return wide.permute(0, 2, 3, 1, 4).flatten(3)


def _used(factors: Tensor) -> Tensor | slice:
    """The places of what counts: 0 times infinity is not 0."""
    used = factors.nonzero()[:, 0]
    return slice(None) if len(used) == len(factors) else used

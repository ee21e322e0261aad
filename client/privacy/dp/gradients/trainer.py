"""Clipped gradients of units, summed, by hooks on the model, in one pass backwards, or in closed form.

Two steps, whatever the way: a pass says what it knows of each case's gradients, in rows that do not depend on who else
is in the pass (`alike`); from that come the units' norms and the clipped sum.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedgraft.client.privacy.dp.gradients import checked_sums
from fedgraft.client.privacy.dp.gradients import private_heads as heads
from fedgraft.client.privacy.dp.gradients.book_keeping import OfCases, Tape, UnitPart
from fedgraft.client.privacy.dp.gradients.dp_safe import dp_twin
from fedgraft.client.privacy.dp.gradients.hooks import KeptHooks
from fedgraft.client.privacy.dp.gradients.lengths import at_least_norms
from fedgraft.client.privacy.dp.gradients.private_losses import PrivateLosses
from fedgraft.client.privacy.dp.units import Rows
from fedgraft.client.training.device.alike import Sizes, passes
from fedgraft.client.training.model.alike_passes import sizes_for
from fedgraft.client.training.model.loader import Batch, Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.models.model import Heads
from fedgraft.common.study.stages.losses import SUPERVISED, Loss
from fedgraft.common.study.stages.training import Private

_log = logging.getLogger("fedgraft.site")

_AT_ONCE = 32
_SIZES, _SIZES_BY_HOOKS = 8, 4
"""Numbers of sizes of passes; by hooks few, since to look for them takes all cases' gradients each time."""


@dataclass(frozen=True)
class Trainer:
    """What per-unit gradients need: the model as hooks see it, the parameters that move, and the hooks."""

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    hooks: Any
    private: Private
    losses: PrivateLosses
    sizes: Sizes = (1,)
    """Numbers of rows of a pass."""
    lengths: Tensor | None = None
    """Of heads alone: the norms of all cases' features."""
    places: Sequence[tuple[str, int]] = ()
    """Of heads alone: the task of each parameter, and 0 for its weight or 1 for its bias."""

    def sum_of(self, batch: Batch, rows: Rows) -> list[Tensor]:
        """The sum over units of their clipped gradients, in the cheapest way there is.

        After the cases of `rows` the batch may go on with others, which fill up the pass.
        """
        way, count = self._way, len(rows.indices)
        weights = rows.weights(len(batch.indices)).to(batch.inputs)
        known = []
        for start, end, size in passes(count, self.sizes):
            piece, counted = batch, weights
            if end - start < count or size != len(batch.indices):
                places = torch.full((size,), start)
                places[: end - start] = torch.arange(start, end)
                piece, counted = batch.at(places), weights.new_zeros(size)
                counted[: end - start] = weights[start:end]
            found = way.of_pass(self, piece, counted, rows.may_have)
            known.append([own.first(end - start) for own in found])
        return way.summed(self, [OfCases.joined(own) for own in zip(*known, strict=True)], batch, rows)

    def found(self, example: Batch, inputs: Tensor) -> list[Tensor]:
        """What a pass knows of these inputs (cases, ...), each (cases, ...); labels are of the kind of `example`."""
        count = len(inputs)
        targets = {task: own.new_zeros((count, *own.shape[1:])) for task, own in example.targets.items()}
        batch = Batch(inputs, targets, torch.arange(count))
        cases = self._way.of_pass(self, batch, inputs.new_ones(count), self.private.augmentation_multiplicity)
        return [tensor for own in cases for tensor in own.known]

    @property
    def _way(self) -> _Way:
        if isinstance(self.model, Heads):
            return _ON_FEATURES
        return _GHOST if self.private.mode == "ghost" else _HOOKS


class _Way(NamedTuple):
    of_pass: Callable[[Trainer, Batch, Tensor, int], list[OfCases]]
    """What is known of each case's gradients of its loss times its weight; and how many cases a unit may have."""
    summed: Callable[[Trainer, list[OfCases], Batch, Rows], list[Tensor]]


CHANGE = 1 + 2 * checked_sums.MOST_ERROR
"""The most that one unit changes a sum by, in clips: by its gradient, and as sums with it and without it are off."""

_LONGEST = 1e20
"""Longer gradients, and features, come from a model that was made for it. What brings them down to the clip would be so
small that single precision rounds it by much of itself, and then they are longer than the clip."""


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """What brings each norm down to `max_grad_norm`; less and less above 1e20, and 0 above twice that, or if no number.

    A step from all to nothing at 1e20 would let the last digits of norms, which may depend on others, decide.
    """
    return torch.where(norms.isfinite(), (max_grad_norm / norms).clamp_(max=1.0) * _left(norms), 0.0)


def _left(lengths: Tensor) -> Tensor:
    return (2 - lengths / _LONGEST).clamp_(0, 1)


def clip_and_sum(gradients: Sequence[Tensor], max_grad_norm: float, of: int) -> list[Tensor]:
    """Per-unit gradients, (units, ...) per parameter, each unit clipped over all parameters together, then summed.

    They are some `of` so many units of a step.
    """
    each = [at_least_norms(part.flatten(1)) for part in gradients]
    norms = torch.stack(each).norm(dim=0)
    factors = clip_factors(norms, max_grad_norm)
    if not bool(norms.isfinite().all()):  # 0 times infinity is not 0, so a unit that overflowed is emptied first
        for part in gradients:
            part[~norms.isfinite()] = 0
    return [checked_sums.sum_of(factors, part, of) for part in gradients]


def _by_hooks(trainer: Trainer, batch: Batch, weights: Tensor, cases: int) -> list[OfCases]:  # noqa: ARG001
    """All cases' gradients at once: memory is cases times parameters."""
    losses = trainer.losses.by_case(trainer.model(batch.inputs), batch.targets)
    torch.autograd.backward(losses, weights)
    found = [OfCases(parameter, None, (_taken(parameter, "grad_sample"),)) for parameter in trainer.parameters]
    for parameter in trainer.parameters:
        parameter.grad = None
    return found


def _of_hooks(trainer: Trainer, found: list[OfCases], batch: Batch, rows: Rows) -> list[Tensor]:  # noqa: ARG001
    return clip_and_sum([rows.by_unit(own.known[0]) for own in found], trainer.private.max_grad_norm, rows.of)


def _slopes(trainer: Trainer, batch: Batch, weights: Tensor, cases: int) -> list[OfCases]:  # noqa: ARG001
    """The loss's slopes in the outputs of heads alone, (cases, outputs), for one parameter of each task."""
    with torch.no_grad():
        found = trainer.losses.slopes(trainer.model(batch.inputs), batch)
        tasks = {task: parameter for (task, _), parameter in zip(trainer.places, trainer.parameters, strict=True)}
        return [OfCases(parameter, None, (found[task].mul_(weights).T,)) for task, parameter in tasks.items()]


def _of_slopes(trainer: Trainer, found: list[OfCases], batch: Batch, rows: Rows) -> list[Tensor]:
    """The clipped sum for heads alone, in closed form."""
    z = batch.inputs[: len(rows.indices)]
    tasks = dict.fromkeys(task for task, _ in trainer.places)
    errors = {task: own.known[0].T for task, own in zip(tasks, found, strict=True)}
    assert trainer.lengths is not None
    with torch.no_grad():
        if rows.may_have == 1:  # and not if each has one here: the two ways leave out other units
            lengths = trainer.lengths.index_select(0, rows.indices.to(z.device))
            norms = heads.norms(errors, lengths)
            factors = (clip_factors(norms, trainer.private.max_grad_norm) * _left(lengths).nan_to_num_()).to(z)
            kept = {task: (error * factors).nan_to_num_() for task, error in errors.items()}
            sums = heads.gradients(kept, z, rows.of)
            return [sums[task][at] for task, at in trainer.places]
        each = heads.by_case(errors, z)
        made = [rows.by_unit(each[task][at]) for task, at in trainer.places]
        return clip_and_sum(made, trainer.private.max_grad_norm, rows.of)


def _by_tape(trainer: Trainer, batch: Batch, weights: Tensor, cases: int) -> list[OfCases]:
    """Without all cases' gradients at once: memory is that of what the layers see."""
    losses = trainer.losses.by_case(trainer.model(batch.inputs), batch.targets)
    with torch.no_grad():
        found: list[OfCases] = trainer.hooks.gradients(losses, weights, cases)
    return found


def _of_tape(trainer: Trainer, found: list[OfCases], batch: Batch, rows: Rows) -> list[Tensor]:  # noqa: ARG001
    with torch.no_grad():
        return clipped_sums([own.of_units(rows) for own in found], trainer.private.max_grad_norm, rows)


def clipped_sums(parts: Sequence[UnitPart], clip: float, rows: Rows) -> list[Tensor]:
    """The sums over units, each clipped over all parameters together; in double precision where need be."""
    factors = clip_factors(torch.stack([part.norms(clip) for part in parts]).norm(dim=0), clip)
    sums = [part.weighted_sum(factors) for part in parts]
    errors = [part.squared_error(factors, own) for part, own in zip(parts, sums, strict=True)]
    if checked_sums.are_true(errors, clip, rows.units / rows.of):
        return sums
    _log.debug("gradients that cancel beyond single precision are summed in double precision")
    return [part.exact_sum(factors).to(part.parameter.dtype) for part in parts]


_HOOKS, _GHOST, _ON_FEATURES = _Way(_by_hooks, _of_hooks), _Way(_by_tape, _of_tape), _Way(_slopes, _of_slopes)


@contextmanager
def attached(
    local_model: LocalModel,
    loader: Loader,
    changes: Sequence[str],
    private: Private,
    minimised: Sequence[Loss] = SUPERVISED,
    at_once: int | Sizes = _AT_ONCE,
) -> Iterator[Trainer]:
    """The model with hooks for per-case gradients, and without any trace of them afterwards.

    Passes are of about as many cases as may be worked on `at_once`, or of sizes that are known already.
    """
    parameters = [local_model.parameters[key] for key in changes]
    losses = PrivateLosses(minimised, local_model)
    if loader.seen:
        places = [(local_model.tags[key].task or "", int(key.endswith(".bias"))) for key in changes]
        body = loader.body(local_model.model)
        bare = Trainer(body, parameters, None, private, losses, lengths=loader.lengths(), places=places)
        yield _sized(bare, local_model, loader, (*changes, repr(minimised)), at_once)
        return
    model = dp_twin(local_model.model, changes)
    ghost = private.mode == "ghost"
    hooks = Tape(model, parameters) if ghost else KeptHooks(model, loss_reduction="sum", strict=False)
    try:
        with warnings.catch_warnings():
            # The first layer's hook has no gradient of its input to show, and needs none.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            trainer = Trainer(model, parameters, hooks, private, losses)
            yield _sized(trainer, local_model, loader, (*changes, repr(minimised)), at_once)
    finally:
        hooks.cleanup()
        for part in model.modules():  # what a pass that failed has left
            for left in ("activations", "max_batch_len"):
                part.__dict__.pop(left, None)
        for parameter in local_model.parameters.values():
            parameter.grad = None


def _sized(
    trainer: Trainer, local_model: LocalModel, loader: Loader, work: tuple[str, ...], at_once: int | Sizes
) -> Trainer:
    """The trainer with sizes of passes in which cases do not depend on each other."""
    if isinstance(at_once, tuple):
        return replace(trainer, sizes=at_once)
    key = (trainer.private.mode, trainer.private.augmentation_multiplicity, *work)
    sizes = _SIZES_BY_HOOKS if trainer._way is _HOOKS else _SIZES
    found = sizes_for(local_model, loader, trainer.model, key, trainer.found, (at_once, sizes))
    return replace(trainer, sizes=found)


def _taken(parameter: nn.Parameter, name: str) -> Tensor:
    value = getattr(parameter, name)
    assert isinstance(value, Tensor)
    setattr(parameter, name, None)
    return value

"""Clipped gradients of units, summed, by hooks on the model, in one pass backwards, or in closed form."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.client.privacy.dp.gradients import private_heads as heads
from fedgraft.client.privacy.dp.gradients.book_keeping import Tape, lengths
from fedgraft.client.privacy.dp.gradients.dp_safe import dp_twin
from fedgraft.client.privacy.dp.gradients.hooks import KeptHooks
from fedgraft.client.privacy.dp.gradients.private_losses import PrivateLosses
from fedgraft.client.privacy.dp.units import Rows
from fedgraft.client.training.model.loader import Batch, Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.models.model import Heads
from fedgraft.common.study.stages.losses import SUPERVISED, Loss
from fedgraft.common.study.stages.training import Private


@dataclass(frozen=True)
class Trainer:
    """What per-unit gradients need: the model as hooks see it, the parameters that move, and the hooks."""

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    hooks: Any
    private: Private
    losses: PrivateLosses
    lengths: Tensor | None = None
    """Of heads alone: the norms of all cases' features."""
    places: Sequence[tuple[str, int]] = ()
    """Of heads alone: the task of each parameter, and 0 for its weight or 1 for its bias."""

    def sum_of(self, batch: Batch, rows: Rows) -> list[Tensor]:
        """The sum over units of their clipped gradients, in the cheapest way there is."""
        if isinstance(self.model, Heads):
            return _on_features(self, self.model, batch, rows)
        return (_ghost if self.private.mode == "ghost" else _kept)(self, batch, rows)


_LONGEST = 1e20
"""Longer gradients, and features, come from a model that was made for it. What brings them down to the clip would be so
small that single precision rounds it by much of itself, and then they are longer than the clip."""


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """What brings each norm down to `max_grad_norm`; 0 for a norm that is above 1e20, or no number."""
    return torch.where(norms <= _LONGEST, (max_grad_norm / norms).clamp_(max=1.0), 0.0)


def clip_and_sum(gradients: Sequence[Tensor], max_grad_norm: float) -> list[Tensor]:
    """Per-unit gradients, (units, ...) per parameter, each unit clipped over all parameters together, then summed."""
    norms = torch.stack([lengths(part) for part in gradients]).norm(dim=0)
    factors = clip_factors(norms, max_grad_norm)
    if not bool(norms.isfinite().all()):  # 0 times infinity is not 0, so a unit that overflowed is emptied first
        for part in gradients:
            part[~norms.isfinite()] = 0
    return [torch.einsum("n,n...->...", factors.to(part.dtype), part) for part in gradients]


def _kept(trainer: Trainer, batch: Batch, rows: Rows) -> list[Tensor]:
    """The clipped sum from all cases' gradients at once: memory is cases times parameters."""
    loss = trainer.losses.by_case(trainer.model(batch.inputs), batch.targets)
    if (share := rows.share()) is not None:
        loss = loss * share.to(loss.device)
    torch.autograd.backward(loss.sum())
    by_case = [_taken(parameter, "grad_sample") for parameter in trainer.parameters]
    for parameter in trainer.parameters:
        parameter.grad = None
    return clip_and_sum([rows.by_unit(part) for part in by_case], trainer.private.max_grad_norm)


def _on_features(trainer: Trainer, model: Heads, batch: Batch, rows: Rows) -> list[Tensor]:
    """The clipped sum for heads alone, in closed form."""
    z, share = batch.inputs, rows.share()
    assert trainer.lengths is not None
    with torch.no_grad():
        errors = trainer.losses.slopes(model(z), batch, None if share is None else share.to(z))
        if share is None:
            lengths = trainer.lengths.index_select(0, batch.indices.to(z.device))
            norms = heads.norms(errors, lengths).masked_fill_(lengths > _LONGEST, torch.inf)
            factors = clip_factors(norms, trainer.private.max_grad_norm).to(z)
            kept = {task: error.mul_(factors).nan_to_num_() for task, error in errors.items()}
            sums = heads.gradients(kept, z)
            return [sums[task][at] for task, at in trainer.places]
        each = heads.by_case(errors, z)
        return clip_and_sum(
            [rows.by_unit(each[task][at]) for task, at in trainer.places], trainer.private.max_grad_norm
        )


def _ghost(trainer: Trainer, batch: Batch, rows: Rows) -> list[Tensor]:
    """The clipped sum without all cases' gradients at once: memory is that of what the layers see."""
    loss = trainer.losses.by_case(trainer.model(batch.inputs), batch.targets)
    if (share := rows.share()) is not None:
        loss = loss * share.to(loss.device)
    clip = trainer.private.max_grad_norm
    with torch.no_grad():
        parts = trainer.hooks.gradients(loss, rows)
        factors = clip_factors(torch.stack([part.norms(clip) for part in parts]).norm(dim=0), clip)
        return [part.weighted_sum(factors) for part in parts]


@contextmanager
def attached(
    local_model: LocalModel,
    loader: Loader,
    changes: Sequence[str],
    private: Private,
    minimised: Sequence[Loss] = SUPERVISED,
) -> Iterator[Trainer]:
    """The model with hooks for per-case gradients, and without any trace of them afterwards."""
    parameters = [local_model.parameters[key] for key in changes]
    losses = PrivateLosses(minimised, local_model)
    if loader.seen:
        places = [(local_model.tags[key].task or "", int(key.endswith(".bias"))) for key in changes]
        yield Trainer(loader.body(local_model.model), parameters, None, private, losses, loader.lengths(), places)
        return
    model = dp_twin(local_model.model, changes)
    ghost = private.mode == "ghost"
    hooks = Tape(model, parameters) if ghost else KeptHooks(model, loss_reduction="sum", strict=False)
    try:
        with warnings.catch_warnings():
            # The first layer's hook has no gradient of its input to show, and needs none.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield Trainer(model, parameters, hooks, private, losses)
    finally:
        hooks.cleanup()
        for part in model.modules():  # what a pass that failed has left
            for left in ("activations", "max_batch_len"):
                part.__dict__.pop(left, None)
        for parameter in local_model.parameters.values():
            parameter.grad = None


def _taken(parameter: nn.Parameter, name: str) -> Tensor:
    value = getattr(parameter, name)
    assert isinstance(value, Tensor)
    setattr(parameter, name, None)
    return value

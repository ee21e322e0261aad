"""The model at this site, as methods may use it: itself, copies of it, and the site's own training cases."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fedgraft.client.training.losses.supervised import supervised
from fedgraft.client.training.model.loader import Batch, Loader, in_order, shuffled
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.methods.memory.method import Cases
from fedgraft.common.models.model import Heads, TransferModel
from fedgraft.common.protocol.instructions import Arrays

_BATCH = 256


class LocalMachine:
    """The model, and the training cases as a visit feeds them to it: images, or features of a frozen backbone."""

    def __init__(self, local_model: LocalModel, loader: Loader) -> None:
        self._local_model = local_model
        self._loader = loader

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The model's parameters by entry."""
        return self._local_model.parameters

    def tensor(self, array: np.ndarray) -> Tensor:
        """A copy of an array on the model's device."""
        return torch.tensor(array, device=self._local_model.device)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Within, passes through the model leave its running statistics as they were."""
        buffers = dict(self._local_model.model.named_buffers())
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        try:
            yield
        finally:
            for name, buffer in buffers.items():
                buffer.copy_(before[name])

    def twin(self, entries: Arrays) -> Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]:
        """Another model with these entries in place of the present ones: features and answers, without gradients."""
        body = self._copy(entries)

        def answer(inputs: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
            with torch.no_grad():
                return body.both(inputs)

        return answer

    def slope(self, entries: Mapping[str, Tensor], cases: Cases) -> dict[str, Tensor]:
        """The gradient of the loss over labels at these entries, of these cases; running statistics stay."""
        body = self._copy({key: value.detach().cpu().numpy() for key, value in entries.items()})
        parameters = {key: value for key, value in body.named_parameters() if key in entries}
        for value in parameters.values():
            value.requires_grad_(True)
        loss = supervised(body(cases.inputs), cases.targets, {}, tasks=self._local_model.tasks)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(parameters.items(), found, strict=True)}

    def batches(self, share: float, size: int, seed: int) -> Iterator[Batch]:
        """A `share` of the labelled training cases, drawn by `seed`, in batches."""
        indices, generator = self._loader.labelled("train"), torch.Generator().manual_seed(seed)
        some = indices[torch.randperm(len(indices), generator=generator)[: max(1, round(share * len(indices)))]]
        yield from self._loader.batches(shuffled(some, size, generator))

    def seen(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """All labelled training cases, in order, as the model's features (N, d) see them, with their targets."""
        body = self._loader.body(self._local_model.model)
        was = self._local_model.model.training
        self._local_model.model.eval()
        with torch.no_grad():
            for batch in self._loader.batches(in_order(self._loader.labelled("train"), _BATCH)):
                yield body.both(batch.inputs)[0].float(), batch.targets
        self._local_model.model.train(was)

    def _copy(self, entries: Arrays) -> TransferModel | Heads:
        model = copy.deepcopy(self._local_model.model).eval().requires_grad_(False)
        state = model.state_dict(keep_vars=True)
        for key, array in entries.items():
            state[key].data.copy_(torch.tensor(array))
        return self._loader.body(model)

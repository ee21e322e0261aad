"""A model's passes as compiled code, where a site asks for it (`torch.compile`; Ansel et al. 2024, "PyTorch 2").

What the code gives differs from what torch gives in its last digits, and is the same each time. Only plain training
goes through it: private work, evaluation and features are as they were, so that no promise rests on it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch
from torch import Tensor

from fedgraft.common.base.files import demand_own, home, make_folder
from fedgraft.common.models.model import TransferModel

_log = logging.getLogger(__name__)


class Compiled:
    """What a model says of cases, by code that was made for it; by torch's own if none can be made here.

    The entries are those that lie in the model. A pass over another shape, or with others frozen, has code of its own,
    made when it first comes; torch goes on by itself where these become many.
    """

    def __init__(self, model: TransferModel) -> None:
        self._model = model
        _keep_code_at_home()
        self._both = torch.compile(model.both, dynamic=False)

    def __call__(self, x: Tensor) -> Mapping[str, Tensor]:
        """As `TransferModel.forward`."""
        return self.both(x)[1]

    def both(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """As `TransferModel.both`."""
        try:
            return self._both(x)
        except torch._dynamo.exc.TorchDynamoException as error:
            first = str(error).strip().partition("\n")[0]
            _log.warning("No code can be compiled for this model here (%s): it trains as without `compile`.", first)
            self._both = self._model.both
            return self._both(x)


def _keep_code_at_home() -> None:
    """By default it lies in the machine's folder for temporary files, where others could put code of theirs."""
    place = home().resolve() / "compiled"
    make_folder(place)
    demand_own(place, readable=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more would be processes that outlive a site

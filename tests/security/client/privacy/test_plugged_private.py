"""A loss of a plug-in in private training: each unit's gradient is clipped as if it had been made alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fedgraft as fg
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.privacy.dp.gradients.trainer import attached
from fedgraft.client.privacy.dp.units import Rows
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError
from fedgraft.common.study.stages.losses import PluggedLoss, Supervised
from helpers.dp import loader_of, quiet, trainable
from helpers.plugins import EXAMPLE, fresh
from helpers.work import CPU, NOW, MakeStudy, cohort, images

assert fresh


@pytest.fixture
def focal(fresh: pytest.MonkeyPatch, tmp_path: Path) -> PluggedLoss:
    fresh.syspath_prepend(EXAMPLE)
    import fedgraft_example.loss as example

    fg.register_loss("focal", example.Focal)
    fg.register_loss("decorrelation", example.Decorrelation)
    return PluggedLoss(kind="focal", options={"gamma": 1.5}, weight=0.7)


@pytest.mark.parametrize("how", ["hooks", "ghost", "features"])
@pytest.mark.parametrize("several", [False, True])
def test_each_units_gradient_is_clipped_by_itself(
    focal: PluggedLoss, make_study: MakeStudy, how: str, several: bool
) -> None:
    """Against a pass backwards for each unit alone, at a clip that some of them are longer than."""
    study = make_study(
        input={"kind": "table", "numeric": ["a", "b", "c"]}, model={"backbone": "table_mlp", "weights": None}
    )
    local_model = LocalModel(study, CPU)
    draw = torch.Generator().manual_seed(4)
    inputs, labels = torch.randn(6, 3, generator=draw) * 2, torch.tensor([0, 1, -1, 2, 1, 0])
    keys = [key for key in trainable(local_model) if key in local_model.parameters]
    loader = loader_of(Loader(cohort(images(6)[0], {"cls": labels}), study.input, CPU), inputs, labels)
    losses = (Supervised(), focal)
    if how == "features":
        keys = [key for key in keys if key.startswith("heads.")]
        local_model.model.eval()
        loader = loader.through(local_model.model.features(inputs).detach())
    local_model.model.freeze(keys, fixed_norm_stats=True)
    unit = torch.tensor([0, 0, 1, 1, 2, 3]) if several else torch.arange(6)
    count = int(unit.max()) + 1
    (batch,) = loader.batches([torch.arange(6)])
    private = quiet(mode="ghost" if how == "ghost" else "hooks", max_grad_norm=0.4).private
    assert private is not None
    with attached(local_model, loader, keys, private, losses) as trainer:
        got = trainer.sum_of(batch, Rows(torch.arange(6), unit, count))
    naive = [torch.zeros_like(local_model.parameters[key]) for key in keys]
    clipped = 0
    for own in range(count):
        cases = (unit == own).nonzero()[:, 0]
        logits = local_model.model(inputs[cases])["cls"]
        entropy = torch.nn.functional.cross_entropy(logits, labels[cases], ignore_index=-1, reduction="none")
        each = entropy + 0.7 * (1 - (-entropy).exp()) ** 1.5 * entropy
        found = torch.autograd.grad(each.mean(), [local_model.parameters[key] for key in keys])
        norm = float(torch.cat([part.flatten() for part in found]).norm())
        clipped += norm > 0.4
        naive = [total + part * min(1.0, 0.4 / max(norm, 1e-12)) for total, part in zip(naive, found, strict=True)]
    assert 0 < clipped <= count
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, naive, strict=True))


def test_a_loss_that_compares_cases_is_refused_at_the_last_place_too(focal: PluggedLoss, make_study: MakeStudy) -> None:
    study = make_study()
    local_model = LocalModel(study, CPU)
    inputs, labels = images(21)
    loader = Loader(cohort(inputs, {"cls": labels}), study.input, CPU)
    spec = quiet(losses=(Supervised(), PluggedLoss(kind="decorrelation")))
    with pytest.raises(InputError, match="by losses of one case at a time"):
        train_private(local_model, loader, [str(n) for n in range(21)], spec, ["heads.cls.weight"], NOW)

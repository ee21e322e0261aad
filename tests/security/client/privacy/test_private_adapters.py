"""Private training of low-rank adapters: each unit's gradient is clipped by itself, whatever body they stand in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.privacy.dp.gradients.dp_safe import dp_twin
from fedgraft.client.privacy.dp.gradients.trainer import attached
from fedgraft.client.privacy.dp.units import Rows
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.checks.explain import check_study
from fedgraft.common.study.study import Study
from helpers.adapted import TinyConvNeXt, TinyViT, plugged, randomise
from helpers.dp import quiet
from helpers.plugins import fresh
from helpers.work import CPU, NOW, MakeStudy, cohort, images

assert fresh
pytestmark = pytest.mark.usefixtures("fresh")


class Asks(TinyViT):
    """A network that looks at its input, whose pass cannot be recorded to be written anew."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.detach().abs().max()) < 1e6 else x / 1e6)


BODIES = {"vit": TinyViT, "convnext": TinyConvNeXt, "slim_resnet": None, "asking": Asks}


def a_study(make_study: MakeStudy, body: str) -> Study:
    size = {"kind": "image", "size": 16, "channels": 1}
    if (factory := BODIES[body]) is not None:
        return make_study(input=size, **plugged(f"tiny_{body}", factory))
    return make_study(input=size, model={"backbone": body, "adapters": {"rank": 2, "where": "all"}})


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("several", [False, True])
def test_each_units_gradient_is_clipped_by_itself(make_study: MakeStudy, body: str, mode: str, several: bool) -> None:
    """Against a pass backwards for each unit alone, at a clip that most of them are longer than."""
    study = a_study(make_study, body)
    local_model = LocalModel(study, CPU)
    keys = [*randomise(local_model.model, local_model.tags), "heads.cls.weight", "heads.cls.bias"]
    stored, labels = images(6, size=16)
    labels[2] = -1
    loader = Loader(cohort(stored, {"cls": labels}), study.input, CPU)
    local_model.model.freeze(keys, fixed_norm_stats=True)
    local_model.model.eval()  # stochastic depth and dropout draw for each pass
    unit = torch.tensor([0, 0, 1, 1, 2, 3]) if several else torch.arange(6)
    (batch,) = loader.batches([torch.arange(6)])
    private = quiet(mode=mode, max_grad_norm=0.5).private
    assert private is not None
    with attached(local_model, loader, keys, private) as trainer:
        got = trainer.sum_of(batch, Rows(torch.arange(6), unit, int(unit.max()) + 1))
    naive = [torch.zeros_like(local_model.parameters[key]) for key in keys]
    clipped = 0
    for own in range(int(unit.max()) + 1):
        cases = (unit == own).nonzero()[:, 0]
        logits = local_model.model(batch.inputs[cases])["cls"]
        each = nn.functional.cross_entropy(logits, labels[cases], ignore_index=-1, reduction="none")
        found = torch.autograd.grad(each.mean(), [local_model.parameters[key] for key in keys])
        norm = float(torch.cat([part.flatten() for part in found]).norm())
        clipped += norm > 0.5
        naive = [total + part * min(1.0, 0.5 / max(norm, 1e-12)) for total, part in zip(naive, found, strict=True)]
    assert clipped > 0
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(got, naive, strict=True))
    assert all(float(part.norm()) > 0 for part in got)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_a_private_visit_moves_adapters_and_nothing_of_the_body(make_study: MakeStudy, mode: str) -> None:
    study = a_study(make_study, "vit")
    local_model = LocalModel(study, CPU)
    keys = [*randomise(local_model.model, local_model.tags), "heads.cls.weight"]
    before = local_model.read(local_model.tags)
    stored, labels = images(12, size=16)
    loader = Loader(cohort(stored, {"cls": labels}), study.input, CPU)
    train_private(local_model, loader, list("abcdefghijkl"), quiet(mode=mode, lr=0.1), keys, NOW)
    moved = {key for key, array in local_model.read(local_model.tags).items() if (array != before[key]).any()}
    assert moved == set(keys)


class Windows(nn.Module):
    """Attention within halves of an image, which stand as cases of their own in the batch."""

    feature_dim = 8

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, size // 4, size // 4)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).flatten(2).mT
        halves = self.layer(y.reshape(2 * len(y), -1, 8))
        features: Tensor = halves.reshape(len(y), -1, 8).mean(dim=1)
        return features


def test_layers_that_see_parts_of_cases_are_refused(make_study: MakeStudy) -> None:
    """Of such a batch a layer's gradient by row is none by case: two rows would count as two patients."""
    size = {"kind": "image", "size": 16, "channels": 1}
    local_model = LocalModel(make_study(input=size, **plugged("windows", Windows)), CPU)
    with pytest.raises(InputError, match="layer does not see each case once"):
        dp_twin(local_model.model, ["backbone.layer.lora_a.weight"])
    assert dp_twin(local_model.model, ["heads.cls.weight"]) is local_model.model


def test_a_study_that_would_train_them_is_refused_before_a_site_hears_of_it(make_study: MakeStudy) -> None:
    size = {"kind": "image", "size": 16, "channels": 1}
    private = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "sample_rate": 0.5}
    work = {"kind": "gradient", "steps": 1, "lr": 0.1, "optimiser": "sgd", "private": private}

    def of(train: str) -> Study:
        stage = {"name": "one", "local": work | {"train": train}, "share": train, "aggregate": {"kind": "mean"}}
        return make_study(input=size, plan=[stage], **plugged("windows", Windows))

    with pytest.raises(
        StudyError, match=r"plan\.0 \(one\)\.local\.train: layer of windows does not see each case once"
    ):
        check_study(of("adapters_and_heads"), "x")
    with pytest.raises(StudyError, match="no stage trains them") as heads:
        check_study(of("heads"), "x")
    assert "does not see" not in str(heads.value)

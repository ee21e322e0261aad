"""Models made so that single precision fails the clip: one patient still moves a sum by no more than that."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.study.stages.training import Private
from helpers.dp import loader_of, quiet, sums
from helpers.work import CPU, MakeStudy, cohort, images

TABLE = {"kind": "table", "numeric": ["a", "b", "c"]}
ONE = torch.tensor([0])


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_squares_that_get_lost_do_not_hide_a_gradient(make_study: MakeStudy, mode: str) -> None:
    """Slopes of 1e-23, whose squares are 0, meet activations of 1e18: the gradient is eight times the clip."""
    study = make_study(input=TABLE, model={"backbone": "table_mlp", "weights": None})
    local_model = LocalModel(study, CPU)
    entries = local_model.parameters
    with torch.no_grad():
        for entry in entries.values():
            entry.zero_()
        entries["backbone.layers.0.weight"].fill_(6e17)
        entries["backbone.layers.2.weight"].copy_(torch.eye(32, 64))
        entries["heads.cls.weight"].copy_(torch.tensor([[1e-23], [-1e-23], [0]]).expand(3, 32))
    loader = loader_of(Loader(cohort(images(1)[0], {"cls": ONE}), study.input, CPU), torch.ones(1, 3), ONE)
    body = [key for key in entries if key.startswith("backbone.")]
    moved = sums(local_model, loader, ("0",), quiet(mode=mode, max_grad_norm=1e-4), body)[0].norm() / 1e-4
    assert 0.9 < moved < 1.001


@pytest.mark.parametrize(
    ("bias", "feature", "clip"),
    [(69.0, 3e36, 3.6e-8), (0.0, 1e37, 1e-7), (0.0, 1.0, 1e-12)],
    ids=["long features", "long gradients", "the least clip"],
)
def test_factors_too_small_for_single_precision_do_not_lengthen_a_gradient(
    make_study: MakeStudy, bias: float, feature: float, clip: float
) -> None:
    """What brings a gradient down to the clip would be one of the last numbers above 0, with nothing near it."""
    study = make_study()
    local_model = LocalModel(study, CPU)
    with torch.no_grad():
        local_model.parameters["heads.cls.weight"].zero_()
        local_model.parameters["heads.cls.bias"].copy_(torch.tensor([bias, 0.0, 0.0]))
    features = torch.full((1, 128), feature)
    loader = Loader(cohort(images(1)[0], {"cls": ONE}), study.input, CPU).through(features)
    heads = [key for key, tag in local_model.tags.items() if tag.task]
    moved = sums(local_model, loader, ("0",), quiet(max_grad_norm=clip), heads)[0].norm() / clip
    assert moved < 1.001


@pytest.mark.parametrize("clip", [0.0, 1e-44, 1e-13])
def test_a_clip_that_single_precision_cannot_hold_is_refused(clip: float) -> None:
    with pytest.raises(ValidationError, match="max_grad_norm"):
        Private(noise_multiplier=1.0, sample_rate=0.5, max_grad_norm=clip)

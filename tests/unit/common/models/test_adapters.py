"""Low-rank adapters: what they add, what they are called, where they go, and what becomes of them in plain entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgraft.common.base.errors import InputError, WeightsError
from fedgraft.common.models.architecture import blueprint
from fedgraft.common.models.architecture_cache import architecture_of, recall, remember
from fedgraft.common.models.backbones.adapters import AdaptedConv2d, AdaptedLinear, adapt
from fedgraft.common.models.backbones.backbone import Backbone
from fedgraft.common.models.backbones.merging import merged
from fedgraft.common.models.initialise import make_model
from fedgraft.common.models.model import Extras, TransferModel, build_model, describe, load_arrays, state_arrays
from fedgraft.common.models.weights import fit
from fedgraft.common.study.model_spec import Adapters
from fedgraft.common.study.plan import SELECTIONS, named
from fedgraft.common.study.study import Study, parse_study
from helpers.adapted import TinyConvNeXt, TinyViT, randomise

ALL = Adapters(rank=2, alpha=6, where="all")
MakeStudy = Callable[..., Study]


def models(factory: Any, spec: Adapters = ALL) -> tuple[TransferModel, TransferModel]:
    """A model with adapters and the plain one, of the same draws."""
    torch.manual_seed(0)
    plain = TransferModel(Backbone(factory(1, 16), factory.feature_dim), {"cls": 3})
    torch.manual_seed(0)
    own = factory(1, 16)
    adapted = TransferModel(adapt(Backbone(own, factory.feature_dim), spec, "none", (1, 16, 16)), {"cls": 3})
    load_arrays(adapted, state_arrays(adapted) | state_arrays(plain))
    return adapted.eval(), plain.eval()


class Mixed(nn.Module):
    """Convolutions with strides, padding and groups, and linear layers."""

    feature_dim = 5

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        del size
        self.body = nn.Sequential(
            nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        )
        self.deep = nn.Conv2d(4, 4, 3, groups=2)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.last(self.deep(self.body(x)).mean((2, 3)))
        return features


@pytest.mark.parametrize("factory", [TinyViT, TinyConvNeXt, Mixed])
def test_a_model_begins_as_it_was_and_its_merged_entries_answer_as_it_does(factory: Any) -> None:
    adapted, plain = models(factory)
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(adapted(x)["cls"], plain(x)["cls"], atol=1e-5, rtol=0)
    randomise(adapted, adapted.tags())
    with torch.inference_mode():
        answers = adapted(x)["cls"]
        assert float((answers - plain(x)["cls"]).abs().max()) > 0.01
        load_arrays(plain, merged(state_arrays(adapted), ALL.scale))
        torch.testing.assert_close(plain(x)["cls"], answers, atol=1e-5, rtol=1e-5)


def test_what_a_layer_adds_is_alpha_over_rank_times_b_a_x() -> None:
    old = nn.Linear(4, 3)
    layer = AdaptedLinear(old, ALL)
    nn.init.normal_(layer.lora_b.weight)
    x = torch.randn(5, 2, 4)
    wanted = x @ (old.weight + 6 / 2 * layer.lora_b.weight @ layer.lora_a.weight).T + old.bias
    torch.testing.assert_close(layer(x), wanted)
    kernels = nn.Conv2d(3, 4, 3, 2, 1)
    conv = AdaptedConv2d(kernels, ALL)
    nn.init.normal_(conv.lora_b.weight)
    added = torch.einsum("or,rihw->oihw", conv.lora_b.weight[:, :, 0, 0], conv.lora_a.weight)
    images = torch.randn(2, 3, 8, 8)
    wanted = nn.functional.conv2d(images, kernels.weight + 3 * added, kernels.bias, 2, 1)
    torch.testing.assert_close(conv(images), wanted, atol=1e-5, rtol=1e-5)


def test_entries_keep_their_names_and_selections_have_adapters_by_name_alone() -> None:
    adapted, plain = models(TinyViT)
    tags, old = adapted.tags(), plain.tags()
    added = set(tags) - set(old)
    assert {key: tags[key] for key in old} == old
    assert added == {key for key in tags if key.endswith(("lora_a.weight", "lora_b.weight"))}
    assert set(named("adapters").keys(tags)) == added
    assert set(named("adapters_a").keys(tags)) == {key for key in added if key.endswith("lora_a.weight")}
    for name in SELECTIONS:
        chosen = set(named(name).keys(tags))
        assert chosen.isdisjoint(added) or name.startswith("adapters")
    assert set(named("adapters_and_heads").keys(tags)) == added | set(named("heads").keys(tags))


def test_attention_alone_gets_adapters_unless_it_is_said_otherwise() -> None:
    adapted, _ = models(TinyViT, Adapters(rank=2))
    assert all("self_attention" in key for key in adapted.tags() if "lora" in key)
    with pytest.raises(InputError, match=r"no attention for adapters\. Write model\.adapters\.where: all"):
        build_model("slim_resnet", {"cls": 2}, channels=1, seed=0, extras=Extras(adapters=Adapters()))
    everywhere = build_model("slim_resnet", {"cls": 2}, channels=1, seed=0, extras=Extras(adapters=ALL))
    stem = [key for key in everywhere.tags() if key.startswith("backbone.conv1")]
    assert stem == ["backbone.conv1.weight"], "the stem gets none"
    depths = {key: tag.depth for key, tag in everywhere.tags().items() if "lora" in key}
    assert set(depths.values()) == {1, 2, 3, 4}
    assert depths["backbone.blocks.2.conv1.lora_b.weight"] == 3, "as deep as its block"


def test_no_other_entry_is_drawn_otherwise_for_adapters() -> None:
    plain = build_model("slim_resnet", {"cls": 2}, channels=1, seed=7)
    adapted = build_model("slim_resnet", {"cls": 2}, channels=1, seed=7, extras=Extras(adapters=ALL))
    one, other = state_arrays(plain), state_arrays(adapted)
    assert all(np.array_equal(array, other[key]) for key, array in one.items())
    again = state_arrays(build_model("slim_resnet", {"cls": 2}, channels=1, seed=7, extras=Extras(adapters=ALL)))
    assert all(np.array_equal(array, again[key]) for key, array in other.items())


class Reads(nn.Module):
    """Uses a layer's entries past the layer, as some networks do for speed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.first(x), self.layer.weight)


def test_a_layer_whose_entries_are_read_past_it_is_refused() -> None:
    """An adapter there would be trained, sent and do nothing."""
    with pytest.raises(InputError, match="reads the entries of layer without calling it"):
        adapt(Backbone(Reads(), 3), ALL, "first", (3,))


class Encoder(nn.Module):
    """torch's own encoder layer, which has a short cut past its parts when it only answers."""

    feature_dim = 8

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        del size
        self.first = nn.Conv2d(channels, 8, 8, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layer(self.first(x).flatten(2).mT).mean(dim=1)
        return features


def test_torchs_short_cut_in_eval_does_not_go_past_adapters() -> None:
    adapted, _ = models(Encoder)
    randomise(adapted, adapted.tags())
    x = torch.randn(2, 1, 16, 16)
    with torch.inference_mode():
        quick = adapted(x)["cls"]
    torch.testing.assert_close(adapted(x)["cls"].detach(), quick, atol=1e-5, rtol=1e-5)


def test_attention_with_its_sequence_first_is_refused() -> None:
    body = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    with pytest.raises(InputError, match="1 is attention of a kind that adapters do not know"):
        adapt(Backbone(body, 4), ALL, "0", (3, 4))


def a_study(make_study: MakeStudy, **more: Any) -> Study:
    return make_study(model={"backbone": "slim_resnet", "adapters": {"where": "all", "rank": 2}}, method="lora", **more)


def test_roles_and_names_go_through_the_cache_of_architectures(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path))
    study = a_study(make_study)
    own = blueprint(study, study.model)
    made = describe(make_model(study))
    remember(own, made)
    assert recall(own) == made == architecture_of(own)
    other = study.model.model_copy(update={"adapters": None})
    assert recall(blueprint(study, other)) is None


def test_a_study_without_adapters_is_written_as_it_always_was(make_study: MakeStudy) -> None:
    plain = make_study()
    assert "adapters" not in str(plain.model_dump(mode="json"))
    adapted = a_study(make_study)
    assert parse_study(adapted.model_dump(mode="json"), "again") == adapted
    assert adapted.digest != make_study(method="lora").digest


def test_pretrained_entries_go_where_they_belong_and_adapters_begin_fresh() -> None:
    adapted, plain = models(TinyViT)
    taken, report = fit(describe(adapted), state_arrays(plain), "here")
    assert set(taken) == {key for key in plain.tags() if key.startswith("backbone.")}
    assert {key for key in adapted.tags() if "lora" in key} <= set(report.fresh)
    whole = state_arrays(adapted)
    assert set(fit(describe(adapted), whole, "here")[0]) == {key for key in whole if key.startswith("backbone.")}
    some = next(key for key in whole if "lora_b" in key)
    with pytest.raises(WeightsError, match=f"{some}: missing"):
        fit(describe(adapted), {key: array for key, array in whole.items() if key != some}, "here")

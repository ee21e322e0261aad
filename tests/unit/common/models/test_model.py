"""The transfer model: what every state entry is, what freezing freezes, where random entries come from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.regnet import BlockParams

from fedgraft.common.base.errors import InputError
from fedgraft.common.models.backbones.named import build_image_backbone, image_backbones
from fedgraft.common.models.model import (
    TransferModel,
    build_model,
    build_table_model,
    load_arrays,
    state_arrays,
)
from fedgraft.common.study.plan import SELECTIONS, Role, named

HEADS = {"cls": 3, "side": 2}
NORM_ROLES = {Role.NORM_AFFINE, Role.NORM_STATS}


@pytest.fixture(autouse=True)
def _regnet_counts_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision computes a RegNet's widths with small tensors, which must hold numbers."""
    real = BlockParams.from_init_params.__func__  # type: ignore[attr-defined]

    def on_cpu(cls: type[BlockParams], *args: object, **kwargs: object) -> object:
        with torch.device("cpu"):
            return real(cls, *args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_cpu))


def on_meta(name: str, channels: int = 3) -> TransferModel:
    """The model without memory for its entries: even the largest takes a fraction of a second."""
    with torch.device("meta"):
        return TransferModel(build_image_backbone(name, channels, 224), HEADS)


def norm_entries(model: nn.Module) -> set[str]:
    """Counted from outside, by the type of the layer alone."""
    kinds = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
    layers = {name: part for name, part in model.named_modules() if isinstance(part, kinds)}
    return {f"{name}.{key}" for name, part in layers.items() for key in part.state_dict()}


def used_in_order(model: TransferModel, x: Tensor) -> list[str]:
    """Parameters in the order in which a forward pass comes to their modules."""
    order: list[str] = []
    for name, part in model.named_modules():
        keys = [f"{name}.{key}" for key in part.state_dict() if "." not in key]
        part.register_forward_pre_hook(lambda _part, _args, keys=keys: order.extend(keys))
    model.eval()(x)
    return order


CONTROLS = ("thumbnail", "intensity")


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_of_comparisons_have_heads_alone(name: str) -> None:
    """They are features by hand: there is nothing to train in them."""
    assert name in image_backbones()
    assert {tag.role for tag in on_meta(name).tags().values()} == {Role.HEAD}


@pytest.mark.parametrize("name", [name for name in image_backbones() if name not in CONTROLS])
def test_every_backbone_is_tagged_by_what_its_layers_are(name: str) -> None:
    model = on_meta(name)
    tags, state = model.tags(), model.state_dict()
    assert list(tags) == list(state)
    assert {key for key, tag in tags.items() if tag.role in NORM_ROLES} == norm_entries(model)
    stats = {key for key, tag in tags.items() if tag.role is Role.NORM_STATS}
    assert stats == {key for key in state if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    first = next(
        name for name, part in model.named_modules() if isinstance(part, nn.Conv2d) and part.weight.shape[1] == 3
    )
    assert {key.rpartition(".")[0] for key, tag in tags.items() if tag.role is Role.STEM} == {first}
    heads = {key: tag.task for key, tag in tags.items() if tag.role is Role.HEAD}
    assert heads == {f"heads.{task}.{part}": task for task in HEADS for part in ("weight", "bias")}
    deepest = max(tag.depth for key, tag in tags.items() if key not in heads)
    assert {tags[key].depth for key in heads} == {deepest + 1}
    assert {tag.depth for tag in tags.values()} == set(range(deepest + 2)), "no depth is empty"
    assert all(tag.depth == 0 for tag in tags.values() if tag.role is Role.STEM)


FAMILIES = [
    *("slim_resnet", "alexnet", "vgg11_bn", "googlenet", "resnet18", "resnet50", "densenet121"),
    *("efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5"),
    *("shufflenet_v2_x0_5", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "vit_b_16"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_depth_never_falls_on_the_way_from_image_to_head(name: str) -> None:
    model = on_meta(name)
    with torch.device("meta"):
        x = torch.zeros(2, 3, 224, 224)
    order = used_in_order(model, x)
    assert len(order) > 8
    depths = [model.tags()[key].depth for key in order]
    assert depths == sorted(depths)


@pytest.mark.parametrize(
    ("name", "affine", "stats"),
    [
        ("resnet18", 40, 60),
        ("resnet50", 106, 159),
        ("densenet121", 242, 363),
        ("vgg16_bn", 26, 39),
        ("vgg16", 0, 0),
        ("efficientnet_b0", 98, 147),
        ("mobilenet_v3_small", 68, 102),
        ("convnext_tiny", 46, 0),
        ("vit_b_16", 50, 0),
        ("googlenet", 114, 171),
        ("slim_resnet", 24, 36),
    ],
)
def test_norm_entries_by_the_papers_layer_counts(name: str, affine: int, stats: int) -> None:
    """Two entries per layer that scales, three more for one that keeps statistics."""
    roles = [tag.role for tag in on_meta(name).tags().values()]
    assert (roles.count(Role.NORM_AFFINE), roles.count(Role.NORM_STATS)) == (affine, stats)


def test_the_norm_layers_of_vgg_are_found_though_their_names_say_nothing() -> None:
    tags = on_meta("vgg16_bn").tags()
    assert tags["backbone.features.1.running_mean"].role is Role.NORM_STATS
    assert tags["backbone.features.10.weight"].role is Role.BODY
    assert tags["backbone.features.11.weight"].role is Role.NORM_AFFINE
    assert tags["backbone.features.0.weight"].role is Role.STEM
    assert "backbone.features.1.running_mean" not in named("all_but_norm").keys(tags)


@pytest.mark.parametrize("name", ["vgg16_bn", "densenet121", "vit_b_16", "convnext_tiny", "slim_resnet"])
def test_named_selections_are_cut_from_the_whole(name: str) -> None:
    tags = on_meta(name).tags()
    chosen = {selection: set(named(selection).keys(tags)) for selection in SELECTIONS}
    everything = set(tags)
    assert chosen["all"] == everything
    assert chosen["none"] == set()
    for part, rest in (("norm", "all_but_norm"), ("norm_stats", "all_but_norm_stats"), ("heads", "all_but_heads")):
        assert chosen[part] | chosen[rest] == everything
        assert not chosen[part] & chosen[rest]
    assert chosen["norm_and_heads"] == chosen["norm"] | chosen["heads"]
    assert chosen["norm"] == norm_entries(on_meta(name))
    assert all(key.startswith("heads.") for key in chosen["heads"])
    assert len(chosen["heads"]) == 4


def test_depths_of_a_small_network_by_hand() -> None:
    tags = on_meta("slim_resnet", channels=1).tags()
    depth = {key: tag.depth for key, tag in tags.items()}
    assert (depth["backbone.conv1.weight"], depth["backbone.bn1.running_var"]) == (0, 0)
    assert [depth[f"backbone.blocks.{block}.bn2.weight"] for block in range(4)] == [1, 2, 3, 4]
    assert depth["heads.cls.weight"] == 5


def test_tables_have_a_scale_that_is_not_trained() -> None:
    tags = build_table_model("table_mlp", HEADS, 7, seed=0).tags()
    assert {key for key, tag in tags.items() if tag.role is Role.SCALE} == {
        "backbone.standardise.mean",
        "backbone.standardise.std",
    }
    assert {tag.role for tag in build_table_model("table_linear", HEADS, 7, seed=0).tags().values()} == {
        Role.SCALE,
        Role.HEAD,
    }


def test_missing_numbers_of_a_table_count_as_the_mean() -> None:
    model = build_table_model("table_linear", {"cls": 2}, 2, seed=0)
    arrays = state_arrays(model)
    arrays |= {
        "backbone.standardise.mean": np.float32([3, 5]),
        "backbone.standardise.std": np.float32([2, 4]),
    }
    load_arrays(model, arrays)
    x = torch.tensor([[5.0, float("nan")], [float("nan"), 1.0]])
    assert model.features(x).tolist() == [[1, 0], [0, -1]]


@pytest.mark.parametrize("build", ["slim_resnet", "mobilenet_v3_small", "table_mlp"])
def test_the_same_seed_gives_the_same_entries_and_nobody_elses_randomness_changes(build: str) -> None:
    def make(seed: int) -> dict[str, np.ndarray]:
        if build == "table_mlp":
            return state_arrays(build_table_model(build, HEADS, 5, seed))
        return state_arrays(build_model(build, HEADS, channels=1, seed=seed))

    torch.manual_seed(99)
    before = torch.get_rng_state()
    first = make(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again, other = make(4), make(5)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["heads.cls.weight"], other["heads.cls.weight"])


def modes(model: TransferModel) -> dict[str, bool]:
    return {name: part.training for name, part in model.named_modules() if not list(part.children())}


def churn(model: TransferModel) -> Iterator[TransferModel]:
    """The ways in which training code goes about `train` and `eval`."""
    yield model.train()
    model.eval()
    yield model.train()
    model.eval()
    for part in model.modules():
        part.train()  # somebody else's loop over the layers
    yield model.train()
    model.backbone.train()
    yield model.train(True)


@pytest.mark.parametrize("name", ["slim_resnet", "densenet121", "mobilenet_v3_small"])
def test_frozen_norm_layers_stay_in_eval_however_often_train_is_called(name: str) -> None:
    model = build_model(name, HEADS, channels=1, seed=0)
    model.freeze(named("heads").keys(model.tags()))
    for state in churn(model):
        norm = [part.training for part in state.modules() if isinstance(part, _BatchNorm)]
        dropout = [part.training for part in state.modules() if isinstance(part, nn.Dropout)]
        assert norm
        assert not any(norm + dropout)
        assert all(head.training for head in model.heads.values())
        assert {key for key, value in state.named_parameters() if value.requires_grad} == {
            key for key in state.tags() if key.startswith("heads.")
        }


def test_eval_means_every_layer_even_one_that_somebody_else_set_to_train() -> None:
    model = build_model("slim_resnet", HEADS, channels=1, seed=0).eval()
    model.backbone.get_submodule("bn1").train()
    assert not any(modes(model.eval()).values())


def test_freezing_in_the_middle_of_training_takes_hold_at_once() -> None:
    model = build_model("slim_resnet", HEADS, channels=1, seed=0).train()
    model.freeze(named("heads").keys(model.tags()))
    assert not any(part.training for part in model.modules() if isinstance(part, _BatchNorm))
    model.freeze(list(model.tags()))
    assert all(modes(model).values())
    model.eval()
    model.freeze(named("heads").keys(model.tags()))
    assert not any(modes(model).values()), "freezing does not end eval"


def test_dropout_rests_in_frozen_blocks_only() -> None:
    model = build_model("mobilenet_v3_small", HEADS, channels=1, seed=0)
    x = torch.randn(2, 1, 32, 32)
    model.freeze(named("heads").keys(model.tags()))
    model.train()
    assert torch.equal(model.features(x), model.features(x))
    last = max(tag.depth for tag in model.tags().values())
    model.freeze([key for key, tag in model.tags().items() if tag.depth >= last - 1])
    model.train()
    assert not torch.equal(model.features(x), model.features(x))
    model.eval()
    assert torch.equal(model.features(x), model.features(x))


def test_fixed_statistics_rest_while_the_scale_is_trained() -> None:
    model = build_model("slim_resnet", HEADS, channels=1, seed=0)
    model.freeze(list(model.tags()), fixed_norm_stats=True)
    before = {key: value.copy() for key, value in state_arrays(model).items()}
    model.train()
    loss = sum(logits.square().sum() for logits in model(torch.randn(4, 1, 32, 32)).values())
    loss.backward()
    after = state_arrays(model)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert model.get_parameter("backbone.bn1.weight").grad is not None


def test_arrays_that_do_not_fit_are_all_named() -> None:
    model = build_model("slim_resnet", {"cls": 3}, channels=1, seed=0)
    arrays = {key: value.copy() for key, value in state_arrays(model).items()}
    del arrays["backbone.bn1.bias"]
    arrays["backbone.more"] = np.zeros(1, np.float32)
    arrays["heads.cls.weight"] = np.zeros((4, 128), np.float32)
    with pytest.raises(InputError) as caught:
        load_arrays(model, arrays)
    for text in ("backbone.bn1.bias: missing", "backbone.more: not in", "heads.cls.weight: is (4, 128), must be (3,"):
        assert text in str(caught.value)


def test_the_counters_of_norm_layers_have_no_dimension() -> None:
    model = build_model("slim_resnet", {"cls": 3}, channels=1, seed=0)
    arrays = {key: value.copy() for key, value in state_arrays(model).items()}
    assert arrays["backbone.bn1.num_batches_tracked"].shape == ()
    arrays["backbone.bn1.num_batches_tracked"][...] = 7
    load_arrays(model, arrays)
    assert model.state_dict()["backbone.bn1.num_batches_tracked"].item() == 7

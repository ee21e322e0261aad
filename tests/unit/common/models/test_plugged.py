"""Backbones of others: what they must be, and what of them is found by type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import fedgraft as fg
from fedgraft.client.privacy.dp.gradients.dp_safe import dp_twin
from fedgraft.common.base.errors import InputError
from fedgraft.common.models.architecture import blueprint
from fedgraft.common.models.architecture_cache import architecture_of
from fedgraft.common.models.initialise import make_model
from fedgraft.common.models.model import TransferModel, build_model, build_table_model
from fedgraft.common.plugins import registry
from fedgraft.common.plugins.plugin import Plugin
from fedgraft.common.study.study import Study
from helpers.plugins import EXAMPLE, fresh, install, make_wheel, wheel_of

assert fresh
pytestmark = pytest.mark.usefixtures("fresh")
MakeStudy = Callable[..., Study]


class Mixed(nn.Module):
    """A stem, a norm layer, a body of attention, dropout and a parameter that belongs to no layer."""

    feature_dim = 8

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(8))
        self.first = nn.Conv2d(channels, 8, 4, 4)
        self.norm = nn.RMSNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x).flatten(2).mT + self.token)
        features: Tensor = self.attention(y, y, y)[0].mean(dim=1)
        return features


class Changed(Mixed):
    """The same, with something wrong."""

    def __init__(self, channels: int, size: int, wrong: str) -> None:
        super().__init__(channels, size)
        self.wrong = wrong
        if wrong == "no width":
            self.feature_dim = None  # type: ignore[assignment]
        if wrong == "tied":
            self.second = self.first
        if wrong == "flags":
            self.register_buffer("flags", torch.ones(3, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        z: Any = super().forward(x)
        match self.wrong:
            case "maps":
                return z[:, :, None]  # type: ignore[no-any-return]
            case "tuple":
                return z, z  # type: ignore[return-value]
            case "ties":
                return z - z.mean(0)  # type: ignore[no-any-return]
            case "ties in training":
                return z - z.mean(0) if self.training else z  # type: ignore[no-any-return]
            case "raises":
                raise RuntimeError("needs 64 pixels")
            case "nan":
                return z / 0 * 0  # type: ignore[no-any-return]
        return z  # type: ignore[no-any-return]


def test_roles_are_found_by_the_types_of_the_parts() -> None:
    fg.register_backbone("mixed", Mixed)
    tags = build_model("mixed", {"cls": 2}, channels=1, seed=0, size=16).tags()
    roles = {key.removeprefix("backbone."): tag.role.value for key, tag in tags.items()}
    assert roles == {
        "token": "body",
        "first.weight": "stem",
        "first.bias": "stem",
        "norm.weight": "norm_affine",
        "attention.in_proj_weight": "body",
        "attention.in_proj_bias": "body",
        "attention.out_proj.weight": "body",
        "attention.out_proj.bias": "body",
        "heads.cls.weight": "head",
        "heads.cls.bias": "head",
    }


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("no width", "does not say how wide its features are. Set `feature_dim`"),
        ("tied", "first.weight and second.weight are one tensor"),
        ("flags", "entry flags holds no real numbers"),
        ("maps", r"gives (3, 8, 1) of (3, 1, 16, 16); its features must be finite numbers (3, 8)"),
        ("tuple", "its forward pass gives tuple, not features"),
        ("ties", "says something else of an image when others stand beside it in the batch"),
        ("raises", "its forward pass of (3, 1, 16, 16) fails: RuntimeError: needs 64 pixels"),
        ("nan", "finite numbers"),
    ],
)
def test_a_module_that_is_no_backbone_is_refused_with_the_reason(wrong: str, says: str) -> None:
    fg.register_backbone("changed", lambda channels, size: Changed(channels, size, wrong))
    with pytest.raises(InputError) as caught:
        build_model("changed", {"cls": 2}, channels=1, seed=0, size=16)
    assert says in str(caught.value)
    assert "'changed'" in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (lambda width: None, r"takes \(width\)\. A factory takes `channels` and `size` for images, or `columns`"),
        (lambda channels, size: 3, "its factory gives int, and no nn.Module"),
        (lambda columns: Mixed(1, 16), "is for tables"),
    ],
)
def test_a_factory_that_is_none_is_refused_with_the_reason(factory: Any, says: str) -> None:
    fg.register_backbone("own", factory)
    with pytest.raises(InputError, match=says):
        build_model("own", {"cls": 2}, channels=1, seed=0, size=16)


def test_what_cannot_be_called_is_refused_where_it_is_registered() -> None:
    with pytest.raises(InputError, match="'own' is int, which cannot be called"):
        fg.register_backbone("own", 7)


def test_what_is_drawn_follows_from_the_seed_alone_and_looking_at_it_draws_nothing() -> None:
    fg.register_backbone("mixed", Mixed)
    one, other = (build_model("mixed", {"cls": 2}, channels=1, seed=3, size=16) for _ in range(2))
    torch.manual_seed(3)
    Mixed(1, 16)
    head = nn.Linear(8, 2)
    assert torch.equal(one.heads["cls"].weight, head.weight)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_name_that_nobody_has_is_answered_with_what_was_meant_and_one_of_fedgrafts_is_not_taken() -> None:
    fg.register_backbone("mixed", Mixed)
    with pytest.raises(InputError, match=r"There is no backbone 'mixd'; did you mean mixed\? There are: .*resnet18"):
        build_model("mixd", {"cls": 2}, channels=1, seed=0)
    for name in ("slim_resnet", "resnet18", "resnet18_gn", "table_mlp"):
        with pytest.raises(InputError, match=f"fedgraft has a backbone '{name}' itself"):
            fg.register_backbone(name, Mixed)


def built(wrong: str = "", size: int = 16) -> TransferModel:
    fg.register_backbone("changed", lambda channels, size: Changed(channels, size, wrong))
    return build_model("changed", {"cls": 2}, channels=1, seed=0, size=size)


def test_what_is_frozen_answers_as_when_it_only_answers() -> None:
    """Also a network that itself asks whether it is in training: no case's features may depend on others then."""
    model, x = built("ties in training"), torch.randn(4, 1, 16, 16)
    model.freeze(["heads.cls.weight", "heads.cls.bias"])
    said = model.train()(x)["cls"]
    assert torch.equal(said, model.eval()(x)["cls"])
    model.freeze(model.state_dict())
    assert not torch.equal(model.train()(x)["cls"], said)


def test_private_training_takes_what_it_can_and_says_what_it_cannot(tmp_path: Path) -> None:
    install(wheel_of(EXAMPLE, tmp_path / "wheels"), tmp_path / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        mixer = build_model("patch_mixer", {"cls": 2}, channels=1, seed=0, size=16)
        mixer.freeze(mixer.state_dict())
        x = torch.randn(3, 1, 16, 16)
        assert torch.allclose(dp_twin(mixer, list(mixer.state_dict()))(x)["cls"], mixer(x)["cls"])
    with pytest.raises(InputError, match="In training this backbone ties the cases of a batch together"):
        dp_twin(built("ties in training"), ["backbone.first.weight"])
    with pytest.raises(InputError, match="backbone is a Changed, of which per-sample gradients are not known"):
        dp_twin(built(), ["backbone.token"])
    heads = built("ties in training")
    assert dp_twin(heads, ["heads.cls.weight"]) is heads


class Depth(nn.Module):
    """A part that is left out by chance, for each case or for all of a batch; and dropout beside it."""

    feature_dim = 8

    def __init__(self, of: str, channels: int, size: int) -> None:
        super().__init__()
        self.of, self.first, self.drop = of, nn.Linear(channels * size * size, 8), nn.Dropout(0.5)
        self.depth = StochasticDepth(0.02, "batch") if of == "a layer" else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.drop(self.first(x.flatten(1)))
        if self.depth is not None:
            return z + self.depth(z)  # type: ignore[no-any-return]
        if not self.training or self.of == "nothing":
            return z  # type: ignore[no-any-return]
        return z * (torch.rand(len(z) if self.of == "a case" else 1, 1) > 0.5)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("of", "ties"), [("a batch", True), ("a layer", True), ("a case", False), ("nothing", False)])
def test_a_draw_for_all_cases_of_a_batch_ties_them(of: str, ties: bool) -> None:
    """Who shares it is who is there: one patient more in a pass, and the next ones go by another draw."""
    fg.register_backbone("depth", partial(Depth, of))
    model = build_model("depth", {"cls": 2}, channels=1, seed=0, size=8)
    assert model.ties_cases is ties


def test_whatever_draws_is_given_a_seed() -> None:
    """By a layer of any make, or by no layer at all."""

    class Own(nn.Module):
        feature_dim = 8

        def __init__(self, channels: int, size: int) -> None:
            super().__init__()
            self.first = nn.Linear(channels * size * size, 8)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.first(x.flatten(1)), 0.5, self.training)

    fg.register_backbone("own", Own)
    assert build_model("own", {"cls": 2}, channels=1, seed=0, size=8).needs_dropout_rng
    fg.register_backbone("depth", partial(Depth, "nothing"))
    assert build_model("depth", {"cls": 2}, channels=1, seed=0, size=8).needs_dropout_rng
    assert not build_model("slim_resnet", {"cls": 2}, channels=1, seed=0, size=32).needs_dropout_rng


def test_a_table_reaches_a_backbone_of_ones_own_on_one_scale() -> None:
    class Rows(nn.Module):
        feature_dim = 3

        def __init__(self, columns: int) -> None:
            super().__init__()
            self.layer = nn.Linear(columns, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert bool(x.isfinite().all()), "a missing value is 0 here"
            features: Tensor = self.layer(x)
            return features

    fg.register_backbone("rows", Rows)
    model = build_table_model("rows", {"cls": 2}, 2, seed=0)
    tags = {key: tag.role.value for key, tag in model.tags().items() if key.startswith("backbone.")}
    assert tags == {
        "backbone.standardise.mean": "scale",
        "backbone.standardise.std": "scale",
        "backbone.network.layer.weight": "stem",
        "backbone.network.layer.bias": "stem",
    }
    model(torch.tensor([[torch.nan, 1.0]]))
    with pytest.raises(InputError, match="is for tables"):
        build_model("rows", {"cls": 2}, channels=1, seed=0)


def test_two_versions_are_never_taken_for_one_another(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the cache of architectures, nor where a study names another version than is here."""
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    nets = b"from torch import nn\nclass Net(nn.Module):\n    feature_dim = %d\n"
    nets += b"    def __init__(self, channels, size):\n        super().__init__()\n"
    nets += b"        self.layer = nn.Linear(channels, %d)\n"
    nets += b"    def forward(self, x):\n        return self.layer(x.mean((2, 3)))\n"
    points = {"fedgraft.backbones": {"own": "own_nets:Net"}}
    widths = {}
    for version, width in (("1.0", 3), ("2.0", 5)):
        wheel = make_wheel(tmp_path / "wheels", "own-nets", version, points, {"own_nets.py": nets % (width, width)})
        study = make_study(model={"backbone": "own"}, plugins=[f"own-nets=={version}"])
        with monkeypatch.context() as patch:
            patch.syspath_prepend(install(wheel, tmp_path / version))
            for name in ("_digests", "_registered"):
                patch.setattr(f"fedgraft.common.plugins.registry.{name}", {})
            patch.delitem(__import__("sys").modules, "own_nets", raising=False)
            widths[version] = architecture_of(blueprint(study, study.model)).entries["backbone.layer.bias"].shape
            other = make_study(model={"backbone": "own"}, plugins=["own-nets==3.0"])
            with pytest.raises(InputError, match=f"The model needs own-nets==3.0, and here is {version}"):
                make_model(other)
            with pytest.raises(InputError, match=f"'own' is of own-nets=={version}, which is not named"):
                make_model(make_study(model={"backbone": "own"}))
    assert widths == {"1.0": (3,), "2.0": (5,)}
    assert not (tmp_path / "home" / "architectures").exists()
    assert make_study(plugins=[Plugin(distribution="own-nets", version="1.0")]).digest != study.digest


def test_masks_can_be_drawn_where_a_backbone_gives_maps(make_study: MakeStudy) -> None:
    class Mapped(Mixed):
        def feature_maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            return self(x), [self.first(x)]

    fg.register_backbone("mapped", Mapped)
    fg.register_backbone("mixed", Mixed)
    tasks = [{"name": "lesion", "kind": "segmentation"}]
    named = list({one.plugin for one in registry._registered.values()})
    model = make_model(make_study(model={"backbone": "mapped"}, tasks=tasks, plugins=named))
    assert model(torch.zeros(2, 1, 32, 32))["lesion"].shape == (2, 32, 32)
    with pytest.raises(InputError, match="No feature maps are known of Mixed"):
        make_model(make_study(model={"backbone": "mixed"}, tasks=tasks, plugins=named))

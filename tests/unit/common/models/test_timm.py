"""timm's networks as backbones: built without any connection, with entries from files by their published names."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError, WeightsError
from fedgraft.common.checks.check import only_heads_because
from fedgraft.common.models.backbones.positions import resample
from fedgraft.common.models.initialise import graft
from fedgraft.common.models.model import Extras, TransferModel, build_model
from fedgraft.common.models.weights import load_weights
from fedgraft.common.study.model_spec import Adapters
from fedgraft.common.study.plan import Role
from fedgraft.simulations.weights.weights_import import WeightsSource, import_weights
from helpers.adapted import randomise
from helpers.dp import quiet
from helpers.work import CPU, NOW, MakeStudy, cohort, images

TINY = "timm/test_vit"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))


def drawn(name: str, size: int) -> tuple[dict[str, Tensor], Any]:
    """timm's network for colour images with random entries in all places, and its state."""
    network = timm.create_model(name, pretrained=False, num_classes=0, img_size=size).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for entry in network.parameters():
            entry.add_(torch.randn(entry.shape, generator=draw) * 0.02)
    return {key: value.clone() for key, value in network.state_dict().items()}, network


def hugging_face(state: dict[str, Tensor], *, dino: bool) -> dict[str, Tensor]:
    """The same by the names of Hugging Face's ViT or DINOv2, key by key."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    parts = {
        "norm1": "norm1" if dino else "layernorm_before",
        "norm2": "norm2" if dino else "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.fc1" if dino else "intermediate.dense",
        "mlp.fc2": "mlp.fc2" if dino else "output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        inside = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
        if inside is None:
            found[names[key]] = value
            continue
        layer, rest = f"encoder.layer.{inside[1]}", inside[2]
        if rest.startswith("attn.qkv."):
            for one, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{layer}.attention.attention.{one}.{rest.removeprefix('attn.qkv.')}"] = part.clone()
            continue
        part = next(part for part in parts if rest.startswith(part))
        found[f"{layer}.{parts[part]}{rest.removeprefix(part)}"] = value
    return found


def dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return hugging_face(state, dino=True) | {"embeddings.mask_token": torch.zeros(1, 384)}


def vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    inside = {f"vit.{key}": value for key, value in hugging_face(state, dino=False).items()}
    return inside | {"classifier.weight": torch.zeros(5, 192), "classifier.bias": torch.zeros(5)}


def biomed_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    trunk = {f"visual.trunk.{key}": value for key, value in state.items()}
    beside = ("logit_scale", "visual.head.proj.weight", "text.transformer.embeddings.word_embeddings.weight")
    return trunk | {key: torch.zeros(2, 3) for key in beside}


def swin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names in Hugging Face's files of Swin."""
    parts = (
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("patch_embed.norm.", "embeddings.norm."),
        ("norm.", "layernorm."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        (".attn.proj.", ".attention.output.dense."),
        (".attn.relative", ".attention.self.relative"),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
    )
    found: dict[str, Tensor] = {"classifier.weight": torch.zeros(5, 768), "classifier.bias": torch.zeros(5)}
    for key, value in microsoft(state).items():
        name = key
        for ours, theirs in parts:
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
            name = name.replace(ours, theirs) if ours.startswith(".") else name
        name = f"swin.encoder.{name}" if name.startswith("layers.") else f"swin.{name}"
        if ".attn.qkv." in name:
            for one, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[name.replace(".attn.qkv.", f".attention.self.{one}.")] = part.clone()
            continue
        found[name] = value
    return found


def microsoft(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names in the files of Swin's authors: patches are merged at the end of a stage."""
    found = {
        re.sub(r"^layers\.(\d)\.downsample", lambda at: f"layers.{int(at[1]) - 1}.downsample", key): value
        for key, value in state.items()
    }
    return found | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}


FAMILIES = {
    "Hugging Face Swin": ("swin_tiny_patch4_window7_224", 224, swin),
    "Microsoft Swin": ("swin_tiny_patch4_window7_224", 224, microsoft),
    "RAD-DINO": ("vit_small_patch14_dinov2", 224, dinov2),
    "Hugging Face ViT": ("vit_tiny_patch16_224", 224, vit),
    "BiomedCLIP": ("vit_tiny_patch16_224", 224, biomed_clip),
    "timm": ("test_vit", 160, lambda state: state | {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}),
}


SLOW = ("RAD-DINO", "Microsoft Swin")


@pytest.mark.parametrize("family", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in FAMILIES])
def test_published_names_are_taken_in_and_answer_as_the_network_does(family: str, tmp_path: Path) -> None:
    name, size, published = FAMILIES[family]
    state, network = drawn(name, size)
    save_file({key: value.contiguous() for key, value in published(state).items()}, tmp_path / "w.safetensors")
    source = WeightsSource(tmp_path / "w.safetensors", f"timm/{name}", "MIT", normalise="imagenet")
    manifest, _ = import_weights(source, "theirs")
    assert (manifest.backbone, manifest.keys) == (f"timm/{name}", len(state))
    model = build_model(f"timm/{name}", {"cls": 2}, channels=3, seed=0, size=size).eval()
    assert graft(model, load_weights("theirs")[1], "theirs").adapted == ()
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model.features(x), network(x))


def test_other_names_are_shown_in_a_few_lines_that_tell_how_they_differ(tmp_path: Path) -> None:
    state, _ = drawn("test_vit", 160)
    other = {re.sub(r"^blocks\.(\d+)\.attn\.qkv", r"stages.\1.mixing.in", key): value for key, value in state.items()}
    other = {re.sub(r"^blocks\.(\d+)\.mlp", r"stages.\1.feed", key): value for key, value in other.items()}
    save_file(other, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        import_weights(WeightsSource(tmp_path / "w.safetensors", TINY, "MIT"), "theirs")
    said = str(caught.value)
    assert "backbone.blocks.*.attn.qkv.weight: missing (6 entries)" in said
    assert "backbone.stages.*.mixing.in.weight: not in this backbone (6 entries)" in said
    assert len(said.splitlines()) < 20


@pytest.mark.parametrize(("old", "new", "first"), [(16, 5, 1), (5, 16, 1), (7, 7, 0), (37, 16, 1)])
def test_position_embeddings_are_resampled_as_timm_does(old: int, new: int, first: int) -> None:
    embedding = torch.randn(1, first + old * old, 6, generator=torch.Generator().manual_seed(old))
    grid = embedding[:, first:].reshape(1, old, old, 6).permute(0, 3, 1, 2)
    moved = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", antialias=True)
    wanted = torch.cat([embedding[:, :first], moved.permute(0, 2, 3, 1).reshape(1, new * new, 6)], dim=1)
    found = resample(embedding.numpy(), first + new * new)
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-6)


def test_a_model_for_smaller_images_takes_the_positions_of_a_larger_grid(tmp_path: Path) -> None:
    state, _ = drawn("test_vit", 160)
    small = build_model(TINY, {}, channels=3, seed=0, size=48)
    arrays = {f"backbone.{key}": value.numpy() for key, value in state.items()}
    assert graft(small, arrays, "here").adapted == ("backbone.pos_embed",)
    more = arrays | {"backbone.pos_embed": np.zeros((1, 12, 64), np.float32)}
    with pytest.raises(WeightsError, match=r"pos_embed: is \(1, 12, 64\), must be \(1, 10, 64\)"):
        graft(small, more, "here")


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    build_model(f"{TINY}.r160_in1k", {"cls": 2}, channels=1, seed=0, size=32)
    import os

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    for elsewhere in (
        "timm/hf-hub:timm/test_vit.r160_in1k",
        "timm/hf_hub:x/y",
        "timm/local-dir:/tmp/model",
        "timm/a/b",
    ):
        with pytest.raises(InputError, match="timm has no network"):
            build_model(elsewhere, {"cls": 2}, channels=1, seed=0, size=32)


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("timm/test_vitt", 32, "did you mean test_vit"),
        ("timm/vit_small_patch14_dinov2", 60, "a multiple of 14, not 60"),
        ("timm/test_convnext", 1, "cannot be built for images of 1 pixels"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(name: str, size: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build_model(name, {"cls": 2}, channels=1, seed=0, size=size)


def test_without_timm_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'fedgraft\[timm\]'"):
        build_model(TINY, {"cls": 2}, channels=1, seed=0, size=32)


def model(name: str, size: int = 32, where: str = "attention") -> TransferModel:
    adapters = Adapters(rank=2, where=where)  # type: ignore[arg-type]
    return build_model(name, {"cls": 2}, channels=1, seed=0, size=size, extras=Extras(adapters=adapters))


def test_roles_are_found_by_type_and_networks_in_which_adapters_cannot_work_are_told() -> None:
    tags = model(TINY).tags()
    assert {key for key, tag in tags.items() if tag.role is Role.STEM} == {
        "backbone.patch_embed.proj.weight",
        "backbone.patch_embed.proj.bias",
    }
    assert {key for key, tag in tags.items() if tag.role is Role.NORM_AFFINE} == {key for key in tags if ".norm" in key}
    assert {tag.depth for key, tag in tags.items() if "lora" in key} == {1, 2, 3, 4, 5, 6}
    stats = [tag for tag in model("timm/test_resnet", 64, "all").tags().values() if tag.role is Role.NORM_STATS]
    assert stats
    with pytest.raises(InputError, match=r"reads the entries of blocks\.0\.attn\.qkv without calling it"):
        model("timm/eva02_tiny_patch14_224", 28)
    assert only_heads_because("timm/vit_tiny_patch16_224") is not None


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_its_adapters_train_privately(make_study: MakeStudy, mode: str) -> None:
    study = make_study(model={"backbone": TINY, "weights": None, "adapters": {"rank": 2}})
    local_model = LocalModel(study, CPU)
    keys = [*randomise(local_model.model, local_model.tags), "heads.cls.weight"]
    before = local_model.read(local_model.tags)
    stored, labels = images(6)
    loader = Loader(cohort(stored, {"cls": labels}), study.input, CPU)
    train_private(local_model, loader, list("abcdef"), quiet(mode=mode, lr=0.1), keys, NOW)
    moved = {key for key, array in local_model.read(local_model.tags).items() if (array != before[key]).any()}
    assert moved == set(keys)

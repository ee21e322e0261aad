"""Entries of published networks by the names that timm, or torchvision, gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

_WRAPPERS = ("visual.trunk.", "vision_model.", "vit.", "dinov2.", "swin.", "backbone.", "model.", "module.")
"""What stands in front of names in published files: of CLIP with timm's network (BiomedCLIP), and of others."""
_BESIDE = re.compile(
    r"^(text\.|visual\.head\.|logit_scale|logit_bias|mask_token|pooler\.|classifier\.|embeddings\.mask_token)"
    r"|\.(relative_position_index|attn_mask)$"
)
"""What is no part of an image backbone: a text encoder, projections, heads, the token of masked training; and what
Swin's windows work out for themselves."""
_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.norm\.", "patch_embed.norm."),
        (r"^layernorm\.", "norm."),
        (r"^encoder\.layers\.", "layers."),
        (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.attention\.(?:attention|self)\.", ".attn."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    )
)
"""What Hugging Face's ViT, DINOv2 (RAD-DINO among them) and Swin call what timm calls so; the order matters."""
_DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")
_POSITION = re.compile(r"^backbone\.(\d+)\.(.+)$")
_THREE = ("query", "key", "value")


def timm_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The backbone's entries by timm's names, query, key and value as one; what is timm's already stays as it is."""
    found: dict[str, np.ndarray] = {}
    for key, array in _unwrapped(arrays).items():
        if _BESIDE.search(key):
            continue
        name = key
        for pattern, other in _RENAMED:
            name = pattern.sub(other, name)
        found[name] = array
    return _joined(_before_its_stage(found))


def by_position(arrays: Mapping[str, np.ndarray], children: Sequence[str]) -> dict[str, np.ndarray]:
    """Entries of a network that was cut into a list of its parts (RadImageNet), by the names of these `children`.

    What is no such list stays as it is, and so does all of one with more parts than there are names.
    """
    found = {key: _POSITION.match(key) for key in arrays}
    if not all(one is not None and int(one[1]) < len(children) for one in found.values()):
        return dict(arrays)
    return {f"backbone.{children[int(one[1])]}.{one[2]}": arrays[key] for key, one in found.items() if one is not None}


def _before_its_stage(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Swin's merging of patches as part of the stage after it, as timm has it, where it is part of the one before."""
    if not any(key.startswith("layers.0.downsample.") for key in arrays):
        return dict(arrays)
    return {
        _DOWNSAMPLE.sub(lambda found: f"layers.{int(found[1]) + 1}.downsample.", key): array
        for key, array in arrays.items()
    }


def _unwrapped(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without a wrapper's name in front of the network's own entries."""
    for wrapper in _WRAPPERS:
        inside = [key for key in arrays if key.startswith(wrapper)]
        if inside and all(key in inside or _BESIDE.search(key) for key in arrays):
            return {key.removeprefix(wrapper): arrays[key] for key in inside} | {
                key: arrays[key] for key in arrays if key not in inside
            }
    return dict(arrays)


def _joined(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Query, key and value of a layer, one after the other, as timm's `qkv`."""
    joined: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        part = next((part for part in _THREE if f".attn.{part}." in key), None)
        three = [key.replace(f".attn.{part}.", f".attn.{one}.") for one in _THREE] if part else []
        if part is None or not all(one in arrays for one in three):
            joined[key] = array
        elif part == _THREE[0]:
            joined[key.replace(".attn.query.", ".attn.qkv.")] = np.concatenate([arrays[one] for one in three])
    return joined

"""Entries of published vision transformers by the names that timm gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

_WRAPPERS = ("visual.trunk.", "vision_model.", "vit.", "dinov2.", "backbone.", "model.", "module.")
"""What stands in front of names in published files: of CLIP with timm's network (BiomedCLIP), and of others."""
_BESIDE = re.compile(
    r"^(text\.|visual\.head\.|logit_scale|logit_bias|mask_token|pooler\.|classifier\.|embeddings\.mask_token)"
)
"""What is no part of an image backbone: a text encoder, projections, heads, and the token of masked training."""
_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^layernorm\.", "norm."),
        (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    )
)
"""What Hugging Face's ViT and DINOv2 (RAD-DINO among them) call what timm calls so; the order matters."""
_THREE = ("query", "key", "value")


def timm_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The backbone's entries by timm's names, query, key and value as one; what is timm's already stays as it is."""
    found: dict[str, np.ndarray] = {}
    for key, array in _unwrapped(arrays).items():
        if _BESIDE.match(key):
            continue
        name = key
        for pattern, other in _RENAMED:
            name = pattern.sub(other, name)
        found[name] = array
    return _joined(found)


def _unwrapped(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without a wrapper's name in front of the network's own entries."""
    for wrapper in _WRAPPERS:
        inside = [key for key in arrays if key.startswith(wrapper)]
        if inside and all(key in inside or _BESIDE.match(key) for key in arrays):
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
